"""Views: augmentations of a picture that move, scale or mirror it, so that one picture gives several grids of codes.

A picture that is moved by a pixel looks the same and has other codes. A decoder that is trained on many views of a
small set of pictures learns what they show instead of memorising their codes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["can_be_mirrored", "draw_places", "draw_views", "moved"]

MAX_SHIFT = 4
"""Largest shift in each direction, in pixels of a picture of 128 x 128."""
SCALES = (0.92, 1.06)
"""Smallest and largest scale."""
GROUPS_WITH_WRITING = {"flags", "symbols"}
SIDED = re.compile(
    r"\b(left|right|leftwards|rightwards|east|west|clockwise|forward|rewind|undo|redo|waxing|waning|quarter|crescent"
    r"|clock|thirty|calendar|letters?|numbers?|abc|text|words?|alphabet(ical)?|language|font|math|input|question|help"
    r"|indicator|keycap|button|sign(?! of the horns)|(?<!kiss )mark|logo|joker|musical|arrows?|flag|map|globe"
    r"|currency|dollar|euro|yen|pound|banknote|tickets?|newspaper|receipt|chart|graph|trend(s|ing)?|hundred|\w*\d\w*)\b"
    r"|(?<![-'\u2019\w])[b-z](?![-'\u2019\w])",
    re.IGNORECASE,
)
"""Words in the names of pictures with writing, or with a left and a right that matter; and single letters, except the
article and those in words such as t-shirt and woman's."""


def can_be_mirrored(metadata: Mapping[str, Any]) -> bool:
    """Whether a pair's picture may be mirrored, judged by its group and its English name; no without an English
    name."""
    name = metadata.get("name_en")
    if not name or metadata.get("group") in GROUPS_WITH_WRITING:
        return False
    return SIDED.search(name) is None


def draw_views(images: Tensor, mirror: Sequence[bool], chance: np.random.Generator) -> Tensor:
    """A random view of each image, (B, C, H, W) in [-1, 1] -> the same shape: moved by up to 4 pixels of 128, scaled by
    0.92 to 1.06, and mirrored half of the time if its entry of `mirror` is true. Pixels from outside the image are
    blank: white, or transparent with 4 channels."""
    return moved(images, draw_places(mirror, chance))


def draw_places(mirror: Sequence[bool], chance: np.random.Generator) -> Tensor:
    """The affine map of a random view, for each entry of `mirror`: (B, 2, 3) float64, as `moved` reads them."""
    num = len(mirror)
    scale = chance.uniform(*SCALES, size=num)
    shift = chance.uniform(-MAX_SHIFT, MAX_SHIFT, size=(num, 2)) / 64
    sign = np.where(np.array(mirror) & (chance.random(num) < 0.5), -1.0, 1.0)
    theta = np.zeros((num, 2, 3))
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = sign / scale, 1 / scale, shift / scale[:, None]
    return torch.from_numpy(theta)


def moved(images: Tensor, places: Tensor) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] -> the same shape, moved by affine maps (B, 2, 3)."""
    grid = F.affine_grid(places.to(images), list(images.shape), align_corners=False)
    blank = -1.0 if images.shape[1] == 4 else 1.0
    found = F.grid_sample(images - blank, grid, mode="bicubic", padding_mode="zeros", align_corners=False) + blank
    return found.clamp(-1, 1)
