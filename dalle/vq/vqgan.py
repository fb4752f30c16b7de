"""VQGAN, the convolutional image tokenizer: `encode(images) -> codes` and `decode(codes) -> images`.

Images are float32 (B, C, H, W) in [-1, 1], as in `dalle.images`: C is 3, or 4 for a model that draws transparency.
Codes are int64 (B, h, w) in [0, codebook_size), where h = H / factor and w = W / factor. The network is independent of
the nominal image size: it works on any picture whose sides are multiples of the factor.

The network is the VQGAN of Esser et al. 2021 (arXiv 2012.09841, taming-transformers), block for block, so that
checkpoints of taming-transformers, vqgan-jax, minDALL-E, LlamaGen, ruDALL-E and min-dalle fit. Two additions: a
`patch_size` above 1 folds pixels into channels before the first convolution and unfolds them after the last, which
makes the network fast on a CPU; and with `alpha_widths` another network finds alpha in the decoded picture
(`dalle.vq.matting`). `dalle.vq.kinds` lists the other kinds of image tokenizer.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from dalle.errors import ImageError
from dalle.vq.finite_scalar import FiniteScalarQuantizer
from dalle.vq.matting import Matting, clamped
from dalle.vq.quantize import GumbelQuantizer, Quantized, VectorQuantizer
from dalle.vq.vqgan_blocks import AttentionBlock, Downsample, ResidualBlock, Upsample, make_middle, make_norm
from dalle.vq.vqgan_config import ImageTokenizerConfig

__all__ = ["ImageTokenizer", "ImageTokenizerConfig", "check_codes", "check_images"]


BLANK = 0.98
"""Threshold for blank pixels in [-1, 1]: an RGB pixel is blank (white) if all its channels are above it, an RGBA pixel
(transparent) if all are below its negative."""


def _downsample(config: ImageTokenizerConfig, width: int) -> nn.Module:
    return Downsample(width) if config.resample_with_conv else nn.AvgPool2d(2)


def _upsample(config: ImageTokenizerConfig, width: int) -> nn.Module:
    return Upsample(width) if config.resample_with_conv else nn.Upsample(scale_factor=2.0, mode="nearest")


def _level(config: ImageTokenizerConfig, level: int, in_width: int, width: int, num_blocks: int) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    for i in range(num_blocks):
        blocks.append(ResidualBlock(config, in_width if i == 0 else width, width))
        if level in config.attention_levels:
            blocks.append(AttentionBlock(config, width))
    return blocks


class ImageEncoder(nn.Sequential):
    """(B, inner_channels, H, W) pixels -> (B, codebook_dim, h, w) latents."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        widths = config.widths
        in_widths = config.encoder_widths
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(config.patch_size),
            nn.Conv2d(config.inner_channels * config.patch_size**2, in_widths[0], 3, padding=1),
        ]
        for level, width in enumerate(widths):
            layers += _level(config, level, in_widths[level], width, config.num_res_blocks)
            if level < len(widths) - 1:
                layers.append(_downsample(config, width))
        attention = config.middle_attention and config.encoder_middle_attention
        layers += [make_middle(config, widths[-1], attention=attention), make_norm(config, widths[-1]), nn.SiLU()]
        z_channels = (config.z_channels or config.codebook_dim) * (2 if config.double_z else 1)
        layers.append(nn.Conv2d(widths[-1], z_channels, 3, padding=1))
        if config.z_channels is not None:
            layers.append(nn.Conv2d(z_channels, config.codebook_dim, 1))
        super().__init__(*layers)


class InverseHaar(nn.Module):
    """(B, 12, H, W) coefficients of a Haar wavelet transform -> (B, 3, 2 H, 2 W) pixels.

    The channels are the three colours' low bands, then each colour's details between rows, columns and diagonals.
    """

    def forward(self, x: Tensor) -> Tensor:
        low = x[:, :3]
        rows, columns, diagonals = rearrange(x[:, 3:], "b (c band) h w -> band b c h w", band=3)
        corners = torch.stack(
            [
                low + rows + columns + diagonals,
                low + rows - columns - diagonals,
                low - rows + columns - diagonals,
                low - rows - columns + diagonals,
            ]
        )
        return rearrange(corners / 2, "(p q) b c h w -> b c (h p) (w q)", p=2)


class ImageDecoder(nn.Sequential):
    """(B, codebook_dim, h, w) codebook vectors -> (B, inner_channels, H, W) pixels."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        widths = config.widths_of_decoder
        layers: list[nn.Module] = []
        if config.z_channels is not None:
            layers.append(nn.Conv2d(config.codebook_dim, config.z_channels, 1))
        layers += [
            nn.Conv2d(config.z_channels or config.codebook_dim, widths[-1], 3, padding=1),
            make_middle(config, widths[-1], attention=config.middle_attention),
        ]
        for level in reversed(range(len(widths))):
            in_width = widths[min(level + 1, len(widths) - 1)]
            layers += _level(config, level, in_width, widths[level], config.blocks_of_decoder)
            if level > 0:
                layers.append(_upsample(config, widths[level]))
        layers += [make_norm(config, widths[0]), nn.SiLU()]
        num_bands = 4 if config.wavelet_head else 1
        layers.append(nn.Conv2d(widths[0], config.inner_channels * num_bands * config.patch_size**2, 3, padding=1))
        layers.append(nn.PixelShuffle(config.patch_size))
        if config.wavelet_head:
            layers.append(InverseHaar())
        super().__init__(*layers)


def check_images(images: Tensor, factor: int, channels: int = 3) -> None:
    """Raise `ImageError` unless images have the shape (B, channels, H, W) with H and W multiples of the factor."""
    if images.ndim != 4 or images.shape[1] != channels or images.shape[2] % factor or images.shape[3] % factor:
        raise ImageError(
            f"images of shape {tuple(images.shape)}; expected (B, {channels}, H, W), H and W multiples of {factor}"
        )


def check_codes(codes: Tensor, codebook_size: int) -> None:
    """Raise `ImageError` unless codes have the shape (B, h, w) and values in [0, codebook_size)."""
    if codes.ndim != 3 or (codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < codebook_size):
        raise ImageError(f"codes of shape {tuple(codes.shape)}; expected (B, h, w) with values in [0, {codebook_size})")


class ImageTokenizer(nn.Module):
    """VQGAN: encoder, quantizer and decoder. `encode` and `decode` are the contract of `dalle.vq.kinds`; the other
    methods are for training."""

    encoder: ImageEncoder
    """The encoder; absent if the configuration is `decode_only`."""
    matting: Matting
    """The network that finds alpha in a decoded picture; absent if the configuration has no `alpha_widths`."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        if not config.decode_only:
            self.encoder = ImageEncoder(config)
        if config.quantizer == "gumbel":
            self.quantizer: VectorQuantizer = GumbelQuantizer(config.codebook_size, config.codebook_dim)
        elif config.quantizer == "fsq":
            self.quantizer = FiniteScalarQuantizer(config.levels)
        else:
            self.quantizer = VectorQuantizer(
                config.codebook_size, config.codebook_dim, normalize=config.normalize_codes
            )
        self.decoder = ImageDecoder(config)
        if config.alpha_widths is not None:
            self.matting = Matting(config, config.alpha_widths)

    def latents(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> latents before quantization (B, h, w, codebook_dim). With a `blank_code`, the
        latent of a blank patch is the vector of that code.

        Raises `ImageError` for another number of channels, for sides that are not multiples of the factor, and if
        there is no encoder.
        """
        if self.config.decode_only:
            raise ImageError("this image tokenizer only decodes: its checkpoint came without an encoder")
        check_images(images, self.config.factor, self.config.channels)
        read = self._read(images)
        pixels = read if self.config.pixel_range == "signed" else (read + 1) / 2
        latents = rearrange(self.encoder(pixels), "b d h w -> b h w d")
        if self.config.blank_code is None:
            return latents
        blank_code = torch.tensor(self.config.blank_code, device=latents.device)
        blank_latent = self.quantizer.latents_of(blank_code).detach()
        return torch.where(self.blank_patches(images)[..., None], blank_latent, latents)

    def pixels(self, vectors: Tensor) -> Tensor:
        """Codebook vectors (B, h, w, codebook_dim) -> pixels (B, C, H, W), nominally in [-1, 1], not clamped;
        differentiable."""
        pixels = self.decoder(rearrange(vectors, "b h w d -> b d h w"))
        if self.config.pixel_range == "unit":
            pixels = 2 * pixels - 1
        return pixels if self.config.alpha_widths is None else self.matting(pixels)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> codes (B, h, w). Raises `ImageError` as `latents` does."""
        return self.quantizer.encode(self.latents(images))

    def blank_patches(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, h, w) bool: whether every pixel of the patch is white or, if the encoder reads
        4 channels, transparent."""
        size = self.config.factor
        patches = rearrange(self._read(images), "b c (h p) (w q) -> b h w (c p q)", p=size, q=size)
        return ((patches < -BLANK) if self.config.inner_channels == 4 else (patches > BLANK)).all(-1)

    def _read(self, images: Tensor) -> Tensor:
        """The pictures that the encoder reads: (B, C, H, W) -> (B, inner_channels, H, W)."""
        if self.config.alpha_widths is None:
            return images
        return images[:, :3] + (1 - images[:, 3:])  # premultiplied colours over white, as `dalle.images.composite`

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """(B, h, w) codes in [0, codebook_size) -> (B, C, H, W) in [-1, 1], H and W `picture_factor` times h and w.
        Raises `ImageError` for other codes."""
        check_codes(codes, self.config.codebook_size)
        pixels = self.pixels(self.quantizer.decode(codes))
        return pixels.clamp(-1, 1) if self.config.alpha_widths is None else clamped(pixels)

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """(B, C, H, W) -> the reconstruction (B, C, H, W), not clamped, and the quantizer's output."""
        quantized = self.quantizer(self.latents(images))
        return self.pixels(quantized.vectors), quantized
