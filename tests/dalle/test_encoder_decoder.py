"""The encoder-decoder Transformer against torch.nn.Transformer and against itself: caches, padding, positions."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dalle.errors import ConfigError
from dalle.transformer.attention import attention_weights
from dalle.transformer.linear import for_inference
from dalle.translate.cache import DecodingCache
from dalle.translate.encoder_decoder import EncoderDecoder
from tests.support.golden import distance
from tests.support.translators import network_of

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "the paper's": {"post_norm": True, "final_norm": False},
    "learned": {"positions": "learned", "scale_embeddings": False},
    "rotary": {"positions": "rotary", "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": True, "qkv_bias": False},
    "none": {"positions": "none", "mlp": "gelu", "head_bias": True},
    "halves": {"positions": "sinusoidal_halves", "mlp": "silu"},
    "apart": {"share_embeddings": False, "tie_head": False, "decoder_depth": 1},
}
every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def sources_and_targets(count: int = 3) -> tuple[Tensor, Tensor]:
    """Sources (count, 9) and targets (count, 7), with ends; the first source and target are shorter than the others."""
    sources, targets = torch.randint(2, 20, (count, 9)), torch.randint(2, 20, (count, 7))
    sources[:, -1] = targets[:, -1] = 1
    sources[0, 5:], targets[0, 3:] = torch.tensor([1, 0, 0, 0]), torch.tensor([1, 0, 0, 0])
    return sources, targets


def weights_of(peer: nn.Transformer) -> dict[str, Tensor]:
    """The weights of torch's Transformer under our names."""
    parts = {
        "self_attn.in_proj_": "attention.qkv.",
        "self_attn.out_proj.": "attention.output.",
        "multihead_attn.out_proj.": "memory_attention.output.",
        "linear1.": "mlp.input.",
        "linear2.": "mlp.output.",
    }
    norms = {"encoder": ["attention", "mlp"], "decoder": ["attention", "memory", "mlp"]}
    found: dict[str, Tensor] = {}
    for name, weight in peer.state_dict().items():
        side, _, rest = name.partition(".")
        if rest.startswith("norm."):
            found[f"{side}_norm.{rest.removeprefix('norm.')}"] = weight
            continue
        _, number, part = rest.split(".", 2)
        start = f"{side}.{number}."
        if part.startswith("multihead_attn.in_proj_"):
            kind = part.removeprefix("multihead_attn.in_proj_")
            width = peer.d_model
            found[f"{start}memory_attention.query.{kind}"] = weight[:width]
            found[f"{start}memory_attention.key_value.{kind}"] = weight[width:]
        elif part.startswith("norm"):
            found[f"{start}{norms[side][int(part[4]) - 1]}_norm.{part.partition('.')[2]}"] = weight
        else:
            (theirs,) = (one for one in parts if part.startswith(one))
            found[start + part.replace(theirs, parts[theirs])] = weight
    return found


@pytest.mark.filterwarnings("ignore:.*nested tensor", "ignore:enable_nested_tensor")
@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("mlp", ["relu", "gelu"])
def test_hidden_states_are_those_of_torch(post_norm: bool, mlp: str) -> None:
    peer = nn.Transformer(
        32, 4, 2, 2, 48, dropout=0.0, activation=mlp, batch_first=True, norm_first=not post_norm
    ).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    network = network_of(width=32, mlp_width=48, mlp=mlp, post_norm=post_norm, positions="none")
    embeddings = {name: value for name, value in network.state_dict().items() if "tokens" in name}
    network.load_state_dict(embeddings | weights_of(peer))
    sources, targets = sources_and_targets()
    padding = sources == 0
    assert padding.any()
    with torch.no_grad():
        expected = peer(
            network.embed_source(sources),
            network.embed_target(targets),
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.bool),
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        assert distance(network.decode(targets, network.remember(sources)), expected) < 1e-5
        assert (
            distance(
                network.encode(sources)[0][~padding],
                peer.encoder(network.embed_source(sources), src_key_padding_mask=padding)[~padding],
            )
            < 1e-5
        )
    assert expected.std() > 0.1


def test_embeddings_and_positions_are_those_of_the_paper() -> None:
    """sqrt(D) times the embedding, plus sines and cosines of the position over 10000^(2i / D)."""
    network = network_of()
    ids = torch.tensor([[5, 6, 7]])
    place, channel = 2, 6  # a sine; the next channel is its cosine
    found = network.embed_source(ids)[0, place] - 4 * network.embed_source.tokens.weight[7]
    angle = torch.tensor(place / 10000 ** (channel / 16))
    assert found[channel].item() == pytest.approx(angle.sin().item(), abs=1e-6)
    assert found[channel + 1].item() == pytest.approx(angle.cos().item(), abs=1e-6)
    halves = network_of(positions="sinusoidal_halves").embed_source
    found = halves(ids)[0, place] - 4 * halves.tokens.weight[7]
    assert found[channel // 2].item() == pytest.approx(angle.sin().item(), abs=1e-6)
    assert found[8 + channel // 2].item() == pytest.approx(angle.cos().item(), abs=1e-6)


@every_variant
@torch.inference_mode()
def test_cached_decoding_is_uncached_decoding(changes: dict[str, Any]) -> None:
    network = network_of(**changes)
    sources, targets = sources_and_targets()
    memory, cache = network.remember(sources), DecodingCache(network.config.decoder_depth)
    whole = network.decode(targets, memory)
    parts = [network.decode(some, memory, cache) for some in targets.split([2, 1, 1, 3], dim=1)]
    assert cache.length == 7
    assert distance(torch.cat(parts, dim=1), whole) < 1e-5
    rows = [2, 2, 0]
    cache.take(torch.tensor(rows))
    one_more = network.decode(targets[rows, :1], [_rows(layer, rows) for layer in memory], cache)
    whole = network.decode(torch.cat([targets, targets[:, :1]], dim=1), memory)
    assert distance(one_more, whole[rows, -1:]) < 1e-5


def _rows(layer: Any, rows: list[int]) -> Any:
    return type(layer)(*(part[rows] for part in layer))


@every_variant
@torch.inference_mode()
def test_padding_changes_nothing(changes: dict[str, Any]) -> None:
    network = network_of(**changes)
    sources, targets = sources_and_targets()
    together = network(sources, targets)
    assert distance(network(sources[:1, :6], targets[:1, :4]), together[:1, :4]) < 1e-5
    assert distance(network(sources[1:2], targets[1:2]), together[1:2]) < 1e-5


@every_variant
@torch.inference_mode()
def test_what_a_position_sees(changes: dict[str, Any]) -> None:
    """A target position predicts from the targets before it alone, and every position from the whole source."""
    network = network_of(**changes)
    sources, targets = sources_and_targets()
    before = network(sources, targets)
    changed = targets.clone()
    changed[:, 4] = 2 + (targets[:, 4] + 1) % 18
    difference = (network(sources, changed) - before)[1:].abs().amax((0, 2))
    assert difference[:5].max() < 1e-6 and difference[5:].min() > 1e-4
    other = sources.clone()
    other[:, 2] = 2 + (sources[:, 2] + 1) % 18
    assert (network(other, targets) - before).abs().amax(2).min() > 1e-4


@torch.inference_mode()
def test_positions_give_sources_their_order() -> None:
    sources, targets = sources_and_targets()
    turned = sources.flip(1)[1:]
    for positions in ("sinusoidal", "sinusoidal_halves", "learned", "rotary"):
        network = network_of(positions=positions)
        assert distance(network(turned, targets[1:]), network(sources[1:], targets[1:])) > 1e-4, positions
    network = network_of(positions="none")
    assert distance(network(turned, targets[1:]), network(sources[1:], targets[1:])) < 1e-5


def test_one_matrix_may_serve_sources_targets_and_the_output() -> None:
    shared = network_of()
    assert shared.embed_source.tokens is shared.embed_target.tokens and shared.head is None
    apart = network_of(share_embeddings=False, tie_head=False)
    sizes = [sum(one.numel() for one in network.parameters()) for network in (shared, apart)]
    assert sizes[1] - sizes[0] == 2 * 20 * 16


@torch.inference_mode()
def test_keys_and_values_of_a_source_are_computed_once() -> None:
    network, calls = network_of(), list[int]()
    attentions: list[Any] = [block.memory_attention for block in network.decoder]
    for attention in attentions:
        attention.key_value.register_forward_hook(lambda *_: calls.append(1))
    sources, targets = sources_and_targets()
    memory, cache = network.remember(sources), DecodingCache(2)
    for ids in targets.split(1, dim=1):
        network.decode(ids, memory, cache)
    assert len(calls) == network.config.decoder_depth


@torch.inference_mode()
def test_attention_to_a_memory_is_the_plain_sum() -> None:
    network = network_of()
    attention: Any = network.decoder[0].memory_attention
    x, source = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])[:, None, None]
    memory = attention.remember(source, mask)
    weights = attention_weights(attention, x, mask, None, memory)
    expected = torch.zeros(2, 3, 16)
    for row in range(2):
        kept = mask[row, 0, 0]
        values = attention.key_value(source[row])[:, 16:]
        for head in range(4):
            part = slice(4 * head, 4 * head + 4)
            keys = attention.key_value(source[row])[:, :16][:, part]
            scores = (attention.query(x[row])[:, part] @ keys.T / 2).masked_fill(~kept, -torch.inf).softmax(-1)
            assert distance(weights[row, head], scores) < 1e-6
            expected[row, :, part] = scores @ values[:, part]
    assert distance(attention(x, mask, None, None, memory), attention.output(expected)) < 1e-6


def test_training_moves_every_weight() -> None:
    """One step against the loss of shifted targets; hooks add dropout where the branches end."""
    network = network_of(head_bias=True)
    places = [network.embed_source, network.embed_target]
    places += [part for name, part in network.named_modules() if name.rpartition(".")[2].startswith("after_")]
    assert len(places) == 2 + 2 * 2 + 2 * 3
    dropped = list[int]()

    def drop(_: nn.Module, __: object, output: Tensor) -> Tensor:
        dropped.append(1)
        return nn.functional.dropout(output, 0.5)

    for place in places:
        place.register_forward_hook(drop)
    sources, targets = sources_and_targets()
    loss = nn.functional.cross_entropy(network(sources, targets).flatten(0, 1), targets.flatten(), ignore_index=0)
    loss.backward()
    assert len(dropped) == len(places)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@torch.inference_mode()
def test_a_twin_with_packed_weights_gives_the_same_logits() -> None:
    network = network_of()
    twin: EncoderDecoder = for_inference(copy.deepcopy(network), pack=True)
    sources, targets = sources_and_targets()
    assert distance(twin(sources, targets), network(sources, targets)) < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 18}, "width is 18; it must be a multiple of 4"),
        ({"vocab_size": 1}, "vocab_size is 1; it must be at least 2"),
        ({"pad_id": 20}, "pad_id 20 is not in the vocabulary of 20"),
        ({"end_id": 0}, "end_id 0 is that of padding or start"),
        ({"width": 12, "positions": "rotary"}, "rotary positions need heads of an even width, not of 3"),
        ({"width": 5, "num_heads": 1, "positions": "sinusoidal_halves"}, "width is 5; it must be a multiple of 2"),
        ({"decoder_depth": 0}, "decoder_depth is 0; it must be at least 1"),
    ],
)
def test_wrong_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        network_of(**changes)
