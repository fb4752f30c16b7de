"""The shape and the habits of a VQGAN, as data: what `image_tokenizer` builds it from.

Every field but the sizes has a default that is what the shipped model has always been.
"""

import dataclasses
from typing import Literal

from dalle.config import Config, require, require_at_least, require_multiple

__all__ = ["ImageTokenizerConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig(Config):
    """Shape of an image tokenizer. A level halves the resolution of the one before it."""

    image_size: int = 128
    """Nominal height and width in pixels; a multiple of `factor`."""
    channels: int = 3
    """3 for RGB; 4 for RGBA, colours premultiplied by alpha."""
    patch_size: int = 1
    """Pixels folded into channels at either end, per side. 1 is the plain VQGAN."""
    widths: tuple[int, ...] = (128, 128, 256, 256)
    """Channels of each level, from the finest to the coarsest."""
    base_width: int | None = None
    """Channels of the encoder's first convolution (`ch` in taming-transformers); None: those of the finest level."""
    num_res_blocks: int = 2
    """Residual blocks for each level of the encoder."""
    decoder_widths: tuple[int, ...] | None = None
    """Channels of each level of the decoder, from the finest to the coarsest; None: those of the encoder."""
    num_decoder_blocks: int | None = None
    """Residual blocks for each level of the decoder; None: one more than in the encoder."""
    attention_levels: tuple[int, ...] = ()
    """Levels with attention after each residual block; 0 is the finest."""
    middle_attention: bool = True
    """Attention between the two residual blocks at the coarsest resolution."""
    encoder_middle_attention: bool = True
    """The same in the encoder. Without it a code says what is in and near its patch, not what is anywhere in the
    picture, and a decoder of rows can foretell it."""
    norm_groups: int = 32
    """Groups of the group norms; divides every width."""
    norm_epsilon: float = 1e-6
    resample_with_conv: bool = True
    """Convolutions where the resolution changes (`resamp_with_conv`); without, means of four and repeated pixels."""
    pixel_range: Literal["signed", "unit"] = "signed"
    """What the network itself takes and gives: pixels in [-1, 1], or in [0, 1] as in DALL-E mini. `encode` and `decode`
    have [-1, 1] either way."""
    wavelet_head: bool = False
    """The decoder ends in Haar wavelet coefficients, which make a picture twice as high and wide (ruDALL-E)."""
    decode_only: bool = False
    """There is no encoder: the checkpoint came without (min-dalle)."""
    quantizer: Literal["nearest", "gumbel"] = "nearest"
    """How a latent becomes a code: that of the nearest row, or the likeliest by a linear layer, which was trained with
    Gumbel noise."""
    z_channels: int | None = None
    """Channels between the encoder's last and the decoder's first convolution, if 1 x 1 convolutions (`quant_conv`,
    `post_quant_conv`) lead from them to `codebook_dim` and back; None: there are none."""
    double_z: bool = False
    """The encoder's last convolution has twice `z_channels`, and the first 1 x 1 convolution takes them all (vqgan-jax;
    in latent diffusion they are means and variances)."""
    codebook_size: int = 4096
    codebook_dim: int = 16
    normalize_codes: bool = True
    """Compare and look up codes at unit length (ViT-VQGAN, LlamaGen)."""
    blank_code: int | None = None
    """Code of every patch of white pixels, or with 4 channels of transparent ones; None leaves it to the encoder. One
    that sees beyond the patch hides in its code what lies around it: hundreds of codes that look alike, which no
    decoder of rows can foretell."""

    def __post_init__(self) -> None:
        require(len(self.widths) >= 1, "widths needs at least one level")
        require(self.channels in (3, 4), f"channels is {self.channels}; it must be 3 (RGB) or 4 (RGBA)")
        require(self.channels == 3 or not self.wavelet_head, "a wavelet_head draws RGB: channels must be 3")
        require_at_least(self, 1, "patch_size", "num_res_blocks")
        require_at_least(self, 2, "codebook_size")
        require_at_least(self, 1, "codebook_dim", "norm_groups")
        blank = self.blank_code
        require(
            blank is None or 0 <= blank < self.codebook_size,
            f"blank_code is {blank}; it must be in [0, {self.codebook_size})",
        )
        require(
            self.z_channels is None or self.z_channels >= 1, f"z_channels is {self.z_channels}; it must be at least 1"
        )
        require(not self.double_z or self.z_channels is not None, "double_z needs z_channels")
        require(
            self.quantizer == "nearest" or not self.normalize_codes,
            "normalize_codes compares codes with latents; the gumbel quantizer does not",
        )
        require(
            len(self.widths_of_decoder) == len(self.widths),
            f"decoder_widths has {len(self.widths_of_decoder)} levels; widths has {len(self.widths)}",
        )
        require(self.blocks_of_decoder >= 1, f"num_decoder_blocks is {self.num_decoder_blocks}; it must be at least 1")
        for width in (self.encoder_widths[0], *self.widths, *self.widths_of_decoder):
            require(
                width > 0 and width % self.norm_groups == 0,
                f"width {width} is no multiple of norm_groups {self.norm_groups}",
            )
        for level in self.attention_levels:
            require(0 <= level < len(self.widths), f"attention level {level} is not in 0..{len(self.widths) - 1}")
        require_multiple(self, self.factor, "image_size")

    @property
    def factor(self) -> int:
        """Pixels per code, on a side, of the images that are encoded."""
        return self.patch_size * 2 ** (len(self.widths) - 1)

    @property
    def picture_factor(self) -> int:
        """Pixels per code, on a side, of the images that are decoded: `factor`, but with a wavelet head twice that."""
        return 2 * self.factor if self.wavelet_head else self.factor

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels after the encoder's first convolution, then of its levels."""
        return (self.widths[0] if self.base_width is None else self.base_width, *self.widths)

    @property
    def widths_of_decoder(self) -> tuple[int, ...]:
        """Channels of each level of the decoder, from the finest to the coarsest."""
        return self.widths if self.decoder_widths is None else self.decoder_widths

    @property
    def blocks_of_decoder(self) -> int:
        """Residual blocks for each level of the decoder."""
        return self.num_res_blocks + 1 if self.num_decoder_blocks is None else self.num_decoder_blocks

    @property
    def grid_size(self) -> int:
        """Codes on a side of the nominal image."""
        return self.image_size // self.factor
