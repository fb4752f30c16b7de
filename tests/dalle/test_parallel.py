"""Parallel decoding: windows draw the codes of sequential decoding, in fewer passes, and doubt what is nearly tied."""

import random

import pytest
import torch
from torch import Tensor

from dalle.decoder import parallel
from dalle.decoder.decoder import Decoder
from dalle.decoder.engine import Engine
from dalle.decoder.parallel import Drawing, nearly_tied
from dalle.decoder.request import Request
from dalle.decoder.sampling import FilterParams, SamplingParams, sample
from dalle.decoder.step import Step
from dalle.errors import EngineError
from tests.support.models import FAMILIES, lively_decoder
from tests.support.requests import fitted, request

ALL = {"ours": {}, **FAMILIES}
GIVEN = torch.tensor([5, 3, 9, -1, 7, 1, -1, -1, 30, 2, 2, -1, -1, 8, -1, 4])
LONE: dict[str, dict[str, object]] = {
    "plain": {"params": SamplingParams(), "kept": None},
    "guided": {"params": SamplingParams(temperature=0.5, guidance_scale=3), "kept": None},
    "greedy": {"params": SamplingParams(temperature=0), "kept": None},
    "greedy, guided": {"params": SamplingParams(temperature=0, guidance_scale=2, guidance_schedule="cosine")},
    "filters": {"params": SamplingParams(top_k=8, top_p=0.9, min_p=0.05), "kept": None},
    "filters, guided": {"params": SamplingParams(top_k=3, top_p=0.7, min_p=0.2, guidance_scale=3, guided_codes=7)},
    "given": {"params": SamplingParams(), "kept": GIVEN},
    "given, guided": {"params": SamplingParams(temperature=0.7, guidance_scale=1.5), "kept": GIVEN},
    "one code to draw": {"params": SamplingParams(), "kept": torch.tensor([1] * 15 + [-1])},
}


def lone(decoder: Decoder) -> list[Request]:
    return [fitted(decoder, request(i, **changes)) for i, changes in enumerate(LONE.values())]


@pytest.mark.parametrize("changes", ALL.values(), ids=ALL.keys())
def test_windows_draw_the_codes_of_sequential_decoding(changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    decoder = lively_decoder(**changes)
    requests = lone(decoder)
    one_by_one = Engine(decoder, num_slots=6)
    expected = [one_by_one.run([one])[0] for one in requests]
    for width in (2, 3, 8, 20):
        engine = Engine(decoder, num_slots=6, parallel=width)
        for one, codes in zip(requests, expected, strict=True):
            assert torch.equal(engine.run([one])[0], codes)
        assert engine.num_steps < one_by_one.num_steps
        assert engine.num_free_slots == 6


@pytest.mark.parametrize("changes", ALL.values(), ids=ALL.keys())
@pytest.mark.parametrize("margin", [parallel.MARGIN, 0.02])
def test_codes_do_not_depend_on_arrivals_and_cancellations(
    changes: dict[str, object], margin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures join and are cancelled at random, so that steps change between windows and single tokens. Codes that are
    drawn again, as many are with a wide margin, are the same."""
    monkeypatch.setattr(parallel, "MARGIN", margin)
    torch.manual_seed(0)
    decoder = lively_decoder(**changes)
    requests = [*lone(decoder), *(fitted(decoder, request(number)) for number in range(12))]
    expected = [Engine(decoder, num_slots=8).run([one])[0] for one in requests]
    for trial in range(2):
        chance = random.Random(trial)
        engine = Engine(decoder, num_slots=8, parallel=4, buckets=(2, 4) if trial == 1 else ())
        order = chance.sample(range(len(requests)), len(requests))
        numbers: dict[int, int] = {}
        finished: dict[int, Tensor] = {}
        cancelled: set[int] = set()
        while order or engine.num_active or engine.num_waiting:
            for _ in range(chance.choice([0, 0, 0, 1, 4])):
                if order:
                    number = order.pop()
                    numbers[engine.add(requests[number])] = number
            candidates = sorted(set(numbers) - set(finished) - cancelled)
            if candidates and chance.random() < 0.05:
                victim = chance.choice(candidates)
                assert engine.cancel(victim)
                cancelled.add(victim)
            latest = {key: engine.steps_until_finished(key) for key in set(numbers) - set(finished) - cancelled}
            result = engine.step()
            finished |= result.finished
            assert all(left >= 1 for left in latest.values())
            for key in result.drawn:
                if key not in result.finished:
                    so_far = engine.codes_so_far(key)
                    assert len(so_far) == result.drawn[key]
                    assert torch.equal(so_far, expected[numbers[key]][: len(so_far)])
                    assert engine.steps_until_finished(key) < latest[key]
        assert set(finished) | cancelled == set(numbers)
        assert all(torch.equal(codes, expected[numbers[key]]) for key, codes in finished.items())
        assert engine.num_free_slots == 8


def counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Numbers of passes over windows and over single tokens that an engine has run, updated as it runs."""
    counts = {"forward": 0, "forward_window": 0}
    for name in counts:
        method = getattr(Step, name)

        def count(*args: object, name: str = name, method: object = method) -> object:
            counts[name] += 1
            return method(engine._step, *args)  # type: ignore[operator]

        monkeypatch.setattr(engine._step, name, count)
    return counts


def certain(decoder: Decoder, code: int) -> Decoder:
    """The decoder with logits so much in favour of one code that no noise matters."""
    assert decoder.head is not None
    decoder.head.bias.data[decoder.config.text_vocab_size + code] = 1000
    return decoder


def test_a_picture_of_one_code_takes_a_pass_for_each_window(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    for code, num_passes in ((0, 3), (7, 4)):  # the first draft of a row is 0, and the left code of a new one
        engine = Engine(certain(lively_decoder(head_bias=True), code), num_slots=2, parallel=6)
        counts = counted(engine, monkeypatch)
        assert engine.run([request(0, params=SamplingParams(guidance_scale=1.5), kept=None)])[0].tolist() == [code] * 16
        assert counts == {"forward": 0, "forward_window": num_passes}


def test_drafts_that_are_all_wrong_cost_no_more_passes_than_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    one = request(0, params=SamplingParams(temperature=2), kept=None)
    decoder = lively_decoder()
    expected = Engine(decoder, num_slots=2).run([one])[0]
    engine = Engine(decoder, num_slots=2, parallel=5)
    counts = counted(engine, monkeypatch)
    monkeypatch.setattr(Drawing, "drafts", lambda self, num, _: [int(expected[len(self.codes)] + 1) % 32] * num)
    result = [engine.add(one)]
    drawn = []
    while engine.num_active or engine.num_waiting:
        step = engine.step()
        drawn.append((step.drawn[result[0]], step.num_codes))
    assert drawn == [(i + 1, 1) for i in range(16)]
    assert torch.equal(step.finished[result[0]], expected)
    assert counts == {"forward": 0, "forward_window": 16}


def test_a_doubtful_code_is_settled_by_steps_over_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every code is doubtful, each is drawn by one such step, from keys and values that such steps wrote."""
    monkeypatch.setattr(parallel, "MARGIN", 1e9)
    torch.manual_seed(0)
    decoder = lively_decoder()
    one = request(3, params=SamplingParams(guidance_scale=3), kept=None)
    narrow, wide = Engine(decoder, num_slots=2), Engine(decoder, num_slots=2, parallel=8)
    counts = counted(wide, monkeypatch)
    assert torch.equal(wide.run([one])[0], narrow.run([one])[0])
    assert counts == {"forward": 16, "forward_window": 16}
    end = decoder.layout.length - 2  # the last position that a step over one token writes
    for layer, other in zip(wide._step.cache.layers, narrow._step.cache.layers, strict=True):
        assert torch.equal(layer.keys[:, :, :end], other.keys[:, :, :end])
        assert torch.equal(layer.values[:, :, :end], other.values[:, :, :end])


def test_windows_run_no_more_slots_than_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    decoder = lively_decoder()
    guided = [request(i, params=SamplingParams(guidance_scale=2), kept=None) for i in range(4)]
    expected = [Engine(decoder, num_slots=8).run([one])[0] for one in guided]
    engine = Engine(decoder, num_slots=8, parallel=3)
    keys = [engine.add(one) for one in guided]
    engine.step()
    engine.step()
    shapes: list[tuple[int, ...]] = []
    forward = engine._step.forward_window

    def seen(ids: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        shapes.append(tuple(ids.shape))
        return forward(ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(engine._step, "forward_window", seen)
    engine.step()
    assert not shapes, "all slots are busy"
    for key in keys[:3]:
        engine.cancel(key)
    finished: dict[int, Tensor] = {}
    while not finished:
        finished = engine.step().finished
    assert torch.equal(finished[keys[3]], expected[3])
    assert set(shapes) == {(2, 3)}, "its slots were 6 and 7, and are now 0 and 1"
    assert engine.num_free_slots == 8


def test_bad_widths_and_types_are_refused() -> None:
    decoder = lively_decoder()
    with pytest.raises(EngineError, match="parallel is 0; it must be at least 1"):
        Engine(decoder, num_slots=2, parallel=0)
    with pytest.raises(EngineError, match=r"parallel is 8; it must be 1 for weights of torch.bfloat16"):
        Engine(decoder.bfloat16(), num_slots=2, parallel=8)


def test_drafts_are_guesses_then_given_codes_then_a_neighbour() -> None:
    torch.manual_seed(0)
    step = Step(lively_decoder(), 2)
    drawing = Drawing.start(step.admit(request(0, params=SamplingParams(), kept=GIVEN), [1]))
    assert (drawing.codes, drawing.num_exact, drawing.is_exact) == ([5, 3, 9], 3, True)
    # 5 3 9 9 / 7 1 . .: below 9 the code above differs from the one before it, below the second 9 it does not
    assert drawing.drafts(5, 4) == [9, 7, 1, 9, 9]
    drawing.guesses = [4, 7]
    assert drawing.drafts(4, 4) == [4, 7, 1, 9]
    drawing.append([6])
    assert (drawing.codes, drawing.guesses, drawing.is_exact) == ([5, 3, 9, 6], [7], False)
    assert drawing.drafts(14, 4)[:12] == [7, 1, 9, 6, 30, 2, 2, 6, 30, 8, 8, 4]
    empty = Drawing.start(step.admit(request(0, params=SamplingParams(), kept=None), [0]))
    assert empty.drafts(3, 4) == [0, 0, 0]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.3),
        SamplingParams(temperature=0),
        SamplingParams(top_k=5),
        SamplingParams(top_k=1),
        SamplingParams(top_p=0.6),
        SamplingParams(top_p=1e-9),
        SamplingParams(min_p=0.1),
        SamplingParams(min_p=1.0),
        SamplingParams(temperature=0.7, top_k=9, top_p=0.8, min_p=0.05),
    ],
    ids=str,
)
def test_what_is_not_nearly_tied_is_drawn_from_all_logits_nearby(params: SamplingParams) -> None:
    torch.manual_seed(0)
    num, margin = 400, 0.02
    filters = FilterParams.stack([params] * num, torch.device("cpu"))
    logits, noise = torch.randn(num, 24), -torch.rand(num, 24).double().log().neg().log()
    tied = nearly_tied(logits, filters, noise, torch.full((num,), margin))
    drawn = sample(logits, filters, noise)
    moved = torch.zeros(num, dtype=torch.bool)
    for _ in range(200):
        nearby = logits + (torch.randint(2, logits.shape) - 0.5) * margin * 0.999
        moved |= sample(nearby, filters, noise) != drawn
    assert not (moved & ~tied).any()
    assert moved.any(), "or nothing was tried"
    assert tied.sum() < num / 5


def test_equal_logits_are_tied_and_a_lone_token_is_not() -> None:
    greedy = FilterParams.stack([SamplingParams(temperature=0)], torch.device("cpu"))
    noise, margin = torch.zeros(1, 4).double(), torch.tensor([1e-5])
    assert nearly_tied(torch.tensor([[1.0, 3.0, 3.0, 0.0]]), greedy, noise, margin).tolist() == [True]
    assert nearly_tied(torch.tensor([[1.0, 3.0, 2.0, 0.0]]), greedy, noise, margin).tolist() == [False]
    assert nearly_tied(torch.tensor([[1.0]]), greedy, noise[:, :1], margin).tolist() == [False]
