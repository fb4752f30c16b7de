"""`Matting`: finds alpha in pictures over white, so that a tokenizer of RGB draws transparent backgrounds."""

import torch
from torch import Tensor, nn

from dalle.vq.vqgan_blocks import Downsample, ResidualBlock, Upsample, make_middle, make_norm
from dalle.vq.vqgan_config import ImageTokenizerConfig

__all__ = ["Matting", "clamped"]

NEARLY_WHITE = 0.2
"""Distance from white, in [-1, 1], up to which a pixel over white may be more transparent than its colour allows: a
decoder draws a white background not quite white, and it would not be transparent otherwise."""


class Matting(nn.Module):
    """(B, 3, H, W) pictures over white -> (B, 4, H, W), RGBA, premultiplied: over white the same pictures, but for
    nearly white pixels. Neither is clamped.

    A U-Net (Ronneberger et al. 2015, arXiv 1505.04597) with a residual block on either side of each level. Its alpha is
    raised where a pixel is too dark to be so transparent.
    """

    def __init__(self, config: ImageTokenizerConfig, widths: tuple[int, ...]) -> None:
        super().__init__()
        folded = config.patch_size**2
        before, after = (widths[0], *widths[:-1]), (*widths[1:], widths[-1])
        self.enter = nn.Sequential(nn.PixelUnshuffle(config.patch_size), nn.Conv2d(3 * folded, widths[0], 3, padding=1))
        self.down = nn.ModuleList(ResidualBlock(config, *pair) for pair in zip(before, widths, strict=True))
        self.smaller = nn.ModuleList(Downsample(width) for width in widths[:-1])
        self.middle = make_middle(config, widths[-1], attention=config.middle_attention)
        self.up = nn.ModuleList(
            ResidualBlock(config, below + width, width) for below, width in zip(after, widths, strict=True)
        )
        self.larger = nn.ModuleList(Upsample(width) for width in widths[1:])
        self.alpha = nn.Sequential(
            make_norm(config, widths[0]),
            nn.SiLU(),
            nn.Conv2d(widths[0], folded, 3, padding=1),
            nn.PixelShuffle(config.patch_size),
        )

    def forward(self, over_white: Tensor) -> Tensor:
        hidden, kept = self.enter(over_white), []
        for level, block in enumerate(self.down):
            hidden = block(self.smaller[level - 1](hidden) if level else hidden)
            kept.append(hidden)
        hidden = self.middle(hidden)
        for level in reversed(range(len(kept))):
            hidden = self.up[level](torch.cat([hidden, kept[level]], dim=1))
            if level:
                hidden = self.larger[level - 1](hidden)
        return _joined(over_white, torch.maximum(self.alpha(hidden), _least_alpha(over_white)))


def clamped(images: Tensor) -> Tensor:
    """RGBA images (B, 4, H, W), premultiplied, with alpha and the picture over white clamped to [-1, 1]."""
    alpha = images[:, 3:]
    over_white = images[:, :3] + (1 - alpha)
    return _joined(over_white.clamp(-1, 1), alpha.clamp(-1, 1)).clamp(-1, 1)


def _joined(over_white: Tensor, alpha: Tensor) -> Tensor:
    """Pictures over white (B, 3, H, W) and their alpha (B, 1, H, W) -> RGBA (B, 4, H, W), premultiplied."""
    return torch.cat([over_white + alpha - 1, alpha], dim=1)


def _least_alpha(over_white: Tensor) -> Tensor:
    """The least alpha (B, 1, H, W) of pixels of these colours over white (B, 3, H, W): that at which their darkest
    channel is 0, and for nearly white ones less, down to none."""
    darkest = over_white.amin(1, keepdim=True)
    return torch.minimum(-darkest, 1 - NEARLY_WHITE - 2 * darkest)
