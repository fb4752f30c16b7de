"""Readers of WebDataset shards with picture-caption pairs.

A shard is an uncompressed tar of `KEY.webp` and `KEY.json`. It is indexed once (see `training.pairs.shard_index`) and
then read with random access, so the reader has no state to save, and pairs are read in any order. Memory holds neither
pairs nor, except for the pages in use, their index.
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from braceexpand import braceexpand
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from dalle.errors import DataError, ImageError
from dalle.images import open_image, premultiplied, to_mode
from training.pairs.open_files import OpenFiles
from training.pairs.problems import MAX_BROKEN, Broken, Problem, require_few
from training.pairs.remote import fetch, is_url, matching_urls
from training.pairs.shard_index import open_index

__all__ = ["PairShards", "find_shards", "from_pixels"]

READ_AT_ONCE = 1024
"""Pictures that threads read before they are put together, where all are read."""


def find_shards(patterns: Sequence[str | Path]) -> list[Path]:
    """The shards that these paths name, those of each path sorted: a file is itself, a glob pattern (with wildcards in
    any part of the path) all its matches, a folder its tar files or, if it has none, its token shards. URLs are fetched
    (see `training.pairs.remote`). Braces stand for several paths or URLs: `train-{000..127}.tar`, `{a,b}.tar`.

    Raises `DataError` for a path that matches nothing, and for a URL that cannot be fetched.
    """
    found: list[Path] = []
    for pattern in _expanded(patterns):
        if isinstance(pattern, str):
            if not (urls := matching_urls(pattern)):
                raise DataError(f"no shards at {pattern}")
            found += fetch(urls)
            continue
        if pattern.is_dir():
            matches = sorted(pattern.glob("*.tar")) or sorted(pattern.glob("*.safetensors"))
        else:
            matches = [pattern] if pattern.exists() else sorted(map(Path, glob(str(pattern))))
        if not matches:
            picture_programs = "`python -m training.emoji` or `python -m training.folder` write some"
            token_program = "`python -m training.codes` writes some"
            raise DataError(
                f"no shards at {pattern}: {token_program if pattern.suffix == '.safetensors' else picture_programs}"
            )
        found += matches
    return found


def _expanded(patterns: Sequence[str | Path]) -> Iterator[Path | str]:
    """Paths and URLs, with braces written out where no file has the name."""
    for pattern in patterns:
        if not is_url(pattern) and Path(pattern).exists():
            yield Path(pattern)
            continue
        try:
            names = list(braceexpand(str(pattern)))
        except ValueError as error:
            raise DataError(f"{pattern} has a brace that is not closed") from error
        yield from (name if is_url(name) else Path(name) for name in names)


class PairShards:
    """Picture-caption pairs by number, in the order of the shards.

    Pairs that lack a part or a caption have no number; they are in `problems`. A tar that is damaged, or was cut, is
    refused as a whole. The files are opened at first use, so that the workers of a `DataLoader` can get the object.
    """

    def __init__(self, paths: Sequence[Path], *, progress: bool = False, max_broken: float = MAX_BROKEN) -> None:
        """progress: show a bar, and print how many pairs are left out. max_broken: largest share of them, in [0, 1).

        Raises `DataError` for a shard that cannot be read, if more pairs than `max_broken` are broken, and if there are
        none.
        """
        self.paths = list(paths)
        self._files = OpenFiles(self.paths)
        self._index = open_index(self.paths, progress=progress)
        self.problems = [
            Problem(f"{self.paths[one.shard].name}: {one.stem}", f"{self.paths[one.shard]}: {one.problem}")
            for one in self._index.broken
        ]
        """Pairs that are left out, in the order of the shards."""
        if self.problems:
            example, total = self.problems[0].problem, len(self) + len(self.problems)
            require_few(len(self.problems), total, max_broken, example)
            if progress:
                tqdm.write(f"{len(self.problems)} of {total} pairs are left out: {example}", file=sys.stderr)
        if not len(self):
            raise DataError(f"no picture-caption pairs in {', '.join(map(str, self.paths))}")

    def __len__(self) -> int:
        return len(self._index)

    @property
    def weights(self) -> np.ndarray:
        """How often each pair occurs in an epoch, on average: (M,) float64."""
        return self._index.weights

    def metadata(self, number: int) -> dict[str, Any]:
        """The JSON metadata of a pair."""
        _, _, offset, length = self._index.places[number].tolist()
        return json.loads(self._files.read(self._index.shard_of(number), offset, length))

    def picture(self, number: int, *, channels: int = 3, size: tuple[int, int] | None = None) -> Tensor:
        """The picture of a pair as (channels, H, W) uint8: RGB over a white background, or straight RGBA.

        size: (H, W), to which the largest centred rectangle of these proportions is resized; None: as it is.
        Raises `DataError` if it cannot be read.
        """
        shard = self._index.shard_of(number)
        offset, length, _, _ = self._index.places[number].tolist()
        try:
            with open_image(self._files.read(shard, offset, length)) as image:
                picture = to_mode(image, "RGB" if channels == 3 else "RGBA")
                if size is not None:
                    picture = ImageOps.fit(picture, size[::-1], Image.Resampling.LANCZOS)
                pixels = np.array(picture)
        except ImageError as error:
            raise DataError(f"{self.paths[shard]}: picture {number}: {error}") from error
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def has_transparency(self, num_samples: int = 64) -> bool:
        """Whether any of `num_samples` evenly spaced pictures has a pixel that is not opaque. Broken ones have none."""
        numbers = np.linspace(0, len(self) - 1, min(num_samples, len(self))).round().astype(int)
        for number in numbers.tolist():
            with contextlib.suppress(DataError):
                if (self.picture(number, channels=4)[3] < 255).any():
                    return True
        return False

    def pictures(
        self, numbers: Sequence[int] | np.ndarray, *, channels: int = 3, broken: Broken | None = None
    ) -> Tensor:
        """The pictures of these pairs as (B, channels, H, W) uint8.

        broken: takes the pictures that cannot be read, in whose place are those of the next pairs. None: the first one
            raises `DataError`.
        Raises `DataError` if the pictures differ in size, and if too many are broken.
        """
        return _stacked([self._picture_or_next(int(n), channels=channels, broken=broken) for n in numbers])

    def all_pictures(
        self, *, channels: int = 3, broken: Broken | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """All pictures as (M, channels, H, W) uint8 on a device. Other arguments and errors as for `pictures`."""
        read = partial(self._picture_or_next, channels=channels, broken=broken)
        pixels: Tensor | None = None
        with ThreadPoolExecutor() as pool, tqdm(total=len(self), desc="read pictures", leave=False) as bar:
            for start in range(0, len(self), READ_AT_ONCE):
                some = _stacked([*pool.map(read, range(start, min(start + READ_AT_ONCE, len(self))))])
                if pixels is None:
                    pixels = torch.empty(len(self), *some.shape[1:], dtype=torch.uint8, device=device)
                if some.shape[1:] != pixels.shape[1:]:
                    raise _of_different_sizes([some[0], pixels[0]])
                pixels[start : start + len(some)] = some.to(device)
                bar.update(len(some))
        assert pixels is not None
        return pixels

    def readable(
        self, numbers: Sequence[int], *, channels: int = 3, size: tuple[int, int] | None = None, broken: Broken
    ) -> tuple[list[int], Tensor | None]:
        """The pairs whose pictures can be read, and their pictures as `images` gives them, None if there are
        none, resized as by `picture`. The others are added to `broken`. Raises `DataError` as `pictures` does."""
        kept, pictures = [], []
        for number in numbers:
            try:
                pictures.append(self.picture(number, channels=channels, size=size))
                kept.append(number)
            except DataError as error:
                broken.add(self._problem(number, error))
        return kept, from_pixels(_stacked(pictures)) if pictures else None

    def _picture_or_next(self, number: int, *, channels: int, broken: Broken | None) -> Tensor:
        while True:
            try:
                return self.picture(number, channels=channels)
            except DataError as error:
                if broken is None:
                    raise
                broken.add(self._problem(number, error))  # ends the loop when all are broken
                number = (number + 1) % len(self)

    def _problem(self, number: int, error: DataError) -> Problem:
        return Problem(f"{self.paths[self._index.shard_of(number)].name}: picture {number}", str(error))

    def images(self, numbers: Sequence[int] | np.ndarray, *, channels: int = 3, broken: Broken | None = None) -> Tensor:
        """The pictures of these pairs as (B, channels, H, W) float32 in [-1, 1], in the format of `dalle.images`.
        Arguments and errors are those of `pictures`."""
        return from_pixels(self.pictures(numbers, channels=channels, broken=broken))


def _stacked(pictures: Sequence[Tensor]) -> Tensor:
    if len({picture.shape for picture in pictures}) > 1:
        raise _of_different_sizes(pictures)
    return torch.stack([*pictures])


def _of_different_sizes(pictures: Sequence[Tensor]) -> DataError:
    sizes = sorted({tuple(picture.shape) for picture in pictures})
    return DataError(f"pictures of different sizes in one batch: {sizes}")


def from_pixels(pixels: Tensor) -> Tensor:
    """Converts pixels (B, C, H, W) uint8, RGB or straight RGBA, to float32 in [-1, 1], colours premultiplied by
    alpha."""
    return premultiplied(pixels) if pixels.shape[1] == 4 else pixels.float() / 127.5 - 1
