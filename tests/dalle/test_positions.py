"""What a Transformer knows about order: nothing without mask and positions, something with a causal mask alone."""

import pytest
import torch
from torch import Tensor

from dalle.decoder.decoder import Decoder
from tests.support.models import lively_decoder

LENGTH = 12
ORDER = torch.tensor([4, 9, 0, 7, 2, 10, 5, 1, 8, 6, 3, 11])
"""A permutation that leaves the last token in its place."""


def outputs(decoder: Decoder, ids: Tensor, *, causal: bool) -> Tensor:
    """Hidden states (L, D) of ids (L,) at the first positions of the grid, with or without a causal mask."""
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    positions = decoder.layout.first_code + torch.arange(LENGTH)
    x = decoder.embed(ids[None], positions)
    return decoder.transform(x, positions[None], (mask.tril() if causal else mask)[None, None, None], None)[0]


def moved(positions: str, *, causal: bool, depth: int = 2) -> Tensor:
    """How far each token's output moves when the tokens are permuted: largest change of a channel, (L,)."""
    decoder = lively_decoder(positions=positions, depth=depth).double()
    ids = decoder.layout.num_text_ids + torch.randperm(decoder.config.codebook_size)[:LENGTH]
    before, after = (outputs(decoder, order, causal=causal) for order in (ids, ids[ORDER]))
    return (after - before[ORDER]).abs().amax(-1)


@torch.inference_mode()
def test_an_encoder_without_positions_sees_a_set() -> None:
    """Without a mask, permuted tokens give permuted outputs: each token's output is as it was, to rounding."""
    assert moved("none", causal=False).max() < 1e-12


@torch.inference_mode()
@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "axial", "rotary", "rotary_2d", "rotary_text_image"])
def test_an_encoder_with_positions_sees_an_order(positions: str) -> None:
    assert moved(positions, causal=False).min() > 1e-3


@torch.inference_mode()
def test_a_causal_mask_alone_breaks_the_symmetry() -> None:
    """Every output but that of the last token depends on a different set of tokens. The last token's set is the same:
    one layer cannot tell the order of what it attends to, and two can."""
    assert moved("none", causal=True).min() > 1e-3
    alone = moved("none", causal=True, depth=1)
    assert alone[:-1].min() > 1e-3 and alone[-1] < 1e-12
