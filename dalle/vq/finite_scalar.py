"""Finite scalar quantization (FSQ, Mentzer et al. 2023, arXiv 2309.15505): a quantizer without a codebook to learn.

Each channel of a latent is bounded by tanh and rounded to one of a few levels; the codes are all combinations of the
levels, so that none can fall out of use for want of training. The arithmetic, and the numbers of the codes, are those
of the package `vector-quantize-pytorch`.
"""

import math

import torch
from torch import Tensor, nn

from dalle.vq.quantize import Quantized, VectorQuantizer

__all__ = ["FiniteScalarQuantizer"]

EPSILON = 1e-3
"""Latents are bounded to this share beyond the outermost levels, which tanh then reaches."""


class FiniteScalarQuantizer(VectorQuantizer):
    """Quantizer whose codebook vectors are the K points of a grid in [-1, 1]^D, and which has no weights.

    Channel i has `levels[i]` levels, at least 3 each, and changes faster with the code than channel i + 1; K is the
    product of all levels.
    """

    has_codebook = False

    def __init__(self, levels: tuple[int, ...]) -> None:
        nn.Module.__init__(self)  # without the codebook
        self.normalize = False
        self.levels = levels

    def vectors(self) -> Tensor:
        """The codebook vectors (K, D), on the CPU."""
        return self.decode(torch.arange(math.prod(self.levels)))

    def place(self, vectors: Tensor) -> Tensor:
        """(..., D) -> (..., D): latents bounded to the grid's range, before they are rounded to its points."""
        half, shift, offset, half_width = self._constants(vectors)
        return (torch.tanh(vectors + shift) * half - offset) / half_width

    def encode(self, latents: Tensor) -> Tensor:
        """(..., D) -> (...): code of the grid point that each latent is rounded to, int64."""
        return self._codes(self.place(latents.float()))

    def decode(self, codes: Tensor) -> Tensor:
        """(...) -> (..., D): the grid points of codes."""
        levels, steps = self._integers(codes)
        half_width = levels // 2
        return (codes[..., None] // steps % levels - half_width) / half_width

    def latents_of(self, codes: Tensor) -> Tensor:
        """(...) -> (..., D): latents that are rounded to the grid points of codes with nothing lost."""
        points = self.decode(codes)
        half, shift, offset, half_width = self._constants(points)
        return torch.atanh((points * half_width + offset) / half) - shift

    def forward(self, latents: Tensor) -> Quantized:
        """(..., D) -> `Quantized`, whose losses are 0: there is nothing to learn, and nothing to commit to."""
        places = self.place(latents)
        codes = self._codes(places.detach())
        nothing = places.new_zeros(())
        return Quantized(
            vectors=places + (self.decode(codes) - places).detach(),
            latents=places,
            codes=codes,
            commitment_loss=nothing,
            codebook_loss=nothing,
        )

    def _codes(self, places: Tensor) -> Tensor:
        levels, steps = self._integers(places)
        half_width = levels // 2
        return (((places * half_width).round().long() + half_width) * steps).sum(-1)

    def _integers(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Levels of each channel, and how far apart two codes are that differ by one level of it: (D,) int64 each."""
        steps = [math.prod(self.levels[:channel]) for channel in range(len(self.levels))]
        return torch.tensor(self.levels, device=like.device), torch.tensor(steps, device=like.device)

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Half the range that latents are bounded to, shift of latents, offset of the bounded ones, and half the number
        of levels: (D,) each. Shift and offset put a latent of 0 on a grid point where the number of levels is even."""
        levels = torch.tensor(self.levels, dtype=like.dtype, device=like.device)
        half = (levels - 1) * (1 + EPSILON) / 2
        offset = 0.5 * (levels % 2 == 0).to(like.dtype)
        return half, torch.atanh(offset / half), offset, levels // 2
