"""Reading picture-caption pairs from WebDataset shards, in an order that is a pure function of (seed, step).

A shard is an uncompressed tar of `KEY.webp` and `KEY.json`. It is indexed once and then read at random places, so that
a resumed run sees exactly the batches that an unbroken one would have seen, without any state of the reader.
"""

import dataclasses
import json
import math
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dalle.errors import DataError, ImageError
from dalle.images import open_image, premultiplied, to_mode

__all__ = ["PairShards", "WeightedEpochs", "find_shards", "from_pixels"]

PICTURE_SUFFIXES = {".webp", ".png", ".jpg", ".jpeg"}


def find_shards(patterns: Sequence[str | Path]) -> list[Path]:
    """The shards that these paths name: files as they are; patterns (wildcards in any part of a path) and folders
    expanded, sorted. Of a folder, its tar files, or else its token shards.

    Raises `DataError` for a name that matches nothing.
    """
    found: list[Path] = []
    for pattern in map(Path, patterns):
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


@dataclasses.dataclass(frozen=True)
class _Entry:
    shard: int
    picture: tuple[int, int]
    """Offset and length of the picture's bytes in the shard."""
    metadata: tuple[int, int]
    weight: float


class PairShards:
    """Picture-caption pairs by number, in the order of the shards.

    The files are opened at first use, so that the object can be sent to the workers of a `DataLoader`.
    """

    def __init__(self, paths: Sequence[Path], *, progress: bool = False) -> None:
        self.paths = list(paths)
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
            raise DataError(f"{path} is no readable tar shard: {error}") from error
        with open(path, "rb") as file:
            # tarfile takes a damaged header, and a file cut between two members, for the end
            if os.pread(file.fileno(), tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):
                raise DataError(f"{path} is damaged or cut off at byte {end}")
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
                    raise DataError(f"{path}: {stem}.json is no object with captions: {error!r}") from error
                self._entries.append(_Entry(shard, found["picture"], found[".json"], weight))

    def __len__(self) -> int:
        return len(self._entries)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_files"}

    @cached_property
    def _files(self) -> list[int]:
        return [os.open(path, os.O_RDONLY) for path in self.paths]

    def _read(self, shard: int, place: tuple[int, int]) -> bytes:
        return os.pread(self._files[shard], place[1], place[0])

    @property
    def weights(self) -> np.ndarray:
        """(len,) float64: how often each pair is drawn in an epoch, on average."""
        return np.array([entry.weight for entry in self._entries])

    def metadata(self, number: int) -> dict[str, Any]:
        """The JSON beside a picture."""
        entry = self._entries[number]
        return json.loads(self._read(entry.shard, entry.metadata))

    def picture(self, number: int, *, channels: int = 3) -> Tensor:
        """(channels, H, W) uint8: RGB, what is transparent over white; or straight RGBA. Raises `DataError` if it
        cannot be read."""
        entry = self._entries[number]
        try:
            with open_image(self._read(entry.shard, entry.picture)) as image:
                pixels = np.array(to_mode(image, "RGB" if channels == 3 else "RGBA"))
        except ImageError as error:
            raise DataError(f"{self.paths[entry.shard]}: picture {number}: {error}") from error
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def has_transparency(self, num_samples: int = 64) -> bool:
        """Whether any of some evenly spaced pictures has a pixel that is not opaque."""
        numbers = np.linspace(0, len(self) - 1, min(num_samples, len(self))).round().astype(int)
        return any(bool((self.picture(int(number), channels=4)[3] < 255).any()) for number in numbers)

    def pictures(self, numbers: Sequence[int] | np.ndarray | None = None, *, channels: int = 3) -> Tensor:
        """(B, channels, H, W) uint8, of all pictures if no numbers are given. Raises `DataError` if the pictures differ
        in size."""
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
        """(B, channels, H, W) float32 in [-1, 1], as `dalle.images` describes it. Raises `DataError` if the pictures
        differ in size."""
        return from_pixels(self.pictures(numbers, channels=channels))


def from_pixels(pixels: Tensor) -> Tensor:
    """uint8 (B, C, H, W), RGB or straight RGBA, as float32 of the same shape in [-1, 1], colours premultiplied."""
    return premultiplied(pixels) if pixels.shape[1] == 4 else pixels.float() / 127.5 - 1


class WeightedEpochs:
    """Which items are in the batch of a step: shuffled epochs in which item i occurs weight[i] times on average.

    The batch is a pure function of (seed, step). A weight of 1 is once in every epoch exactly; a weight of 0.3 is in
    three epochs of ten; 2.5 is two or three times.
    """

    def __init__(self, weights: np.ndarray, *, batch_size: int, seed: int) -> None:
        if not (weights >= 0).all() or not 0 < weights.sum() < math.inf:
            raise DataError("sampling weights must be non-negative, with a positive and finite sum")
        self.weights = weights
        self.batch_size = batch_size
        self.seed = seed
        self._ends: list[int] = []
        self._cached: tuple[int, np.ndarray] | None = None

    def _epoch(self, epoch: int) -> np.ndarray:
        if self._cached is None or self._cached[0] != epoch:
            random = np.random.default_rng([self.seed, epoch])
            times = np.floor(self.weights + random.random(len(self.weights))).astype(np.int64)
            order = np.repeat(np.arange(len(self.weights)), times)
            random.shuffle(order)
            self._cached = (epoch, order)
        return self._cached[1]

    def batch(self, step: int) -> np.ndarray:
        """(batch_size,) int64: the items of this step, counted from 0."""
        position, stop = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        epoch = 0
        while position < stop:
            while epoch >= len(self._ends):
                previous = self._ends[-1] if self._ends else 0
                self._ends.append(previous + len(self._epoch(len(self._ends))))
            start = self._ends[epoch - 1] if epoch else 0
            if position < self._ends[epoch]:
                part = self._epoch(epoch)[position - start : stop - start]
                parts.append(part)
                position += len(part)
            epoch += 1
        return np.concatenate(parts)
