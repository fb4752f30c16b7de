"""The replay: attention weights are those that the modules used, and its logits give the drawn codes again."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dalle.decoder.decoder import Decoder
from dalle.decoder.engine import Engine
from dalle.decoder.replay import replay
from dalle.decoder.request import Request
from dalle.decoder.sampling import FilterParams, SamplingParams, guide, gumbel_noise, noise_keys, sample
from dalle.transformer.attention import Attention, attention_weights
from tests.dalle.test_decoder import VARIANTS
from tests.support.models import FAMILIES, lively_decoder

EVERY = VARIANTS | {"features": FAMILIES["features"]}


def row_of(decoder: Decoder) -> tuple[Tensor, Tensor, Tensor | None]:
    """Text ids (T,) with padding among them, codes (N,), and features if the decoder follows them."""
    config = decoder.config
    if config.feature_width is not None:
        text_ids = (torch.arange(config.text_length) >= 4).long()
        return text_ids, torch.randint(32, (16,)), torch.randn(12, config.feature_width) * text_ids[:, None]
    text_ids = torch.randint(2, config.layout.num_text_ids, (config.text_length,))
    text_ids[: min(3, config.text_length - 1)] = config.pad_id
    return text_ids, torch.randint(32, (16,)), None


@pytest.mark.parametrize("changes", EVERY.values(), ids=EVERY.keys())
@torch.inference_mode()
def test_weights_times_values_are_what_attention_adds_up(changes: dict[str, object]) -> None:
    decoder = lively_decoder(**changes)
    text_ids, codes, features = row_of(decoder)
    compared = 0

    def compare(attention: Any, arguments: tuple[Any, ...], output: Tensor) -> None:
        nonlocal compared
        x, mask, rotary, _ = arguments
        weights, (_, _, values) = attention_weights(attention, x, mask, rotary), attention.project(x, rotary)
        values = values.repeat_interleave(weights.shape[1] // values.shape[1], dim=1)
        added = attention.output((weights @ values).transpose(1, 2).flatten(2))
        assert (added - output).abs().max() < 1e-5
        compared += 1

    for attention in decoder.blocks.modules():
        if isinstance(attention, Attention):
            attention.register_forward_hook(compare)
    replay(decoder, text_ids, codes, features)
    assert compared == decoder.config.depth


@pytest.mark.parametrize("changes", EVERY.values(), ids=EVERY.keys())
@torch.inference_mode()
def test_weights_of_a_row(changes: dict[str, object]) -> None:
    """Plain sums: every row of weights is 1, none is on a later code, and none on padding that is not attended to. The
    decoder itself is untouched, and its logits are those of every other forward pass."""
    decoder = lively_decoder(**changes)
    config, layout = decoder.config, decoder.layout
    text_ids, codes, features = row_of(decoder)
    seen: list[Tensor] = []
    logits = replay(decoder, text_ids, codes, features, lambda layer, weights: seen.append(weights))
    assert len(seen) == config.depth
    for weights in seen:
        assert weights.shape == (config.num_heads, 16, layout.first_code + 15)
        assert (weights.sum(-1) - 1).abs().max() < 1e-5
        assert weights[..., layout.first_code :].triu(0).eq(0).all(), "code i is predicted from the codes before it"
        padding = layout.is_padding(layout.text_row(text_ids[None]))[0]
        if not config.attend_padding:
            assert padding.any() and weights[..., : layout.first_code][..., padding].eq(0).all()
    placed = None if features is None else features[None]
    assert (logits - decoder.teacher_forced(text_ids[None], codes[None], placed)[1][0]).abs().max() < 1e-5
    assert not any(one._forward_pre_hooks for one in decoder.modules())


@torch.inference_mode()
def test_weights_of_a_decoder_that_can_be_computed_by_hand() -> None:
    """Queries of zeros attend evenly to all that they may see."""
    decoder = lively_decoder(depth=1, qk_norm=False, patterns=("row",))
    decoder.get_parameter("blocks.0.attention.qkv.weight")[:32] = 0
    text_ids, codes, _ = row_of(decoder)
    seen: list[Tensor] = []
    replay(decoder, text_ids, codes, on_layer=lambda layer, weights: seen.append(weights))
    (weights,) = seen
    # code 6 is predicted at code 5, in the second of four grid rows: 9 text ids, and codes 4 and 5
    expected = torch.zeros(12 + 15)
    expected[3:12] = expected[12 + 4 : 12 + 6] = 1 / 11
    assert (weights[:, 6] - expected).abs().max() < 1e-6


@pytest.mark.parametrize("changes", EVERY.values(), ids=EVERY.keys())
@pytest.mark.parametrize("scale", [1.0, 3.0])
@torch.inference_mode()
def test_logits_of_the_replay_give_the_drawn_codes_again(changes: dict[str, object], scale: float) -> None:
    decoder = lively_decoder(**changes)
    params = SamplingParams(guidance_scale=scale, temperature=0.8, top_k=20)
    text_ids, _, features = row_of(decoder)
    null_ids = text_ids if features is not None else decoder.layout.empty_ids
    null_features = None if features is None else torch.zeros_like(features)
    request = Request(
        text_ids=text_ids,
        features=features,
        null_ids=null_ids,
        null_features=null_features,
        params=params,
        seed=5,
    )
    (codes,) = Engine(decoder, num_slots=2).run([request])
    logits = replay(decoder, text_ids, codes, features)
    if params.guided:
        logits = guide(logits, replay(decoder, null_ids, codes, null_features), torch.full((16,), scale))
    keys = noise_keys(torch.tensor(5), torch.tensor(0), torch.arange(16))
    filters = FilterParams.stack([params] * 16, logits.device)
    assert torch.equal(sample(logits, filters, gumbel_noise(keys, logits.shape[1])), codes)
