"""The decoder: cached equals uncached, causality, padding, and the numbers of each option."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from dalle.decoder.cache import cache_length
from dalle.decoder.config import DecoderConfig
from dalle.decoder.decoder import Decoder
from dalle.decoder.request import Request
from dalle.decoder.sampling import SamplingParams
from dalle.decoder.step import Step
from dalle.errors import ConfigError
from dalle.transformer.attention import _attend
from dalle.transformer.block import shift_tokens
from dalle.transformer.linear import InferenceLinear, for_inference
from dalle.transformer.masks import attention_mask
from tests.support.models import FAMILIES, decoder_config, lively_decoder

VARIANTS: dict[str, dict[str, object]] = {
    "default": {},
    "one head for all queries": {"num_kv_heads": 1},
    "gpt-2": {"norm": "layernorm", "mlp": "gelu", "positions": "learned", "qk_norm": False, "qkv_bias": True}
    | {"output_bias": True, "mlp_bias": True, "num_kv_heads": 4, "attend_padding": True},
    "axial positions, geglu": {"positions": "axial", "mlp": "geglu", "mlp_bias": True, "head_bias": True},
    "sinusoidal positions, tied": {"positions": "sinusoidal", "tie_embeddings": True, "mlp": "gelu_tanh"},
    "no positions, sandwich norm": {"positions": "none", "sandwich_norm": True, "norm": "layernorm"},
    "rotary in one dimension, layer scale": {"positions": "rotary", "layer_scale": 0.5, "mlp": "gelu_sigmoid"},
    "sparse": {"patterns": ("row", "column", "convolution", "causal"), "depth": 4, "convolution_size": 2},
    "centred convolution": {"patterns": ("convolution_centered", "local"), "convolution_size": 3},
    **{name: changes for name, changes in FAMILIES.items() if name != "features"},  # whose rows test_engine has
}


def rows(decoder: Decoder, num_rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    config = decoder.config
    text_ids = torch.randint(2, config.layout.num_text_ids, (num_rows, config.text_length))
    for i in range(num_rows):
        text_ids[i, : min(3 * i + 1, config.text_length - 1)] = config.pad_id
    codes = torch.randint(config.codebook_size, (num_rows, config.grid_height, config.grid_width))
    return text_ids, codes


@pytest.mark.parametrize("grouped", [False, True])
def test_attention_in_training_is_torch_attention(grouped: bool) -> None:
    """Written out for the sake of its backward pass: values and gradients are those of torch's kernel."""
    heads = (4, 2, 2) if grouped else (4, 4, 4)
    q, k, v = (torch.randn(2, n, 7, 8, requires_grad=True) for n in heads)
    mask = torch.ones(7, 7).tril().bool() & (torch.rand(2, 1, 7, 7) < 0.7) | torch.eye(7).bool()
    outputs = torch.randn(2, 4, 7, 8)
    ours = _attend(q, k, v, mask, 0.3, grouped=grouped)
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=grouped)
    assert (ours - theirs).abs().max() < 1e-5
    for one, other in zip(*(torch.autograd.grad(a, (q, k, v), outputs) for a in (ours, theirs)), strict=True):
        assert (one - other).abs().max() < 1e-5


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
@torch.inference_mode()
def test_cached_equals_uncached(changes: dict[str, object]) -> None:
    decoder = lively_decoder(**changes)
    text_ids, codes = rows(decoder)
    _, expected = decoder.teacher_forced(text_ids, codes)

    step = Step(decoder, 5)
    slots, ids, keys = [4, 0, 2], decoder.layout.code_ids(codes), torch.zeros(3, dtype=torch.int64)
    for slot, one in zip(slots, text_ids, strict=True):
        step.admit(Request(text_ids=one, params=SamplingParams(), seed=0), [slot])
    logits = []
    for place in range(decoder.layout.num_codes):
        if place:
            step.ids[slots] = ids[:, place - 1 : place]
            step.positions[slots] += 1
        logits.append(step.forward(5, cache_length(decoder.layout.length) - 1, keys)[0][slots])
    assert (torch.stack(logits, dim=1) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
@torch.inference_mode()
def test_no_logit_sees_its_own_or_a_later_code(changes: dict[str, object]) -> None:
    decoder = lively_decoder(**changes)
    text_ids, codes = rows(decoder)
    _, before = decoder.teacher_forced(text_ids, codes)
    changed = codes.clone()
    changed[:, 2, 1] = (changed[:, 2, 1] + 1) % decoder.config.codebook_size
    _, after = decoder.teacher_forced(text_ids, changed)
    place = 2 * decoder.config.grid_width + 1
    assert torch.equal(before[:, : place + 1], after[:, : place + 1])
    assert not torch.equal(before[:, place + 1], after[:, place + 1])


@torch.inference_mode()
def test_common_padding_changes_nothing() -> None:
    decoder = lively_decoder()
    text_ids, codes = rows(decoder)
    text_ids[:, :5] = decoder.config.pad_id
    skipped = decoder.layout.num_common_padding(text_ids)
    assert skipped == 5
    _, short = decoder.teacher_forced(text_ids, codes)
    longer = torch.cat([text_ids, torch.full((1, 12), 7)])
    _, whole = decoder.teacher_forced(longer, torch.cat([codes, codes[:1]]))
    assert (short - whole[:3]).abs().max() < 1e-5


@torch.inference_mode()
def test_padding_is_attended_to_only_where_configured() -> None:
    for attend in (False, True):
        decoder = lively_decoder(attend_padding=attend, positions="none")
        text_ids, codes = rows(decoder, 1)
        text_ids[0, :4] = decoder.config.pad_id
        _, before = decoder.teacher_forced(text_ids, codes)
        decoder.embedding.weight[decoder.config.pad_id] += 1
        _, after = decoder.teacher_forced(text_ids, codes)
        assert torch.equal(before, after) is not attend


def test_masks_of_the_patterns() -> None:
    layout = dataclasses.replace(decoder_config().layout, text_length=2, grid_height=3, grid_width=3)
    center = 2 + 4  # row 1, column 1

    def seen(pattern: str, size: int = 2, shift: int = 0) -> set[int]:
        mask = attention_mask(layout, pattern, size, shift)  # type: ignore[arg-type]
        assert torch.equal(mask[: 2 - shift], torch.ones(2 - shift, layout.length).tril().bool())
        return set(mask[center].nonzero().flatten().tolist())

    assert seen("causal") == set(range(center + 1))
    assert seen("row") == {0, 1, 5, 6}
    assert seen("column") == {0, 1, 3, 6}
    assert seen("convolution") == {0, 1, 2, 3, 5, 6}
    assert seen("local") == {0, 1, 3, 4, 5, 6}
    assert seen("convolution_centered", 3) == set(range(center + 1))
    assert seen("convolution_centered", 1) == {0, 1, 6}
    center = 2 + 6  # row 2, column 0
    assert seen("convolution_centered", 3) == {0, 1, 5, 6, 8}
    assert seen("convolution_wrapped", 3) == set(range(center + 1))
    # with the last text position as the first code, row 2 and column 0 are at row 2 and column 1
    assert seen("column", shift=1) == {0, 2, 5, 8}
    assert seen("row", shift=1) == {0, 7, 8}


@torch.inference_mode()
def test_token_shift_takes_from_the_left_above_and_before() -> None:
    layout = dataclasses.replace(decoder_config().layout, text_length=2, grid_height=2, grid_width=2)
    x = torch.arange(1.0, 7.0)[:, None].expand(1, 6, 8)
    shifted = shift_tokens(x, x[..., :4], layout.shift_sources()[None])[0]
    assert shifted[:, 0].tolist() == [0, 1, 0, 0, 3, 4], "the first quarter: before in text, above on the grid"
    assert shifted[:, 2].tolist() == [0, 1, 0, 3, 0, 5], "the second quarter: before in text, left on the grid"
    assert shifted[:, 4:].eq(x[0, :, 4:]).all()


@torch.inference_mode()
def test_shared_layers_are_one() -> None:
    decoder = lively_decoder(**FAMILIES["token shift"])
    blocks = list(decoder.blocks)
    assert blocks[0].attention is blocks[2].attention and blocks[0].attention is not blocks[1].attention
    assert blocks[0].mlp is blocks[1].mlp and blocks[0].mlp is not blocks[2].mlp
    assert blocks[0].attention_norm is not blocks[2].attention_norm


def test_rows_of_other_projects() -> None:
    config = decoder_config(text_length=4, attend_padding=True, unique_padding=True, begin_ids=(5, 6))
    layout = config.layout
    row = layout.row(torch.tensor([[7, 0, 8, 0]]), torch.tensor([[3]]))
    assert row.tolist() == [[5, 6, 7, 296 + 1, 8, 296 + 3, 300 + 3]]
    assert (layout.first_code, layout.length, layout.num_text_ids) == (6, 22, 296)
    assert layout.empty_ids.tolist() == [0, 0, 0, 0]


@torch.inference_mode()
def test_rotary_logits_depend_on_relative_places_only() -> None:
    """Attention of rotated vectors is unchanged when both move by the same step, on either axis."""
    from dalle.transformer.attention import apply_rotary
    from dalle.transformer.positions import rotary_table

    coordinates = torch.tensor([[0, 0], [2, 1], [5, 3], [7, 4]])  # the last two are the first two, moved by (5, 3)
    table = rotary_table(coordinates, 8, 100.0)[None]
    q, k = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 4, 1, 8)
    q, k = apply_rotary(q, table), apply_rotary(k, table)
    scores = q[0, :, 0] @ k[0, :, 0].T
    assert (scores[0, 1] - scores[2, 3]).abs() < 1e-5
    assert (scores[0, 1] - scores[0, 2]).abs() > 1e-3


def test_tied_embeddings_have_no_head() -> None:
    names = [name for name, _ in Decoder(decoder_config(tie_embeddings=True)).named_parameters()]
    assert not any(name.startswith("head") for name in names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "num_heads 3 is not a multiple of num_kv_heads 2"),
        ({"head_dim": 6}, "head_dim 6 is not a multiple of 4"),
        ({"patterns": ()}, "at least one attention pattern"),
        ({"depth": 0}, "depth is 0; it must be at least 1"),
        ({"pad_id": 300}, "pad_id 300 is not in the text vocabulary"),
        ({"begin_ids": (300,), "attend_padding": True}, "begin id 300 is not in the text vocabulary"),
        ({"begin_ids": (1,)}, "begin_ids needs attend_padding"),
        ({"token_shift": True, "attend_padding": True, "width": 30}, "token_shift needs a width in fours, not 30"),
        ({"unique_padding": True, "attend_padding": True, "text_vocab_size": 12}, "unique_padding needs 12 ids"),
        ({"pattern_shift": 13}, "pattern_shift is 13; it must be in 0..12"),
        ({"text_head": False, "tie_embeddings": True}, "tie_embeddings makes a head for text too"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        decoder_config(**changes)


def test_config_round_trip() -> None:
    config = decoder_config(patterns=("row", "causal"), layer_scale=0.1)
    assert DecoderConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="no key 'witdh'"):
        DecoderConfig.from_dict(config.to_dict() | {"witdh": 3})
    with pytest.raises(ConfigError, match="norm is 'batch'"):
        DecoderConfig.from_dict(config.to_dict() | {"norm": "batch"})


@pytest.mark.parametrize("pack", [True, False])
@torch.inference_mode()
def test_linear_layers_for_inference_are_torch_linear_layers(pack: bool) -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(48, 80), torch.nn.Linear(80, 33, bias=False))
    twin = for_inference(layers, pack=pack)
    assert [type(layer) for layer in twin] == [InferenceLinear, InferenceLinear]
    for shape in ((1, 48), (2, 1, 48), (5, 7, 48)):
        x = torch.randn(shape)
        assert (twin(x) - layers(x)).abs().max() < 1e-5
    norm = torch.nn.Sequential(torch.nn.LayerNorm(4))
    assert for_inference(norm, pack=pack) is norm


@torch.inference_mode()
def test_a_twin_for_inference_shares_what_is_not_packed() -> None:
    decoder = lively_decoder()
    twin = decoder.for_inference(pack=True)
    assert twin.embedding.weight is decoder.embedding.weight and twin.final_norm.weight is decoder.final_norm.weight
    assert isinstance(decoder.blocks[0].mlp.input, torch.nn.Linear)  # type: ignore[union-attr]
    text_ids, codes = rows(decoder)
    for one, other in zip(decoder.teacher_forced(text_ids, codes), twin.teacher_forced(text_ids, codes), strict=True):
        assert (one - other).abs().max() < 1e-5
