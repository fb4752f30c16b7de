"""The search for a translation: the best of all, the same for a sentence alone, and its scores."""

import itertools

import pytest
import torch
from torch import Tensor

from dalle.errors import ConfigError
from dalle.translate.encoder_decoder import EncoderDecoder
from dalle.translate.search import SearchConfig, beam_search, greedy_search, search
from tests.support.translators import network_of


def sharp(seed: int, **changes: object) -> EncoderDecoder:
    """A random network whose probabilities differ much, and which ends now and then."""
    torch.manual_seed(seed)
    network = network_of(head_bias=True, tie_head=False, **changes)
    assert network.head is not None and network.head_bias is not None
    with torch.no_grad():
        network.head.weight.mul_(3)
        for name, parameter in network.named_parameters():
            if parameter.ndim == 2 and ("memory_attention" in name or "mlp" in name):
                parameter.mul_(3)
        network.head_bias[1] += 1
    return network


@torch.inference_mode()
def log_probability(network: EncoderDecoder, source: Tensor, target: list[int]) -> float:
    """The sum of the log probabilities of a target's ids, plainly."""
    logits = network(source[None], torch.tensor([target]))[0].double()
    return float(sum(logits[i].log_softmax(-1)[token] for i, token in enumerate(target)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("normalisation", "power"), [("gnmt", 0.6), ("gnmt", 0.0), ("gnmt", 2.0), ("power", 1.0), ("power", 0.5)]
)
def test_beams_find_the_best_of_all_translations(seed: int, normalisation: str, power: float) -> None:
    """With five ids (padding, end and three tokens) and a limit of four there are 40 translations with an end."""
    network, limit = sharp(seed, vocab_size=5), 4
    config = SearchConfig.from_dict({"num_beams": 40, "normalisation": normalisation, "length_penalty": power})
    source = torch.tensor([2, 3, 4, 2, 1])
    every = [[*tokens, 1] for length in range(limit) for tokens in itertools.product((2, 3, 4), repeat=length)]
    assert len(every) == 40
    scores = {tuple(one): config.normalised(log_probability(network, source, one), len(one)) for one in every}
    best = max(scores, key=scores.__getitem__)
    (found,) = beam_search(network, source[None], [limit], config)
    assert (*found.ids, 1) == best and found.finished
    assert found.score == pytest.approx(scores[best], abs=1e-5)
    assert found.log_probability == pytest.approx(log_probability(network, source, list(best)), abs=1e-5)


def test_more_beams_find_what_greedy_search_misses() -> None:
    config, sources = SearchConfig(num_beams=8, length_penalty=0), torch.randint(2, 20, (30, 6))
    network = sharp(1)
    greedy = greedy_search(network, sources, [8] * 30, config)
    beams = beam_search(network, sources, [8] * 30, config)
    both = [(one, other) for one, other in zip(greedy, beams, strict=True) if one.finished and other.finished]
    better = [other.score > one.score + 1e-4 for one, other in both]
    assert any(better), "a likely beginning may have unlikely ends"
    assert all(other.score > one.score - 1e-4 for one, other in both)


def test_one_beam_is_greedy_search() -> None:
    """The greedy search takes the likeliest token that is neither padding nor start at every position."""
    network, config = sharp(2), SearchConfig(num_beams=1)
    sources = torch.randint(2, 20, (8, 6))
    greedy = greedy_search(network, sources, [9] * 8, config)
    beams = beam_search(network, sources, [9] * 8, config)
    assert [one.ids for one in greedy] == [one.ids for one in beams]
    for one, other in zip(greedy, beams, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5) and one.finished == other.finished
    for source, one in zip(sources, greedy, strict=True):
        ids = list[int]()
        for _ in range(9):
            with torch.inference_mode():
                logits = network(source[None], torch.tensor([[*ids, 2]]))[0, -1]
            ids.append(1 + int(logits[1:].argmax()))
            if ids[-1] == 1:
                break
        assert list(one.ids) == [token for token in ids if token != 1]


@pytest.mark.parametrize("num_beams", [1, 4])
def test_a_sentence_is_translated_alike_alone_and_with_others(num_beams: int) -> None:
    network, config = sharp(3), SearchConfig(num_beams=num_beams, max_ratio=1.0, max_extra=2)
    sources = torch.randint(2, 20, (6, 10))
    for number in range(6):
        sources[number, 3 + number] = 1
        sources[number, 4 + number :] = 0
    together = search(network, sources, config)
    assert len({one.ids for one in together}) > 2
    for number, one in enumerate(together):
        (alone,) = search(network, sources[number : number + 1, : 4 + number], config)
        assert alone.ids == one.ids and alone.finished == one.finished
        assert alone.score == pytest.approx(one.score, abs=1e-5)
        assert len(one.ids) + one.finished <= 4 + number + 2


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_translation_without_an_end_is_cut_at_its_limit(num_beams: int) -> None:
    network = sharp(0)
    assert network.head_bias is not None
    with torch.no_grad():
        network.head_bias[1] = -1000
    (found,) = search(network, torch.tensor([[5, 6, 1]]), SearchConfig(num_beams=num_beams, max_ratio=1, max_extra=2))
    assert not found.finished and len(found.ids) == 5 and not {0, 1} & {*found.ids}
    (found,) = search(network, torch.tensor([[5, 6, 1]]), SearchConfig(num_beams=num_beams))
    assert len(found.ids) == network.config.target_length == 12


def test_length_penalties_are_those_of_their_papers() -> None:
    assert SearchConfig(length_penalty=0.6).normalised(-3.0, 7) == pytest.approx(-3 / 2**0.6)
    assert SearchConfig(length_penalty=0.0).normalised(-3.0, 7) == -3.0
    assert SearchConfig(normalisation="power", length_penalty=1.0).normalised(-3.0, 6) == pytest.approx(-0.5)
    assert SearchConfig(max_ratio=2.5, max_extra=4).limit(5, 100) == 16
    assert SearchConfig(max_ratio=2.5, max_extra=4).limit(5, 12) == 12


def test_wrong_settings_are_refused() -> None:
    for values, message in (
        ({"num_beams": 0}, "num_beams is 0; it must be at least 1"),
        ({"length_penalty": -1.0}, r"length_penalty is -1\.0; it must be in \[0, 10\]"),
        ({"max_ratio": 0.0}, r"max_ratio is 0\.0; it must be above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            SearchConfig.from_dict(values)
