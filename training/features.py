"""What the evaluation sees in a picture: two vectors out of VGG16, and the gallery of those of all real pictures.

    content   (4096,)  block 3 averaged over a grid of 4 x 4: what is where
    style     (896,)   mean and standard deviation over the picture of each channel of blocks 1 to 3: what it is drawn
                       with (the moments of Huang and Belongie 2017, arXiv 1703.06868)

Both are stored in half precision: 20,868 pictures are 210 MB. A gallery is a function of its shards alone, costs
minutes on a CPU, and so is kept in a file named after them.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from dalle.errors import DataError
from training.loop import autocast
from training.shards import PairShards
from training.vgg import VGG16Features

__all__ = ["Features", "Gallery", "PictureFeatures", "concept_of", "load_gallery"]

BATCH_SIZE = 32
POOLED = 4
BLOCK_3_CHANNELS = 256
FORMAT = "1"
"""Part of a gallery file's name: a change of the features makes a new file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """Of M pictures, on the CPU."""

    content: Tensor
    """(M, 4096) float16."""
    style: Tensor
    """(M, 896) float16: means and deviations of block 1, of block 2, of block 3."""

    @classmethod
    def cat(cls, parts: Sequence["Features"]) -> "Features":
        """The pictures of all parts, in order."""
        return cls(content=torch.cat([p.content for p in parts]), style=torch.cat([p.style for p in parts]))

    def __getitem__(self, numbers: Tensor) -> "Features":
        return Features(content=self.content[numbers], style=self.style[numbers])

    def __len__(self) -> int:
        return len(self.content)

    def means(self) -> Tensor:
        """(M, 256) float32: block 3 averaged over the whole picture."""
        mean, _ = self.style[:, -2 * BLOCK_3_CHANNELS :].float().chunk(2, dim=1)
        return mean


class PictureFeatures:
    """Images to features, on a device, in bfloat16 where the hardware computes in it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.vgg = VGG16Features(last_block=3).to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """(B, 3, H, W) in [-1, 1], H and W at least 16 and multiples of 4."""
        with autocast(self.device, "auto"):
            blocks = self.vgg(images.to(self.device, memory_format=torch.channels_last))
        moments = []
        for block in blocks:
            block = block.float()
            mean, square = block.mean((2, 3)), block.square().mean((2, 3))  # torch.std_mean takes 5 times as long
            moments += [mean, (square - mean.square()).clamp_min(0).sqrt()]
        content = rearrange(F.adaptive_avg_pool2d(blocks[-1].float(), POOLED), "b c h w -> b (c h w)")
        return Features(content=content.half().cpu(), style=torch.cat(moments, dim=1).half().cpu())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gallery:
    """All real pictures, split by split."""

    features: Features
    concepts: np.ndarray
    """(M,) str."""
    styles: np.ndarray
    """(M,) str."""
    starts: Mapping[str, int]
    """Where each split begins."""

    def of_style(self, style: str) -> Tensor:
        """(m,) int64: the pictures of a style."""
        return torch.from_numpy(np.flatnonzero(self.styles == style))


def concept_of(metadata: Mapping[str, Any]) -> str:
    """What a picture shows, the same for all its styles and skin tones: code points without skin tone, else the
    English name, else (pictures that are no emoji) the first caption."""
    return metadata.get("base") or metadata.get("name_en") or metadata["captions"][0]


def load_gallery(splits: Mapping[str, PairShards], embed: PictureFeatures, folder: Path) -> Gallery:
    """Features of every picture of these splits, from `folder/gallery-DIGEST.safetensors` or computed and kept there.

    The digest is over the shards' names, sizes and times of change. Raises `DataError` for a file that is damaged.
    """
    path = folder / f"gallery-{_digest(splits)}.safetensors"
    num_pairs = sum(map(len, splits.values()))
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        features = _embed_all(splits, embed, num_pairs)
        temporary = path.with_suffix(".part")
        save_file({"content": features.content, "style": features.style}, temporary)
        temporary.replace(path)
    try:
        features = Features(**load_file(path))
    except (OSError, SafetensorError, TypeError) as error:
        raise DataError(f"{path} is no readable gallery; delete it, and it is made again: {error}") from error
    if len(features) != num_pairs:
        raise DataError(f"{path} has {len(features)} pictures, the shards have {num_pairs}; delete it to make it again")
    metadata = [pairs.metadata(number) for pairs in splits.values() for number in range(len(pairs))]
    lengths = [len(pairs) for pairs in splits.values()]
    return Gallery(
        features=features,
        concepts=np.array([concept_of(one) for one in metadata]),
        styles=np.array([one.get("style") or "" for one in metadata]),
        starts=dict(zip(splits, np.cumsum([0, *lengths[:-1]]).tolist(), strict=True)),
    )


def _embed_all(splits: Mapping[str, PairShards], embed: PictureFeatures, num_pairs: int) -> Features:
    parts = []
    with tqdm(total=num_pairs, desc="gallery", unit="picture") as bar:
        for pairs in splits.values():
            for start in range(0, len(pairs), BATCH_SIZE):
                parts.append(embed(pairs.images(range(start, min(start + BATCH_SIZE, len(pairs))))))
                bar.update(len(parts[-1]))
    return Features.cat(parts)


def _digest(splits: Mapping[str, PairShards]) -> str:
    paths = [path for pairs in splits.values() for path in pairs.paths]
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([FORMAT, facts]).encode()).hexdigest()[:12]
