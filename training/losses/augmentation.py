"""Augmentations of the losses in stage 1: a reconstruction and its target get the same random background and crop."""

import torch
from torch import Tensor

from dalle.images import composite

__all__ = ["over_backgrounds", "random_crops"]


def over_backgrounds(images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Both (B, C, H, W) as (B, 3, H, W): pictures with alpha over a random colour each, the same for image and target.

    An edge is right only if it is right over any background, so what is learned is an edge of alpha. Of a background
    that was always white, the edge would keep a white fringe.
    """
    backgrounds = torch.rand(len(images), 3, 1, 1, generator=generator).to(images.device)
    return composite(images, backgrounds), composite(targets, backgrounds)


def random_crops(images: Tensor, targets: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same random square of `size` pixels from both (B, 3, H, W): a cheaper, unbiased view for a costly loss."""
    height, width = images.shape[2:]
    if size >= min(height, width):
        return images, targets
    top = int(torch.randint(height - size + 1, (), generator=generator))
    left = int(torch.randint(width - size + 1, (), generator=generator))
    window = (..., slice(top, top + size), slice(left, left + size))
    return images[window], targets[window]
