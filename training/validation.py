"""The validation of stage 1: what an image tokenizer loses between pictures and their codes, and how many it uses."""

from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor

from dalle.errors import DataError
from dalle.images import composite
from dalle.vq.quantize import codebook_statistics
from dalle.vq.vqgan import ImageTokenizer
from training.evaluation.measures import alpha_error, psnr, ssim
from training.losses.perceptual import LPIPS
from training.pairs.problems import Broken
from training.pairs.shards import PairShards

__all__ = ["validate_tokenizer"]

NUM_PICTURES = 256
NUM_PERCEPTUAL = 64
"""Pictures of which LPIPS is measured, which takes longer on a CPU than all the rest."""
NUM_SHOWN = 12
AT_ONCE = 32
SMALLEST = 16
"""Smallest side of pictures, in pixels, of which SSIM and LPIPS are measured."""


@lru_cache(maxsize=1)
def _lpips_on(device: torch.device) -> LPIPS | None:
    """LPIPS on a device; None if its weights are not installed."""
    try:
        return LPIPS().to(device)
    except DataError:
        return None


@torch.no_grad()
def validate_tokenizer(
    tokenizer: ImageTokenizer, pairs: PairShards, device: torch.device, broken: Broken | None = None
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Measure the first 256 pictures of a set. Returns scalars and a grid of pictures above their reconstructions. For
    `broken` see `PairShards.pictures`.

    Means over pictures, which lie over white: `psnr` in dB, `ssim` in [-1, 1], `perceptual` (LPIPS, of the first 64, if
    its weights are installed), and `alpha_error`, the mean absolute error of alpha in [0, 1]. Over all patches
    together: `usage`, the share of all codes that occur, and `perplexity`; `used_codes`, their number;
    `possible_codes`, how many could occur at most, as there are no more patches that are not blank; and `dead_codes`,
    the share of the possible ones that do not occur.
    """
    config = tokenizer.config
    sums: dict[str, list[Tensor]] = {}
    counts, num_free, shown = torch.zeros(config.codebook_size, dtype=torch.int64), 0, None
    numbers = range(min(NUM_PICTURES, len(pairs)))
    for start in range(0, len(numbers), AT_ONCE):
        some = numbers[start : start + AT_ONCE]
        images = pairs.images(some, channels=config.channels, broken=broken).to(device)
        codes = tokenizer.encode(images)
        drawn = tokenizer.decode(codes)
        counts += torch.bincount(codes.flatten(), minlength=config.codebook_size).cpu()
        num_free += codes.numel()
        if config.blank_code is not None:
            num_free -= int(tokenizer.blank_patches(images).sum())
        if config.channels == 4:
            sums.setdefault("alpha_error", []).append(alpha_error(drawn, images))
        images, drawn = composite(images), composite(drawn)
        for name, values in _measures(images, drawn, start).items():
            sums.setdefault(name, []).append(values)
        if shown is None:
            shown = rearrange([images[:NUM_SHOWN], drawn[:NUM_SHOWN]], "two b c h w -> c (two h) (b w)")
    assert shown is not None
    usage, perplexity = codebook_statistics(counts)
    used = int((counts > 0).sum())
    possible = max(used, min(config.codebook_size, num_free + (config.blank_code is not None)))
    means = {name: torch.cat(values).mean().item() for name, values in sums.items()}
    codebook = {"usage": usage, "perplexity": perplexity, "used_codes": used, "possible_codes": possible}
    return {**means, **codebook, "dead_codes": 1 - used / possible}, {"reconstructions": shown}


def _measures(images: Tensor, drawn: Tensor, start: int) -> dict[str, Tensor]:
    """Measures of each picture (b,) of a batch whose first picture has the number `start`."""
    measures = {"psnr": psnr(drawn, images)}
    if min(images.shape[2:]) >= SMALLEST:
        measures["ssim"] = ssim(drawn, images)
        lpips = _lpips_on(images.device) if start < NUM_PERCEPTUAL else None
        if lpips is not None:
            measures["perceptual"] = lpips(drawn, images)
    return measures
