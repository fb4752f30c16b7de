"""All pictures of a set on a CUDA device, if there is room for them."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from training.pairs.problems import Broken
from training.pairs.shards import PairShards

__all__ = ["ROOM", "device_bytes", "fit_on", "pixels_on"]

ROOM = 0.25
"""Largest share of a device's memory that pictures may take. The rest is for the training."""


def device_bytes(device: torch.device) -> int:
    """The whole memory of a CUDA device, free or not, in bytes; 0 for any other device."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def fit_on(device: torch.device, num_pictures: int, channels: int, side: int) -> bool:
    """Whether so many pictures are kept on a device: a CUDA device with room for them. The answer does not depend on
    what is free at the moment, so that a resumed run gets the same one."""
    return num_pictures * channels * side**2 <= ROOM * device_bytes(device)


@lru_cache(maxsize=1)
def pixels_on(device: torch.device, shards: tuple[Path, ...], channels: int, broken: Broken) -> Tensor:
    """Every picture of the shards, on the device, as (M, C, H, W) uint8; cached for the next run in this process on the
    same shards. 20,000 pictures of 128 x 128 pixels with alpha are 1.3 GB."""
    pairs = PairShards(shards, max_broken=broken.max_share)
    return pairs.all_pictures(channels=channels, broken=broken, device=device)
