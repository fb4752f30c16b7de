"""Figures of docs/transformer.md: their numbers, and all of them at a small size."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.figures import attention, cost, drawing, masks, norms, positions, residuals, scale, translation, vision
from benchmarks.figures.__main__ import FIGURES
from benchmarks.figures.canvas import Drawing, save
from benchmarks.figures.observed import DrawnRow, observed, run_row
from dalle import DALLE
from dalle.decoder.decoder import Decoder
from dalle.decoder.row_layout import RowLayout
from dalle.translate.search import SearchConfig
from tests.support.models import decoder_config, lively_decoder
from tests.support.translators import translator_of

TINY = positions.Learning(pictures=2, steps=1, batch_size=2, width=32, depth=1)
SMALL: dict[str, Callable[[DALLE], Drawing]] = {
    "map": lambda model: attention.draw_map(model, others=()),
    "scale": lambda model: scale.draw_scale(model, head_dims=(4, 8)),
    "heads": attention.draw_heads,
    "masks": lambda _: masks.draw_masks(),
    "cost": lambda _: cost.draw_cost(lengths=(16, 32)),
    "positions": lambda model: positions.draw_positions(model, TINY),
    "norms": lambda model: norms.draw_norms(model, num_tokens=2, sizes=(1, 2)),
    "residuals": lambda _: residuals.draw_residuals(depths=(1, 2), width=16),
    "sentence": attention.draw_sentence,
    "translation": lambda _: translation.draw_translation(
        dataclasses.replace(translator_of(), search=SearchConfig(num_beams=1, max_ratio=1.0, max_extra=1)),
        "le grand renard",
    ),
    "vision": vision.draw_vision,
    "drawing": lambda model: drawing.draw_drawing(model, prompts=(attention.PROMPT,)),
}


@pytest.fixture(scope="module")
def emoji() -> DALLE:
    return DALLE.load()


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn(name: str, emoji: DALLE, tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    made = SMALL[name](emoji)
    save(made.figure, path)
    with Image.open(path) as image:
        assert image.width > 500 and len(image.convert("RGB").getcolors(2**24) or []) > 8
    assert made.numbers


def drawn_row(decoder: Decoder) -> DrawnRow:
    layout = decoder.layout
    text_ids = torch.cat([torch.full((layout.text_length - 5,), layout.pad_id), torch.arange(1, 6)])
    codes = torch.arange(layout.num_codes).view(layout.grid_height, layout.grid_width)
    return DrawnRow(prompt="", text_ids=text_ids, codes=codes, picture=Image.new("RGB", (1, 1)), words=("a",) * 5)


@pytest.mark.parametrize("num_kv_heads", [2, 1])
def test_observed_weights_are_those_of_the_model(num_kv_heads: int) -> None:
    """Values, weighted by them, are what the output projection of each layer gets."""
    decoder = lively_decoder(num_heads=2, num_kv_heads=num_kv_heads).eval()
    inputs: list[Tensor] = []
    for block in decoder.blocks:
        block.attention.output.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))  # type: ignore[union-attr]
    calls = run_row(decoder, drawn_row(decoder))
    assert len(calls) == len(inputs) == decoder.config.depth
    for call, given in zip(calls, inputs, strict=True):
        weights = call.weights()
        length = 5 + decoder.layout.num_codes - 1
        assert weights.shape == (1, 2, length, length)
        assert torch.equal(weights.triu(1), torch.zeros_like(weights)), "causal"
        assert weights.sum(-1) == pytest.approx(1.0, abs=1e-5)
        attended = weights @ call.projected[2].repeat_interleave(2 // num_kv_heads, dim=1)
        torch.testing.assert_close(attended.transpose(1, 2).flatten(2), given, atol=1e-5, rtol=1e-4)


def test_nothing_is_observed_outside() -> None:
    decoder = lively_decoder().eval()
    row = drawn_row(decoder)
    with observed(decoder) as calls:
        pass
    run_row(decoder, row)
    assert calls == []


def test_heads_write_to_their_own_channels_until_they_are_projected() -> None:
    decoder = lively_decoder().eval()
    calls = run_row(decoder, drawn_row(decoder))
    before, after = attention.head_shares(calls[0])
    num_heads = decoder.config.num_heads
    assert torch.equal(before, torch.eye(num_heads))
    assert after.sum(-1) == pytest.approx(1.0, abs=1e-5) and float(after.min()) > 0


def test_the_mirror_image_of_the_next_code_is_in_its_grid_row() -> None:
    decoder = lively_decoder().eval()
    row = drawn_row(decoder)
    length = row.num_text + row.codes.numel() - 1
    weights = torch.zeros(length, length)
    for query, key in ((1, 1), (2, 0), (5, 5), (6, 4), (9, 9), (10, 8), (13, 13), (14, 12)):  # of 4 x 4 codes
        weights[row.num_text + query, row.num_text + key] = 1.0
    assert attention.mirror_share(weights, row) == 1.0
    assert weights.sum() == 8, "each of them counts"


def test_the_gradient_of_the_softmax_is_that_of_autograd() -> None:
    divided, whole = scale.softness(64, num_tokens=8)
    assert divided.deviation == pytest.approx(whole.deviation / 8, rel=1e-4)
    assert 0 <= whole.entropy < divided.entropy <= 3.0
    decoder = lively_decoder(num_heads=2, num_kv_heads=2).eval()
    (call, *_) = run_row(decoder, drawn_row(decoder))
    call = dataclasses.replace(call, mask=None)
    found = scale.softness_of(call, 0.5)
    queries, keys, _ = call.projected
    scores = 0.5 * (queries @ keys.mT).double().flatten(0, 2)
    norms_of_rows = [
        float(torch.autograd.functional.jacobian(lambda s: s.softmax(-1), row.clone()).norm()) for row in scores
    ]
    assert found.gradient == pytest.approx(float(torch.tensor(norms_of_rows).median()), rel=1e-4)


def test_written_out_attention_holds_two_maps_and_the_kernel_none() -> None:
    one_map = 4 * cost.HEADS * 512**2
    assert 2 * one_map <= cost.measure_cost("written out", 512).peak < 2.2 * one_map
    assert cost.measure_cost("kernel", 512).peak < 0.3 * one_map
    q, k, v = torch.randn(3, 1, 2, 8, 4)
    everything = torch.ones(8, 8, dtype=torch.bool)
    results = [way(q, k, v, everything) for way in cost.WAYS.values()]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


@pytest.mark.parametrize("kind", norms.KINDS)
def test_only_batch_norm_depends_on_others(kind: str) -> None:
    states = torch.randn(4, 3, 32, generator=torch.Generator().manual_seed(0))
    change = norms.measure_company(kind, states, 3).change
    later = float(norms.influence(kind, states[0]).triu(1).max())
    if kind == "BatchNorm":
        assert change > 0.1 and later > 0.1
    else:
        assert change == later == 0


def test_gradients_vanish_without_residual_connections() -> None:
    with_them, without, _ = (residuals.measure_flow(6, kind, width=16, seeds=(0,)) for kind in residuals.KINDS)
    assert without.gradient < 1e-6 < 1e-3 < with_them.gradient
    assert with_them.similarity < without.similarity


def test_rotary_positions_know_distances_alone() -> None:
    line = positions.similarity(Decoder(decoder_config(positions="rotary")))
    torch.testing.assert_close(line[:-1, :-1], line[1:, 1:], atol=1e-5, rtol=1e-5)
    decoder = Decoder(decoder_config(positions="rotary_2d"))
    first, width = decoder.layout.first_code, decoder.layout.grid_width
    plane = positions.similarity(decoder)[first:, first:]
    assert plane.diagonal() == pytest.approx(1.0, abs=1e-5)
    assert float(plane[0, 1]) == pytest.approx(float(plane[0, width]), abs=1e-5), "right and below are as near"


def test_masks_of_a_grid_of_another_size_are_drawn() -> None:
    layout = RowLayout(text_length=2, grid_height=3, grid_width=3, text_vocab_size=8, pad_id=0)
    assert "causal 66, row 39" in masks.draw_masks(layout).numbers
