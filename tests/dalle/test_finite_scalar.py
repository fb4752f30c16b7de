"""Finite scalar quantization: the numbers of `vector-quantize-pytorch` 1.32.0, inverses, and gradients."""

import math

import pytest
import torch

from dalle.errors import ConfigError
from dalle.vq.finite_scalar import FiniteScalarQuantizer
from dalle.vq.vqgan_config import ImageTokenizerConfig

LEVELS = pytest.mark.parametrize("levels", [(3,), (3, 4), (8, 5, 5, 5), (8, 8, 8, 6, 5)])


def test_numbers_of_the_package() -> None:
    """Computed by `FSQ([8, 5, 5, 5])` of that package."""
    latents = torch.tensor(
        [[-2.0, -0.7, 0.1, 0.9], [0.3, 0.31, -0.4, 1.7], [0.05, -3.0, 3.0, -0.2], [1.2, 0.6, -0.6, 0.0]]
    )
    quantized = FiniteScalarQuantizer((8, 5, 5, 5))(latents)
    assert quantized.codes.tolist() == [688, 869, 564, 471]
    assert quantized.vectors.tolist() == [
        [-1.0, -0.5, 0.0, 0.5],
        [0.25, 0.5, -0.5, 1.0],
        [0.0, -1.0, 1.0, 0.0],
        [0.75, 0.5, -0.5, 0.0],
    ]
    assert quantized.commitment_loss == quantized.codebook_loss == 0


@LEVELS
def test_encode_inverts_decode_on_every_code(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    assert not quantizer.state_dict()
    codes = torch.arange(math.prod(levels))
    vectors = quantizer.decode(codes)
    assert torch.equal(vectors, quantizer.vectors()) and len(vectors.unique(dim=0)) == len(codes)
    assert vectors.min() == -1 and vectors.max() <= 1
    latents = quantizer.latents_of(codes)
    assert torch.equal(quantizer.encode(latents), codes)
    assert (quantizer.place(latents) - vectors).abs().max() < 1e-4
    assert torch.equal(quantizer.encode(torch.full((2, len(levels)), -99.0)), torch.zeros(2, dtype=torch.int64))
    assert (quantizer.encode(torch.full((len(levels),), 99.0)) == len(codes) - 1).all()


@LEVELS
def test_the_nearest_point_of_the_grid_is_taken_and_gradients_are_those_of_the_bounded_latents(
    levels: tuple[int, ...],
) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    latents = (2 * torch.randn(5, 7, len(levels))).requires_grad_()
    quantized = quantizer(latents)
    assert quantized.codes.shape == (5, 7) and torch.equal(quantized.codes, quantizer.encode(latents))
    assert torch.equal(quantizer.decode(quantized.codes), quantized.vectors)
    widths = torch.tensor(levels) // 2
    assert ((quantized.vectors - quantized.latents).abs() * widths <= 0.5 + 1e-5).all()
    through, bounded = (
        torch.autograd.grad(values.sum(), latents, retain_graph=True)[0]
        for values in (quantized.vectors, quantized.latents)
    )
    assert torch.equal(through, bounded) and through.abs().sum() > 0


@pytest.mark.parametrize(
    ("levels", "changes", "message"),
    [
        ((), {}, "levels is (); it must be numbers of at least 3"),
        ((8, 2), {}, "levels is (8, 2); it must be numbers of at least 3"),
        ((8, 5), {}, "levels (8, 5) are 40 codes of 2 channels; codebook_size is 1000 and codebook_dim 4"),
        ((8, 5, 5, 5), {"normalize_codes": True}, "normalize_codes compares codes with latents; the fsq quantizer"),
        ((8, 5, 5, 5), {"quantizer": "nearest"}, "levels is (8, 5, 5, 5); only the fsq quantizer has levels"),
    ],
)
def test_contradictions_are_refused(levels: tuple[int, ...], changes: dict[str, object], message: str) -> None:
    values = {"quantizer": "fsq", "codebook_size": 1000, "codebook_dim": 4, "normalize_codes": False}
    with pytest.raises(ConfigError) as caught:
        ImageTokenizerConfig.from_dict({**values, "levels": list(levels), **changes})
    assert str(caught.value).startswith(message)
