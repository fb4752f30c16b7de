"""Augmentations of the losses in stage 1: a reconstruction and its target get the same random background and crop."""

import torch
from torch import Tensor

from dalle.images import composite
from training.distributed import WHOLE, Share

__all__ = ["over_backgrounds", "random_crops"]


def over_backgrounds(
    images: Tensor, targets: Tensor, generator: torch.Generator, share: Share = WHOLE
) -> tuple[Tensor, Tensor]:
    """Images and targets (B, C, H, W) as (B, 3, H, W): pictures with alpha are composited over a random colour each,
    the same for an image and its target. The pictures are this share of a batch.

    An edge is right only if it is right over any background, so the network learns edges of alpha. If the background
    were always white, it would learn edges with a white fringe.
    """
    backgrounds = share.of(torch.rand(share.whole(len(images)), 3, 1, 1, generator=generator)).to(images.device)
    return composite(images, backgrounds), composite(targets, backgrounds)


def random_crops(images: Tensor, targets: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Crop the same random square of `size` x `size` pixels from images and targets (B, 3, H, W), which makes a costly
    loss cheaper without bias. Pictures that are not larger than `size` stay whole."""
    height, width = images.shape[2:]
    if size >= min(height, width):
        return images, targets
    top = int(torch.randint(height - size + 1, (), generator=generator))
    left = int(torch.randint(width - size + 1, (), generator=generator))
    window = (..., slice(top, top + size), slice(left, left + size))
    return images[window], targets[window]
