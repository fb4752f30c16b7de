"""Picture features of the evaluation: VGG16's block 3 averaged over a grid of 4 x 4, and a gallery of real pictures.

Features are (M, 4096) float16 on the CPU: 20,868 pictures are 170 MB. A gallery is a function of its shards alone and
takes minutes to compute on a CPU, so it is cached in a file whose name has the digest of the shards.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from dalle.errors import DataError
from training.hardware import autocast
from training.losses.vgg import VGG16Features
from training.pairs.shards import PairShards

__all__ = [
    "Gallery",
    "PictureFeatures",
    "batches",
    "concept_of",
    "evenly",
    "kept_features",
    "load_gallery",
    "mean_features",
    "shards_digest",
]

Item = TypeVar("Item")

BATCH_SIZE = 32
POOLED = 4
FORMAT = "2"
"""Version of the features; a part of the digest in the name of a gallery file."""


class PictureFeatures:
    """The network that computes features of images, on a device, in bfloat16 where the hardware computes in it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.vgg = VGG16Features(last_block=3).to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], H and W at least 16 and multiples of 4 -> features (B, 4096) float16."""
        with autocast(self.device, "auto"):
            block_3 = self.vgg(images.to(self.device, memory_format=torch.channels_last))[-1]
        pooled = F.adaptive_avg_pool2d(block_3.float(), POOLED)
        return rearrange(pooled, "b c h w -> b (c h w)").half().cpu()


def mean_features(features: Tensor) -> Tensor:
    """Features (M, 4096) -> (M, 256) float32: block 3 averaged over the whole picture."""
    return rearrange(features.float(), "m (c cells) -> m c cells", cells=POOLED**2).mean(2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gallery:
    """Features, concepts and styles of all M real pictures, split by split."""

    features: Tensor
    """Features of each picture: (M, 4096) float16."""
    concepts: np.ndarray
    """Concept of each picture, as `concept_of` gives it: (M,) str."""
    styles: np.ndarray
    """Style of each picture, empty if it has none: (M,) str."""
    starts: Mapping[str, int]
    """Number of the first picture of each split, by the name of the split."""


def concept_of(metadata: Mapping[str, Any]) -> str:
    """The concept that a picture shows, which is the same in all styles and skin tones: code points without skin tone,
    else the English name, else the first caption."""
    return metadata.get("base") or metadata.get("name_en") or metadata["captions"][0]


def load_gallery(splits: Mapping[str, PairShards], embed: PictureFeatures, folder: Path) -> Gallery:
    """Features of every picture of these splits, read from `folder/gallery-DIGEST.safetensors`, or computed and written
    to it if it does not exist.

    The digest is over names, sizes and modification times of the shards. Raises `DataError` for a damaged file.
    """
    num_pairs = sum(map(len, splits.values()))
    path = folder / f"gallery-{shards_digest(splits)}.safetensors"
    features = kept_features(path, num_pairs, lambda: _embed_all(splits, embed, num_pairs))
    metadata = [pairs.metadata(number) for pairs in splits.values() for number in range(len(pairs))]
    lengths = [len(pairs) for pairs in splits.values()]
    return Gallery(
        features=features,
        concepts=np.array([concept_of(one) for one in metadata]),
        styles=np.array([one.get("style") or "" for one in metadata]),
        starts=dict(zip(splits, np.cumsum([0, *lengths[:-1]]).tolist(), strict=True)),
    )


def kept_features(path: Path, num_pictures: int, compute: Callable[[], Tensor]) -> Tensor:
    """Features read from a file, or computed and written to it if it does not exist. Raises `DataError` for a file that
    is damaged or has another number of pictures."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        save_file({"features": compute()}, temporary)
        temporary.replace(path)
    try:
        features = load_file(path)["features"]
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(f"{path} has no readable features: {error}; delete it to compute them again") from error
    if len(features) != num_pictures:
        raise DataError(
            f"{path} has {len(features)} pictures, not {num_pictures}; delete it to compute the features again"
        )
    return features


def evenly(num_pairs: int, num: int) -> list[int]:
    """At most `num` different numbers in 0..num_pairs - 1, evenly spaced, including both ends."""
    return np.linspace(0, num_pairs - 1, min(num, num_pairs)).round().astype(int).tolist()


def batches(items: Sequence[Item], title: str) -> Iterator[Sequence[Item]]:
    """The items in batches of 32, with a progress bar."""
    starts = range(0, len(items), BATCH_SIZE)
    for start in tqdm(starts, desc=title, unit="batch", leave=False):
        yield items[start : start + BATCH_SIZE]


def _embed_all(splits: Mapping[str, PairShards], embed: PictureFeatures, num_pairs: int) -> Tensor:
    parts = []
    with tqdm(total=num_pairs, desc="gallery", unit="picture") as bar:
        for pairs in splits.values():
            for start in range(0, len(pairs), BATCH_SIZE):
                parts.append(embed(pairs.images(range(start, min(start + BATCH_SIZE, len(pairs))))))
                bar.update(len(parts[-1]))
    return torch.cat(parts)


def shards_digest(splits: Mapping[str, PairShards]) -> str:
    """Twelve hex digits of a SHA-256 over the shards' names, sizes and modification times and the feature version."""
    paths = [path for pairs in splits.values() for path in pairs.paths]
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([FORMAT, facts]).encode()).hexdigest()[:12]
