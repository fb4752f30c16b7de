"""What else a patch could have been: the likeliest codes of each place, and how the picture would look with them."""

import dataclasses

import torch
from torch import Tensor

from dalle.decoder.request import Request
from dalle.decoder.sampling import FilterParams, filter_logits, gumbel_noise, noise_keys, sample
from dalle.model import Model

__all__ = ["NUM_ALTERNATIVES", "Alternatives", "alternatives_of", "pixels_of_alternatives"]

NUM_ALTERNATIVES = 5
APART = 4
"""Distance on the grid of the codes that are replaced in one decoding: their patches do not touch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alternatives:
    """The likeliest codes of each of the N places, after the picture's own guidance and filters."""

    codes: Tensor
    """(N, 5) int64, the likeliest first; fewer columns for a codebook of fewer codes."""
    probabilities: Tensor
    """The same shape; 0 for codes that the filters exclude. At temperature 0, which always draws the likeliest code,
    those at temperature 1."""
    drawn: Tensor
    """Probability of the code that is in the picture: (N,)."""
    agrees: Tensor
    """Whether these probabilities and the seed's noise draw the picture's code: (N,) bool."""


def alternatives_of(guided: Tensor, request: Request, codes: Tensor) -> Alternatives:
    """The alternatives of drawn codes (N,), from guided logits (N, codebook_size), both on the CPU."""
    num_codes = len(codes)
    filters = FilterParams.stack([request.params] * num_codes, guided.device)
    probabilities = filter_logits(guided, filters).softmax(-1)
    top = probabilities.topk(min(NUM_ALTERNATIVES, guided.shape[1]), dim=-1)
    keys = noise_keys(torch.tensor(request.seed), torch.tensor(request.index), torch.arange(num_codes))
    return Alternatives(
        codes=top.indices,
        probabilities=top.values,
        drawn=probabilities.gather(1, codes[:, None])[:, 0],
        agrees=sample(guided, filters, gumbel_noise(keys, guided.shape[1])) == codes,
    )


def pixels_of_alternatives(model: Model, codes: Tensor, alternatives: Alternatives) -> Tensor:
    """Pictures (5, C, H, W) in [-1, 1]: in the first, every patch is that of the likeliest code of its place, etc.

    A patch is cut from a decoding of the picture with that code in place of the drawn one. Codes that are at least four
    apart on the grid are replaced in one decoding, which takes a sixteenth of the time and changes the patches little.
    Where the filters exclude a code, the picture has the drawn one.
    """
    layout, factor, network = model.decoder.layout, model.image_tokenizer.config.picture_factor, model.image_tokenizer
    device = model.decoder.embedding.weight.device
    height, width = layout.grid_height, layout.grid_width
    grid = codes.view(height, width).to(device)
    phase = (torch.arange(height) % APART)[:, None] * APART + torch.arange(width) % APART
    others = alternatives.codes.T.reshape(-1, height, width).to(device)
    drawn = network.decode(grid[None])[0]
    pictures = []
    possible = (alternatives.probabilities.T > 0).reshape(-1, height, width).to(device)
    for other, is_possible in zip(others, possible, strict=True):
        picture = drawn.clone()
        for number in phase.unique().tolist():
            replaced = (phase.to(device) == number) & (other != grid) & is_possible
            if replaced.any():
                pixels = network.decode(torch.where(replaced, other, grid)[None])[0]
                picture = torch.where(_of_pixels(replaced, factor), pixels, picture)
        pictures.append(picture)
    return torch.stack(pictures)


def _of_pixels(mask: Tensor, factor: int) -> Tensor:
    return mask.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
