"""Readers of WebDataset shards with picture-caption pairs.

A shard is an uncompressed tar of `KEY.webp` and `KEY.json`. It is indexed once and then read with random access, so the
reader has no state to save, and pairs are read in any order.
"""

import contextlib
import dataclasses
import json
import os
import sys
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from braceexpand import braceexpand
from torch import Tensor
from tqdm import tqdm

from dalle.errors import DataError, ImageError
from dalle.images import open_image, premultiplied, to_mode
from training.pairs.open_files import OpenFiles
from training.pairs.problems import MAX_BROKEN, Broken, Problem, require_few
from training.pairs.remote import fetch, is_url, matching_urls

__all__ = ["PICTURE_SUFFIXES", "PairShards", "find_shards", "from_pixels"]

PICTURE_SUFFIXES = {".webp", ".png", ".jpg", ".jpeg"}


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


@dataclasses.dataclass(frozen=True)
class _Entry:
    shard: int
    picture: tuple[int, int]
    """Offset and length of the picture's bytes in the shard."""
    metadata: tuple[int, int]
    weight: float


class _BrokenPairError(Exception):
    """Why a pair of a shard has no number."""


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
        self._entries: list[_Entry] = []
        self.problems: list[Problem] = []
        """Pairs that are left out, in the order of the shards."""
        for shard, path in enumerate(tqdm(self.paths, desc="index shards", disable=not progress, leave=False)):
            self._index(shard, path)
        if self.problems:
            example, total = self.problems[0].problem, len(self) + len(self.problems)
            require_few(len(self.problems), total, max_broken, example)
            if progress:
                tqdm.write(f"{len(self.problems)} of {total} pairs are left out: {example}", file=sys.stderr)
        if not self._entries:
            raise DataError(f"no picture-caption pairs in {', '.join(map(str, self.paths))}")

    def _index(self, shard: int, path: Path) -> None:
        parts: dict[str, dict[str, tuple[int, int]]] = {}
        twice: set[str] = set()
        try:
            with tarfile.open(path, "r:") as archive:
                for member in filter(tarfile.TarInfo.isfile, archive):
                    stem, suffix = os.path.splitext(member.name)
                    kind = "picture" if suffix.lower() in PICTURE_SUFFIXES else suffix
                    found = parts.setdefault(stem, {})
                    if kind in found and kind in ("picture", ".json"):
                        twice.add(stem)
                    found[kind] = (member.offset_data, member.size)
                end = archive.offset
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{path} is not a readable tar shard: {error}") from error
        # tarfile mistakes a damaged header, or a truncation between two members, for the end of the archive
        with open(path, "rb") as file:
            if os.pread(file.fileno(), tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):
                raise DataError(f"{path} is damaged or truncated at byte {end}")
        for stem, found in parts.items():
            try:
                if stem in twice:
                    raise _BrokenPairError(f"{stem} has two pictures or two .json of the same name")
                self._entries.append(self._entry(shard, stem, found))
            except _BrokenPairError as error:
                self.problems.append(Problem(f"{path.name}: {stem}", f"{path}: {error}"))

    def _entry(self, shard: int, stem: str, found: dict[str, tuple[int, int]]) -> _Entry:
        if "picture" not in found or ".json" not in found:
            raise _BrokenPairError(f"{stem} lacks its {'picture' if '.json' in found else '.json'}")
        try:
            metadata = json.loads(self._files.read(shard, *found[".json"]))
            captions = metadata["captions"]
            if not isinstance(captions, list) or not captions or {*map(type, captions)} != {str}:
                raise ValueError("no list of captions")
            if not all(caption.strip() for caption in captions):
                raise ValueError("a caption is empty")
            weight = float(metadata.get("weight", 1.0))
        except (KeyError, TypeError, ValueError) as error:
            raise _BrokenPairError(f"{stem}.json is not an object with captions: {error!r}") from error
        return _Entry(shard, found["picture"], found[".json"], weight)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def weights(self) -> np.ndarray:
        """How often each pair occurs in an epoch, on average: (M,) float64."""
        return np.array([entry.weight for entry in self._entries])

    def metadata(self, number: int) -> dict[str, Any]:
        """The JSON metadata of a pair."""
        entry = self._entries[number]
        return json.loads(self._files.read(entry.shard, *entry.metadata))

    def picture(self, number: int, *, channels: int = 3) -> Tensor:
        """The picture of a pair as (channels, H, W) uint8: RGB over a white background, or straight RGBA. Raises
        `DataError` if it cannot be read."""
        entry = self._entries[number]
        try:
            with open_image(self._files.read(entry.shard, *entry.picture)) as image:
                pixels = np.array(to_mode(image, "RGB" if channels == 3 else "RGBA"))
        except ImageError as error:
            raise DataError(f"{self.paths[entry.shard]}: picture {number}: {error}") from error
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
        self,
        numbers: Sequence[int] | np.ndarray | None = None,
        *,
        channels: int = 3,
        broken: Broken | None = None,
    ) -> Tensor:
        """The pictures of these pairs, by default of all, as (B, channels, H, W) uint8.

        broken: takes the pictures that cannot be read, in whose place are those of the next pairs. None: the first one
            raises `DataError`.
        Raises `DataError` if the pictures differ in size, and if too many are broken.
        """
        read = partial(self._picture_or_next, channels=channels, broken=broken)
        if numbers is None:
            with ThreadPoolExecutor() as pool, tqdm(total=len(self), desc="read pictures", leave=False) as bar:
                pictures = []
                for picture in pool.map(read, range(len(self))):
                    pictures.append(picture)
                    bar.update()
        else:
            pictures = [read(int(number)) for number in numbers]
        return _stacked(pictures)

    def readable(self, numbers: Sequence[int], *, channels: int = 3, broken: Broken) -> tuple[list[int], Tensor | None]:
        """The pairs whose pictures can be read, and their pictures as `images` gives them, None if there are
        none. The others are added to `broken`. Raises `DataError` as `pictures` does."""
        kept, pictures = [], []
        for number in numbers:
            try:
                pictures.append(self.picture(number, channels=channels))
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
        return Problem(f"{self.paths[self._entries[number].shard].name}: picture {number}", str(error))

    def images(self, numbers: Sequence[int] | np.ndarray, *, channels: int = 3, broken: Broken | None = None) -> Tensor:
        """The pictures of these pairs as (B, channels, H, W) float32 in [-1, 1], in the format of `dalle.images`.
        Arguments and errors are those of `pictures`."""
        return from_pixels(self.pictures(numbers, channels=channels, broken=broken))


def _stacked(pictures: Sequence[Tensor]) -> Tensor:
    sizes = {tuple(picture.shape) for picture in pictures}
    if len(sizes) > 1:
        raise DataError(f"pictures of different sizes in one batch: {sorted(sizes)}")
    return torch.stack([*pictures])


def from_pixels(pixels: Tensor) -> Tensor:
    """Converts pixels (B, C, H, W) uint8, RGB or straight RGBA, to float32 in [-1, 1], colours premultiplied by
    alpha."""
    return premultiplied(pixels) if pixels.shape[1] == 4 else pixels.float() / 127.5 - 1
