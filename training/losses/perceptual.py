"""LPIPS: the perceptual distance of two pictures, as a loss and as a measure. Its weights are fixed.

The distance follows Zhang et al. 2018 (arXiv 1801.03924): features of VGG16, normalised over channels, are compared
place by place; a linear head, fitted to human judgements, weighs the channels of each block. The heads are version 0.1
in the package `lpips` (BSD). Only its data file is read: its code needs torchvision and is never imported, so `pip
install --no-deps lpips` is enough. Two things differ from the original: the VGG16 is that of `training.losses.vgg`, and
its least discriminative block, block 5, is left out. So the distances cannot be compared with those in the literature.
"""

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.errors import DataError
from training.losses.vgg import VGG16Features

__all__ = ["LPIPS", "find_lpips_heads"]

NUM_BLOCKS = 4


def find_lpips_heads() -> Path:
    """The data file of the installed package `lpips`. Raises `DataError` if the package is not installed."""
    package = importlib.util.find_spec("lpips")
    if package is None or package.origin is None:
        raise DataError("the heads of LPIPS are not installed: pip install --no-deps lpips==0.1.4")
    return Path(package.origin).parent / "weights" / "v0.1" / "vgg.pth"


class LPIPS(nn.Module):
    """The LPIPS network. Raises `DataError` if the package with its heads, or that with VGG16, is not installed."""

    def __init__(self) -> None:
        super().__init__()
        self.vgg = VGG16Features(last_block=NUM_BLOCKS)
        stored: dict[str, Tensor] = torch.load(find_lpips_heads(), map_location="cpu", weights_only=True)
        heads = [stored[f"lin{block}.model.1.weight"] for block in range(NUM_BLOCKS)]
        self.heads = nn.ParameterList(nn.Parameter(head, requires_grad=False) for head in heads)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distances (B,), 0 or more, of images and targets (B, 3, H, W) in [-1, 1]; only the images get a gradient."""
        with torch.no_grad():
            wanted = [F.normalize(feature, dim=1) for feature in self.vgg(targets)]
        drawn = [F.normalize(feature, dim=1) for feature in self.vgg(images)]
        distances = [
            F.conv2d((a - b).square(), head).mean((1, 2, 3))
            for a, b, head in zip(drawn, wanted, self.heads, strict=True)
        ]
        return torch.stack(distances).sum(0)
