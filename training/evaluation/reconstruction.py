"""Reconstruction: what an image tokenizer loses between pictures and their codes."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from dalle.images import composite
from dalle.vq.kinds import AnyImageTokenizer
from dalle.vq.quantize import codebook_statistics
from training.evaluation.features import batches
from training.evaluation.generation import Numbers
from training.evaluation.measures import alpha_error, psnr, ssim
from training.hardware import autocast
from training.losses.perceptual import LPIPS
from training.pairs.shards import PairShards

__all__ = ["Reconstructed", "reconstruct"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstructed:
    """Measurements of the reconstructions of M pictures."""

    psnr: Tensor
    """Peak signal-to-noise ratio of each picture in dB: (M,)."""
    ssim: Tensor
    """Structural similarity of each picture, in [-1, 1]: (M,)."""
    perceptual: Tensor
    """LPIPS distance of each picture: (M,)."""
    counts: Tensor
    """Number of times that each of the K codes occurred: (K,) int64."""
    alpha_error: Tensor | None
    """Mean absolute error of each picture's alpha, in [0, 1]: (M,). None if the pictures have no alpha channel."""

    @classmethod
    def cat(cls, parts: Sequence["Reconstructed"]) -> "Reconstructed":
        """Joins the pictures of all parts, and adds up their counts."""
        names = ("psnr", "ssim", "perceptual")
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        alpha = [part.alpha_error for part in parts if part.alpha_error is not None]
        counts = torch.stack([part.counts for part in parts]).sum(0)
        return cls(**joined, counts=counts, alpha_error=torch.cat(alpha) if alpha else None)

    def numbers(self) -> Numbers:
        """Means over pictures, and usage and perplexity of the codebook over all pictures together."""
        usage, perplexity = codebook_statistics(self.counts)
        means = {name: getattr(self, name).mean().item() for name in ("psnr", "ssim", "perceptual")}
        error = None if self.alpha_error is None else self.alpha_error.mean().item()
        return {
            "pictures": len(self.psnr),
            **means,
            "alpha_error": error,
            "usage": usage,
            "perplexity": perplexity,
        }


@torch.no_grad()
def reconstruct(
    pairs: PairShards, numbers: Sequence[int], tokenizer: AnyImageTokenizer, lpips: LPIPS, title: str
) -> Reconstructed:
    """Encode and decode the pictures with these numbers on the tokenizer's device, and measure the result.

    title: label of the progress bar.
    """
    device = next(tokenizer.parameters()).device
    parts = []
    for batch in batches(numbers, title):
        images = pairs.images(batch, channels=tokenizer.config.channels).to(device)
        codes = tokenizer.encode(images)
        decoded = tokenizer.decode(codes)
        error = alpha_error(decoded, images).cpu() if images.shape[1] == 4 else None
        images, decoded = composite(images), composite(decoded)
        with autocast(device, "auto"):
            distance = lpips(decoded, images).float()
        parts.append(
            Reconstructed(
                psnr=psnr(decoded, images).cpu(),
                ssim=ssim(decoded, images).cpu(),
                perceptual=distance.cpu(),
                counts=torch.bincount(codes.flatten(), minlength=tokenizer.config.codebook_size).cpu(),
                alpha_error=error,
            )
        )
    return Reconstructed.cat(parts)
