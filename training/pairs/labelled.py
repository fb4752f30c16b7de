"""Labelled pictures: those of folders that are named for their labels, or of shards whose metadata have them."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dalle.clip.classifier import LabelSet
from dalle.errors import DataError
from training.pairs.imagefolder import settled, split_of
from training.pairs.problems import Broken
from training.pairs.shards import PairShards
from training.pairs.small_pictures import SmallPictures
from training.pairs.sources import PICTURE_SUFFIXES
from training.pairs.views import can_be_mirrored
from training.provenance import data_digest

__all__ = ["NO_LABEL", "Labelled", "read_folder", "read_shards"]

NO_LABEL = -1
"""The target of a picture that has no label of a set."""
HASH_STEPS = 2**32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """Labelled pictures of one split."""

    pictures: SmallPictures
    targets: Tensor
    """Number of the label of each picture in each set of labels, -1 if it has none there: (M, sets) int64."""
    weights: np.ndarray
    """How often each picture occurs in an epoch, on average: (M,) float64."""
    mirror: np.ndarray
    """Which pictures may be mirrored: (M,) bool."""


def read_shards(
    train: PairShards, val: PairShards, keys: Sequence[str], size: int, broken: Broken
) -> tuple[Labelled, Labelled, tuple[LabelSet, ...]]:
    """The pictures for training and validation, and the sets of labels, one for each key of the metadata. Labels that
    training lacks count as none. Raises `DataError` if a key gives fewer than two labels."""
    everything = [[pairs.metadata(number) for number in range(len(pairs))] for pairs in (train, val)]
    sets = tuple(_label_set(key, [one.get(key) for one in everything[0]]) for key in keys)
    made = [
        Labelled(
            pictures=SmallPictures.of_pairs(pairs, size, broken),
            targets=_targets(sets, [{one: metadata.get(one) for one in keys} for metadata in some]),
            weights=pairs.weights,
            mirror=np.array([can_be_mirrored(metadata) for metadata in some]),
        )
        for pairs, some in zip((train, val), everything, strict=True)
    ]
    return made[0], made[1], sets


def read_folder(folder: Path, val_fraction: float, size: int) -> tuple[Labelled, Labelled, tuple[LabelSet, ...], str]:
    """The pictures for training and validation, the one set of labels, and a digest of the training pictures. The label
    of a picture is the name of its folder; folders such as `train` and `val` above it are splits.

    Raises `DataError` for a picture that cannot be read, and for a folder without two labels in training or without
    pictures for validation.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file())
    inner = [path.relative_to(folder) for path in paths]
    splits = settled([split_of(path.parts[:-1]) for path in inner])
    chosen: Mapping[bool, list[Path]] = {False: [], True: []}
    for path, name, split in zip(paths, inner, splits, strict=True):
        is_val = _hashed(name) < val_fraction if split is None else split == "validation"
        if split != "test":
            chosen[is_val].append(path)
    if not chosen[False]:
        raise DataError(f"{folder} has no pictures for training; it needs them as FOLDER/LABEL/PICTURE")
    labels = sorted({path.parent.name for path in chosen[False]})
    if len(labels) < 2:
        raise DataError(
            f"all pictures for training in {folder} are in folders called {labels[0]!r}; a classifier needs at least 2 "
            "labels, as FOLDER/LABEL/PICTURE"
        )
    if not chosen[True]:
        raise DataError(
            f"none of the {len(chosen[False])} pictures in {folder} is for validation: give more of them, another "
            f"--val-fraction than {val_fraction:g}, or folders train and val above the labels"
        )
    sets = (_label_set("label", labels),)
    made = [
        Labelled(
            pictures=SmallPictures.of_files(some, size),
            targets=_targets(sets, [{"label": path.parent.name} for path in some]),
            weights=np.ones(len(some)),
            mirror=np.ones(len(some), dtype=bool),
        )
        for some in (chosen[False], chosen[True])
    ]
    return made[0], made[1], sets, data_digest(chosen[False])


def _label_set(name: str, values: Sequence[str | None]) -> LabelSet:
    labels = tuple(sorted({value for value in values if value}))
    if len(labels) < 2:
        raise DataError(f"{len(labels)} values of {name!r} are in the metadata; a classifier needs at least 2")
    return LabelSet(name=name, labels=labels)


def _targets(sets: Sequence[LabelSet], rows: Sequence[Mapping[str, str | None]]) -> Tensor:
    numbers = [{label: i for i, label in enumerate(one.labels)} for one in sets]
    return torch.tensor(
        [[known.get(row[one.name] or "", NO_LABEL) for one, known in zip(sets, numbers, strict=True)] for row in rows]
    )


def _hashed(path: Path) -> float:
    """A number in [0, 1) that depends on the path alone."""
    return int.from_bytes(hashlib.sha256(path.as_posix().encode()).digest()[:4]) / HASH_STEPS
