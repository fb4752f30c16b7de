"""Pictures at a small size, kept in memory, for networks that look at them again and again."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dalle.clip.pictures import resized
from dalle.errors import DataError, ImageError
from dalle.images import composite, load_image, to_tensor
from training.pairs.problems import Broken
from training.pairs.shards import PairShards

__all__ = ["SmallPictures", "drawn_backgrounds"]

MAX_BYTES = 4 * 10**9
"""Bytes up to which pictures are kept in memory; more are read each time."""
WHITE_SHARE = 0.5
"""Share of transparent pictures that lie over white; the others lie over a random colour."""


class SmallPictures:
    """Pictures as squares of one size, with alpha or without."""

    def __init__(self, num: int, size: int, channels: int, read: Callable[[int], Tensor], *, keep: bool = True) -> None:
        """read: the picture of a number as an image (channels, H, W) of any size, in the format of `dalle.images`.
        keep: read all pictures now, and keep them in memory if there is room."""
        self.size = size
        self._read_one = read
        self._kept: Tensor | None = None
        if keep and num * channels * size**2 <= MAX_BYTES:
            self._kept = torch.empty(num, channels, size, size, dtype=torch.uint8)
            for number in tqdm(range(num), desc="read pictures", unit="picture", leave=False):
                self._kept[number] = ((self._read([number])[0] + 1) * 127.5).round().to(torch.uint8)

    @classmethod
    def of_pairs(cls, pairs: PairShards, size: int, broken: Broken | None = None, *, keep: bool = True) -> Self:
        """The pictures of shards. broken: as in `PairShards.pictures`; errors are raised as it does."""
        channels = 4 if pairs.has_transparency() else 3
        return cls(
            len(pairs),
            size,
            channels,
            lambda number: pairs.images([number], channels=channels, broken=broken)[0],
            keep=keep,
        )

    @classmethod
    def of_files(cls, paths: Sequence[Path], size: int) -> Self:
        """The pictures in files. Raises `DataError` for one that cannot be read."""

        def read(number: int) -> Tensor:
            try:
                return to_tensor(load_image(paths[number], mode="RGBA"), channels=4)
            except ImageError as error:
                raise DataError(str(error)) from error

        return cls(len(paths), size, 4, read)

    def __call__(self, numbers: Sequence[int] | np.ndarray) -> Tensor:
        """The pictures of these numbers as images (B, 3 or 4, size, size) float32 in [-1, 1], in the format of
        `dalle.images`."""
        if self._kept is None:
            return self._read(numbers)
        return self._kept[torch.as_tensor(np.asarray(numbers))].float() / 127.5 - 1

    def over_white(self, numbers: Sequence[int] | np.ndarray) -> Tensor:
        """The pictures of these numbers as images (B, 3, size, size) in [-1, 1], over a white background."""
        return composite(self(numbers))

    def _read(self, numbers: Sequence[int] | np.ndarray) -> Tensor:
        return torch.cat([resized(self._read_one(int(number))[None], self.size) for number in numbers])


def drawn_backgrounds(num: int, chance: np.random.Generator) -> Tensor:
    """A background of one colour for each of so many pictures, as `composite` takes it: (num, 3, 1, 1) in [0, 1]. Half
    of them are white, the others random."""
    colours = chance.random((num, 3)).astype(np.float32)
    colours[chance.random(num) < WHITE_SHARE] = 1.0
    return torch.from_numpy(colours)[:, :, None, None]
