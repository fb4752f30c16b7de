"""Blocks of the VQGAN's convolutional networks, block for block those of taming-transformers."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.vq.vqgan_config import ImageTokenizerConfig

__all__ = ["AttentionBlock", "Downsample", "ResidualBlock", "Upsample", "make_middle", "make_norm"]


class ResidualBlock(nn.Module):
    def __init__(self, config: ImageTokenizerConfig, in_width: int, out_width: int) -> None:
        super().__init__()
        self.norm1 = make_norm(config, in_width)
        self.conv1 = nn.Conv2d(in_width, out_width, 3, padding=1)
        self.norm2 = make_norm(config, out_width)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1)
        self.shortcut = nn.Identity() if in_width == out_width else nn.Conv2d(in_width, out_width, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class AttentionBlock(nn.Module):
    """Self-attention with one head over all positions of the grid."""

    def __init__(self, config: ImageTokenizerConfig, width: int) -> None:
        super().__init__()
        self.norm = make_norm(config, width)
        self.query = nn.Conv2d(width, width, 1)
        self.key = nn.Conv2d(width, width, 1)
        self.value = nn.Conv2d(width, width, 1)
        self.output = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (rearrange(p(normed), "b c h w -> b 1 (h w) c") for p in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.output(rearrange(attended, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # padded on the right and at the bottom only, as in taming-transformers
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def make_norm(config: ImageTokenizerConfig, width: int) -> nn.GroupNorm:
    return nn.GroupNorm(config.norm_groups, width, eps=config.norm_epsilon)


def make_middle(config: ImageTokenizerConfig, width: int, *, attention: bool) -> nn.Sequential:
    attention_blocks = [AttentionBlock(config, width)] if attention else []
    return nn.Sequential(ResidualBlock(config, width, width), *attention_blocks, ResidualBlock(config, width, width))
