"""The discrete VAE of DALL-E (Ramesh et al. 2021, arXiv 2102.12092; openai/DALL-E), OpenAI's image tokenizer.

Images are float32 (B, 3, H, W) in [-1, 1]; codes are int64 (B, h, w), as in `dalle.vq.kinds`. Encoder and decoder are
four groups of pre-activation residual blocks each, with max pooling between the groups of the encoder and
nearest-neighbour doubling between those of the decoder, so that a code stands for 8 x 8 pixels. The network is here to
run OpenAI's checkpoint and others of its architecture, not for training.
"""

import dataclasses

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.config import Config, require_at_least, require_multiple
from dalle.vq.vqgan import check_codes, check_images

__all__ = ["OpenAIDiscreteVAE", "OpenAIDiscreteVAEConfig"]

NUM_GROUPS = 4
LOGIT_LAPLACE_EPSILON = 0.1
"""Pixels in [0, 1] are mapped to [0.1, 0.9], where the logit that the decoder predicts is finite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenAIDiscreteVAEConfig(Config):
    """Shape of the network. The defaults are those of the published checkpoint."""

    image_size: int = 256
    """Nominal height and width in pixels; a multiple of `factor`."""
    encoder_width: int = 256
    """Channels of the encoder's first group (`n_hid` in openai/DALL-E); the groups have 1, 2, 4 and 8 times as many."""
    decoder_width: int = 256
    """Channels of the decoder's last group; the groups have 8, 4, 2 and 1 times as many."""
    codebook_dim: int = 128
    """Channels of a codebook vector, the decoder's input (`n_init` in openai/DALL-E)."""
    encoder_blocks_per_group: int = 2
    decoder_blocks_per_group: int = 2
    codebook_size: int = 8192

    def __post_init__(self) -> None:
        require_at_least(self, 1, "codebook_dim", "encoder_blocks_per_group", "decoder_blocks_per_group")
        require_multiple(self, 4, "encoder_width", "decoder_width")
        require_at_least(self, 2, "codebook_size")
        require_multiple(self, self.factor, "image_size")

    @property
    def factor(self) -> int:
        """Pixels per code, along each side."""
        return 2 ** (NUM_GROUPS - 1)

    picture_factor = factor
    """Pixels per code, along each side, of a decoded image: the same as `factor`."""
    channels = 3

    @property
    def grid_size(self) -> int:
        """Codes along each side of the nominal image."""
        return self.image_size // self.factor


class _Block(nn.Module):
    """Residual block: four convolutions, each after a ReLU, and a shortcut that changes at most the width."""

    def __init__(self, in_width: int, out_width: int, kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        inner = out_width // 4
        widths = (in_width, inner, inner, inner, out_width)
        self.gain = gain
        self.convs = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], kernel, padding=kernel // 2) for i, kernel in enumerate(kernels)
        )
        self.shortcut = nn.Identity() if in_width == out_width else nn.Conv2d(in_width, out_width, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x
        for conv in self.convs:
            hidden = conv(F.relu(hidden))
        return self.shortcut(x) + self.gain * hidden


def _groups(in_width: int, widths: list[int], kernels: tuple[int, ...], num_blocks: int) -> list[nn.Sequential]:
    gain = 1 / (len(widths) * num_blocks) ** 2
    starts = [in_width, *widths]
    return [
        nn.Sequential(*(_Block(starts[i] if j == 0 else width, width, kernels, gain) for j in range(num_blocks)))
        for i, width in enumerate(widths)
    ]


class OpenAIDiscreteVAE(nn.Module):
    """Encoder and decoder with the contract of `dalle.vq.kinds`; the decoder's first layer holds the codebook."""

    def __init__(self, config: OpenAIDiscreteVAEConfig) -> None:
        super().__init__()
        self.config = config
        down = [config.encoder_width * 2**i for i in range(NUM_GROUPS)]
        up = [config.decoder_width * 2**i for i in reversed(range(NUM_GROUPS))]
        encoder_groups = _groups(down[0], down, (3, 3, 3, 1), config.encoder_blocks_per_group)
        decoder_groups = _groups(config.codebook_dim, up, (1, 3, 3, 3), config.decoder_blocks_per_group)
        layers: list[nn.Module] = [nn.Conv2d(3, down[0], 7, padding=3)]
        for group in encoder_groups[:-1]:
            layers += [group, nn.MaxPool2d(2)]
        self.encoder = nn.Sequential(
            *layers, encoder_groups[-1], nn.ReLU(), nn.Conv2d(down[-1], config.codebook_size, 1)
        )
        layers = [nn.Conv2d(config.codebook_size, config.codebook_dim, 1)]
        for group in decoder_groups[:-1]:
            layers += [group, nn.Upsample(scale_factor=2.0, mode="nearest")]
        # six numbers for each pixel: the location of its three colours, then their scale, which decoding does not use
        self.decoder = nn.Sequential(*layers, decoder_groups[-1], nn.ReLU(), nn.Conv2d(up[-1], 6, 1))

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> logits of the codes (B, h, w, codebook_size).

        Raises `ImageError` for another number of channels, or sides that are not multiples of the factor.
        """
        check_images(images, self.config.factor)
        mapped = (1 - 2 * LOGIT_LAPLACE_EPSILON) * (images + 1) / 2 + LOGIT_LAPLACE_EPSILON
        return rearrange(self.encoder(mapped), "b k h w -> b h w k")

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> the most likely codes (B, h, w). Raises `ImageError` as `logits` does."""
        return self.logits(images).argmax(-1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """(B, h, w) codes -> (B, 3, H, W) in [-1, 1]. Raises `ImageError` for codes outside [0, codebook_size)."""
        check_codes(codes, self.config.codebook_size)
        first = self.decoder[0]
        assert isinstance(first, nn.Conv2d) and first.bias is not None
        # a 1 x 1 convolution of a one-hot vector is a lookup
        rows = F.embedding(codes, rearrange(first.weight, "d k 1 1 -> k d")) + first.bias
        numbers = self.decoder[1:](rearrange(rows, "b h w d -> b d h w"))
        pixels = (torch.sigmoid(numbers[:, :3]) - LOGIT_LAPLACE_EPSILON) / (1 - 2 * LOGIT_LAPLACE_EPSILON)
        return 2 * pixels.clamp(0, 1) - 1
