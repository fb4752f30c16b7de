"""`Matting`: finds alpha in pictures over white, so that a tokenizer of RGB draws transparent backgrounds."""

import torch
from torch import Tensor, nn

from dalle.vq.vqgan_blocks import Downsample, ResidualBlock, Upsample, make_middle, make_norm
from dalle.vq.vqgan_config import ImageTokenizerConfig

__all__ = ["Matting"]

NEARLY_WHITE = 0.1
"""How much darker than its alpha allows, in [-1, 1], a pixel over white may be: a decoder draws a white background not
quite white, and it would not be transparent otherwise."""


class Matting(nn.Module):
    """(B, 3, H, W) pictures over white -> (B, 4, H, W), RGBA, premultiplied, which over white are the same pictures.

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
        alpha = torch.maximum(self.alpha(hidden), -over_white.amin(1, keepdim=True) - NEARLY_WHITE)
        return torch.cat([over_white + alpha - 1, alpha], dim=1)
