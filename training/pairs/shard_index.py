"""The index of shards: where each pair is, in files that are mapped into memory and kept for the next start.

    places.bin    (M, 4) int64: offset and length of the picture, then of the JSON metadata, in its shard
    weights.bin   (M,) float64: how often each pair occurs in an epoch, on average
    index.json    the first pair of each shard, the broken pairs, and sizes and times of the shards

An index is built once, shard by shard, and kept in `indexes` in the folder that DALLE_CACHE names (default:
~/.cache/dalle), under a digest of the shards' paths. It is built again when the size or the time of a shard has
changed. All processes of a machine share the memory of the mapped files, and the system takes it back when it needs it.
"""

import dataclasses
import hashlib
import json
import os
import tarfile
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from dalle.errors import DataError
from dalle.files import atomic_folder, cache_folder
from training.pairs.waiting import waiting

__all__ = ["BrokenPair", "ShardIndex", "open_index"]

PICTURE_SUFFIXES = {".webp", ".png", ".jpg", ".jpeg"}
PLACES, WEIGHTS, INDEX = "places.bin", "weights.bin", "index.json"
FORMAT = 1
PLACE_SIZE = 4
"""Numbers of a place: offset and length of the picture, and of the metadata."""

Stamp = list[list[int]]
"""Size in bytes and time of the last change in nanoseconds of each shard."""


@dataclasses.dataclass(frozen=True)
class BrokenPair:
    """A pair that has no number, and why."""

    shard: int
    stem: str
    """The name that the members of the pair share."""
    problem: str


class ShardIndex:
    """An index in a folder, which `open_index` has built. A pickled index is opened again from its folder."""

    def __init__(self, folder: Path, stamp: Stamp) -> None:
        """Raises `OSError` or `ValueError` for a folder without an index of shards of this stamp."""
        self.folder = folder
        self.stamp = stamp
        values = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if values["format"] != FORMAT or values["stamp"] != stamp:
            raise ValueError(f"{folder} is the index of other shards")
        self.firsts = np.array(values["firsts"], np.int64)
        """The number of the first pair of each shard, and the number of all pairs: (S + 1,) int64."""
        self.broken = [BrokenPair(*one) for one in values["broken"]]
        """The broken pairs, in the order of the shards."""
        num_pairs = int(self.firsts[-1])
        self.places = _mapped(folder / PLACES, np.dtype(np.int64), (num_pairs, PLACE_SIZE))
        """Offset and length of picture and metadata of each pair in its shard: (M, 4) int64."""
        self.weights = _mapped(folder / WEIGHTS, np.dtype(np.float64), (num_pairs,))
        """How often each pair occurs in an epoch, on average: (M,) float64."""

    def __len__(self) -> int:
        return len(self.places)

    def __reduce__(self) -> Any:
        return ShardIndex, (self.folder, self.stamp)

    def shard_of(self, number: int) -> int:
        """The shard that a pair is in."""
        return int(np.searchsorted(self.firsts, number, "right")) - 1


def open_index(paths: Sequence[Path], *, progress: bool = False) -> ShardIndex:
    """The index of these shards: the one that is kept, or a new one. Processes that ask for the same one at once wait
    for the first of them to build it. progress: show a bar.

    Raises `DataError` for a shard that cannot be read, or is damaged or cut. Warns if an index cannot be kept.
    """
    stamp = [_stamp_of(path) for path in paths]
    names = "\n".join(str(path.resolve()) for path in paths)
    folder = cache_folder() / "indexes" / hashlib.sha256(os.fsencode(names)).hexdigest()[:32]
    if (kept := _kept(folder, stamp)) is not None:
        return kept
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with waiting(folder.with_suffix(".lock")):
            if (kept := _kept(folder, stamp)) is not None:
                return kept
            with atomic_folder(folder, check=lambda earlier: None) as unfinished:
                _build(unfinished, paths, stamp, progress)
            return ShardIndex(folder, stamp)
    except OSError as error:
        warnings.warn(f"the index of the shards cannot be kept in {folder.parent}: {error}", stacklevel=2)
    temporary = tempfile.TemporaryDirectory(prefix="dalle-index-")
    _build(Path(temporary.name), paths, stamp, progress)
    index = ShardIndex(Path(temporary.name), stamp)
    weakref.finalize(index, temporary.cleanup)
    return index


def _stamp_of(path: Path) -> list[int]:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path} is not a readable tar shard: {error}") from error
    return [found.st_size, found.st_mtime_ns]


def _kept(folder: Path, stamp: Stamp) -> ShardIndex | None:
    try:
        return ShardIndex(folder, stamp)
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or one of other shards, or a damaged one
        return None


def _mapped(path: Path, kind: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """The array in a file, read only. Raises `ValueError` if the file has another size."""
    if path.stat().st_size != kind.itemsize * int(np.prod(shape)):
        raise ValueError(f"{path} is damaged")
    if 0 in shape:
        return np.empty(shape, kind)
    return np.asarray(np.memmap(path, kind, "r", shape=shape))


def _build(folder: Path, paths: Sequence[Path], stamp: Stamp, progress: bool) -> None:
    """Write an index into a folder. Memory holds one shard's part of it at a time."""
    firsts, broken = [0], []
    with open(folder / PLACES, "wb") as places, open(folder / WEIGHTS, "wb") as weights:
        for shard, path in enumerate(tqdm(paths, desc="index shards", disable=not progress, leave=False)):
            found = []
            for one in _pairs_in(shard, path):
                if isinstance(one, BrokenPair):
                    broken.append(dataclasses.astuple(one))
                else:
                    found.append(one)
            places.write(np.array([place for place, _ in found], np.int64).tobytes())
            weights.write(np.array([weight for _, weight in found], np.float64).tobytes())
            firsts.append(firsts[-1] + len(found))
    values = {"format": FORMAT, "stamp": stamp, "firsts": firsts, "broken": broken}
    (folder / INDEX).write_text(json.dumps(values), encoding="utf-8")


def _pairs_in(shard: int, path: Path) -> Iterator[tuple[tuple[int, ...], float] | BrokenPair]:
    """Place and weight of each pair of a shard, in the order of their first members; or why it has none."""
    parts: dict[str, dict[str, tuple[int, int]]] = {}
    twice: set[str] = set()
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                vars(archive)["members"].clear()  # they would take a kilobyte each, and are not asked for again
                if not member.isfile():
                    continue
                stem, suffix = os.path.splitext(member.name)
                kind = "picture" if suffix.lower() in PICTURE_SUFFIXES else suffix
                found = parts.setdefault(stem, {})
                if kind in found and kind in ("picture", ".json"):
                    twice.add(stem)
                found[kind] = (member.offset_data, member.size)
            end = archive.offset
        # tarfile mistakes a damaged header, or a truncation between two members, for the end of the archive
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path} is not a readable tar shard: {error}") from error
    with file:
        if os.pread(file.fileno(), tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):
            raise DataError(f"{path} is damaged or truncated at byte {end}")
        for stem, found in parts.items():
            if stem in twice:
                yield BrokenPair(shard, stem, f"{stem} has two pictures or two .json of the same name")
            elif "picture" not in found or ".json" not in found:
                yield BrokenPair(shard, stem, f"{stem} lacks its {'picture' if '.json' in found else '.json'}")
            else:
                try:
                    yield (*found["picture"], *found[".json"]), _weight(file, *found[".json"])
                except (KeyError, TypeError, ValueError, RecursionError) as error:
                    yield BrokenPair(shard, stem, f"{stem}.json is not an object with captions: {error!r}")


def _weight(file: BinaryIO, offset: int, length: int) -> float:
    """The weight in the metadata at a place. Raises what reading JSON raises, and `ValueError` for metadata without
    captions."""
    metadata = json.loads(os.pread(file.fileno(), length, offset))
    captions = metadata["captions"]
    if not isinstance(captions, list) or not captions or {*map(type, captions)} != {str}:
        raise ValueError("no list of captions")
    if not all(caption.strip() for caption in captions):
        raise ValueError("a caption is empty")
    return float(metadata.get("weight", 1.0))
