"""Pictures as the Vision Transformer reads them: three channels, one size.

Transparency is laid over a background, white unless training chooses another one. The network judges what people see,
and nobody sees transparency itself. So a model that draws alpha and one that does not are judged by the same network,
which has three channels as every published CLIP has.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dalle.images import to_tensor

__all__ = ["as_images", "resized"]


def resized(images: Tensor, size: int) -> Tensor:
    """The largest centred square of images (B, C, H, W) in [-1, 1], resized to (B, C, size, size) by a bicubic filter
    without aliasing."""
    side = min(images.shape[-2:])
    top, left = ((length - side) // 2 for length in images.shape[-2:])
    square = images[..., top : top + side, left : left + side]
    if side == size:
        return square
    return F.interpolate(square, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def as_images(pictures: Sequence[Image.Image], size: int) -> Tensor:
    """Pictures of any mode and size as images (B, 3, size, size) in [-1, 1], with transparency over white."""
    return torch.cat([resized(to_tensor(picture)[None], size) for picture in pictures])
