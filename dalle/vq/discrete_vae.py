"""The discrete VAE of DALLE-pytorch: a plain convolutional image tokenizer that lucidrains/DALLE-pytorch trains.

Images are float32 (B, 3, H, W) in [-1, 1]; codes are int64 (B, h, w), as in `dalle.vq.kinds`. The encoder is strided
4 x 4 convolutions and ends in a logit for each code; the decoder is transposed convolutions; both have residual blocks
at the coarsest resolution. The network is here to run such checkpoints; they are trained with DALLE-pytorch.
"""

import dataclasses

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.config import Config, require, require_at_least, require_multiple
from dalle.vq.vqgan import check_codes, check_images

__all__ = ["DiscreteVAE", "DiscreteVAEConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteVAEConfig(Config):
    """Shape of a discrete VAE. The defaults are DALLE-pytorch's."""

    image_size: int = 256
    """Nominal height and width in pixels; a multiple of `factor`."""
    num_layers: int = 3
    """Number of layers, each of which halves the resolution."""
    num_res_blocks: int = 0
    """Residual blocks of the encoder, and of the decoder, at the coarsest resolution."""
    width: int = 64
    """Channels of every layer (`hidden_dim` in DALLE-pytorch)."""
    codebook_size: int = 512
    codebook_dim: int = 512
    pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Mean of each colour in [0, 1]: inputs and outputs of the network are (pixel - mean) / std."""
    pixel_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Standard deviation of each colour, above 0."""

    def __post_init__(self) -> None:
        require(self.num_layers < self.image_size.bit_length(), f"num_layers is {self.num_layers}, which is too many")
        require_at_least(self, 1, "num_layers", "width", "codebook_dim")
        require(self.num_res_blocks >= 0, f"num_res_blocks is {self.num_res_blocks}; it must not be negative")
        require_at_least(self, 2, "codebook_size")
        require(len(self.pixel_mean) == len(self.pixel_std) == 3, "pixel_mean and pixel_std need three numbers each")
        require(all(std > 0 for std in self.pixel_std), f"pixel_std is {self.pixel_std}; it must be above 0")
        require_multiple(self, self.factor, "image_size")

    @property
    def factor(self) -> int:
        """Pixels per code, along each side."""
        return 2**self.num_layers

    picture_factor = factor
    """Pixels per code, along each side, of a decoded image: the same as `factor`."""
    channels = 3

    @property
    def grid_size(self) -> int:
        """Codes along each side of the nominal image."""
        return self.image_size // self.factor


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))


class DiscreteVAE(nn.Module):
    """Encoder, codebook and decoder, with the contract of `dalle.vq.kinds`."""

    def __init__(self, config: DiscreteVAEConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for layer in range(config.num_layers):
            up_width = width if layer or config.num_res_blocks else config.codebook_dim
            down += [nn.Conv2d(width if layer else 3, width, 4, stride=2, padding=1), nn.ReLU()]
            up += [nn.ConvTranspose2d(up_width, width, 4, stride=2, padding=1), nn.ReLU()]
        res = [[_ResidualBlock(width) for _ in range(config.num_res_blocks)] for _ in range(2)]
        enter = [nn.Conv2d(config.codebook_dim, width, 1)] if config.num_res_blocks else []
        self.encoder = nn.Sequential(*down, *res[0], nn.Conv2d(width, config.codebook_size, 1))
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, config.codebook_dim))
        self.decoder = nn.Sequential(*enter, *res[1], *up, nn.Conv2d(width, 3, 1))

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> logits of the codes (B, h, w, codebook_size).

        Raises `ImageError` for another number of channels, or sides that are not multiples of the factor.
        """
        check_images(images, self.config.factor)
        scale, shift = self._affine(images)
        return rearrange(self.encoder(images * scale + shift), "b k h w -> b h w k")

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> the most likely codes (B, h, w). Raises `ImageError` as `logits` does."""
        return self.logits(images).argmax(-1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """(B, h, w) codes -> (B, 3, H, W) in [-1, 1]. Raises `ImageError` for codes outside [0, codebook_size)."""
        check_codes(codes, self.config.codebook_size)
        pixels = self.decoder(rearrange(F.embedding(codes, self.codebook), "b h w d -> b d h w"))
        scale, shift = self._affine(pixels)
        return ((pixels - shift) / scale).clamp(-1, 1)

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift of each colour, (3, 1, 1) each, that map [-1, 1] to the network's range: x * scale +
        shift."""
        mean, std = (
            rearrange(like.new_tensor(numbers), "c -> c 1 1")
            for numbers in (self.config.pixel_mean, self.config.pixel_std)
        )
        return 0.5 / std, (0.5 - mean) / std
