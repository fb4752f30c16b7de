"""Readers of WebDataset shards with picture-caption pairs.

A shard is an uncompressed tar of `KEY.webp` and `KEY.json`. It is indexed once and then read with random access, so the
reader has no state to save, and pairs are read in any order.
"""

import dataclasses
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from braceexpand import UnbalancedBracesError, braceexpand
from torch import Tensor
from tqdm import tqdm

from dalle.errors import DataError, ImageError
from dalle.images import open_image, premultiplied, to_mode
from training.pairs.open_files import OpenFiles
from training.pairs.remote import fetch, is_url, matching_urls

__all__ = ["PairShards", "find_shards", "from_pixels"]

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
        except UnbalancedBracesError as error:
            raise DataError(f"{pattern} has a brace that is not closed") from error
        yield from (name if is_url(name) else Path(name) for name in names)


@dataclasses.dataclass(frozen=True)
class _Entry:
    shard: int
    picture: tuple[int, int]
    """Offset and length of the picture's bytes in the shard."""
    metadata: tuple[int, int]
    weight: float


class PairShards:
    """Picture-caption pairs by number, in the order of the shards.

    The files are opened at first use, so that the workers of a `DataLoader` can get the object.
    """

    def __init__(self, paths: Sequence[Path], *, progress: bool = False) -> None:
        self.paths = list(paths)
        self._files = OpenFiles(self.paths)
        self._entries: list[_Entry] = []
        for shard, path in enumerate(tqdm(self.paths, desc="index shards", disable=not progress, leave=False)):
            self._index(shard, path)
        if not self._entries:
            raise DataError(f"no picture-caption pairs in {', '.join(map(str, self.paths))}")

    def _index(self, shard: int, path: Path) -> None:
        parts: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in filter(tarfile.TarInfo.isfile, archive):
                    stem, suffix = os.path.splitext(member.name)
                    kind = "picture" if suffix.lower() in PICTURE_SUFFIXES else suffix
                    parts.setdefault(stem, {})[kind] = (member.offset_data, member.size)
                end = archive.offset
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{path} is not a readable tar shard: {error}") from error
        with open(path, "rb") as file:
            # tarfile mistakes a damaged header, or a truncation between two members, for the end of the archive
            if os.pread(file.fileno(), tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):
                raise DataError(f"{path} is damaged or truncated at byte {end}")
            for stem, found in parts.items():
                if "picture" not in found or ".json" not in found:
                    raise DataError(f"{path}: {stem} lacks its {'picture' if '.json' in found else '.json'}")
                try:
                    metadata = json.loads(os.pread(file.fileno(), found[".json"][1], found[".json"][0]))
                    captions = metadata["captions"]
                    if not isinstance(captions, list) or not captions or {*map(type, captions)} != {str}:
                        raise ValueError("no list of captions")
                    weight = float(metadata.get("weight", 1.0))
                except (KeyError, TypeError, ValueError) as error:
                    raise DataError(f"{path}: {stem}.json is not an object with captions: {error!r}") from error
                self._entries.append(_Entry(shard, found["picture"], found[".json"], weight))

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
        """Whether any of `num_samples` evenly spaced pictures has a pixel that is not opaque."""
        numbers = np.linspace(0, len(self) - 1, min(num_samples, len(self))).round().astype(int)
        return any(bool((self.picture(int(number), channels=4)[3] < 255).any()) for number in numbers)

    def pictures(self, numbers: Sequence[int] | np.ndarray | None = None, *, channels: int = 3) -> Tensor:
        """The pictures of these pairs, by default of all, as (B, channels, H, W) uint8. Raises `DataError` if they
        differ in size."""
        if numbers is None:
            with ThreadPoolExecutor() as pool, tqdm(total=len(self), desc="read pictures", leave=False) as bar:
                pictures = []
                for picture in pool.map(partial(self.picture, channels=channels), range(len(self))):
                    pictures.append(picture)
                    bar.update()
        else:
            pictures = [self.picture(int(number), channels=channels) for number in numbers]
        sizes = {tuple(picture.shape) for picture in pictures}
        if len(sizes) > 1:
            raise DataError(f"pictures of different sizes in one batch: {sorted(sizes)}")
        return torch.stack(pictures)

    def images(self, numbers: Sequence[int] | np.ndarray, *, channels: int = 3) -> Tensor:
        """The pictures of these pairs as (B, channels, H, W) float32 in [-1, 1], in the format of `dalle.images`.
        Raises `DataError` if they differ in size."""
        return from_pixels(self.pictures(numbers, channels=channels))


def from_pixels(pixels: Tensor) -> Tensor:
    """Converts pixels (B, C, H, W) uint8, RGB or straight RGBA, to float32 in [-1, 1], colours premultiplied by
    alpha."""
    return premultiplied(pixels) if pixels.shape[1] == 4 else pixels.float() / 127.5 - 1
