"""`ImageTokenizerConfig`: the architecture of a VQGAN as data, for `dalle.vq.vqgan`.

The defaults, sizes apart, are those of the shipped model and stay unchanged, since a model directory may leave fields
out.
"""

import dataclasses
import math
from typing import Literal

from dalle.config import Config, require, require_at_least, require_multiple

__all__ = ["ImageTokenizerConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig(Config):
    """Architecture of a VQGAN. Each level has half the resolution of the level before it."""

    image_size: int = 128
    """Nominal height and width in pixels; a multiple of `factor`."""
    channels: int = 3
    """3 for RGB; 4 for RGBA with colours premultiplied by alpha."""
    alpha_widths: tuple[int, ...] | None = None
    """Channels of each level of a network that finds alpha in the decoded picture, from the finest to the coarsest.
    Encoder and decoder then work on pictures over white, with 3 channels: codes are those of a tokenizer of RGB. None:
    no such network."""
    patch_size: int = 1
    """Side of the square of pixels that is folded into channels at the input and unfolded at the output. 1 is the plain
    VQGAN."""
    widths: tuple[int, ...] = (128, 128, 256, 256)
    """Channels of each level, from the finest to the coarsest."""
    base_width: int | None = None
    """Channels of the encoder's first convolution (`ch` in taming-transformers); None: as many as the finest
    level."""
    num_res_blocks: int = 2
    """Residual blocks in each level of the encoder."""
    decoder_widths: tuple[int, ...] | None = None
    """Channels of each level of the decoder, from the finest to the coarsest; None: the same as the encoder."""
    num_decoder_blocks: int | None = None
    """Residual blocks in each level of the decoder; None: one more than in the encoder."""
    attention_levels: tuple[int, ...] = ()
    """Levels that have attention after each residual block; 0 is the finest."""
    middle_attention: bool = True
    """Attention between the two residual blocks at the coarsest resolution."""
    encoder_middle_attention: bool = True
    """Apply `middle_attention` to the encoder too. Without it a code describes its patch and the surroundings
    rather than the whole picture, and the Transformer can predict it better."""
    norm_groups: int = 32
    """Number of groups of the group norms; divides every width."""
    norm_epsilon: float = 1e-6
    """Epsilon that every group norm adds to the variance."""
    resample_with_conv: bool = True
    """Resample with convolutions (`resamp_with_conv`); otherwise by 2 x 2 average pooling and nearest-neighbour
    doubling."""
    pixel_range: Literal["signed", "unit"] = "signed"
    """Range of pixels inside the network: [-1, 1], or [0, 1] as in DALL-E mini. `encode` and `decode` use [-1, 1] in
    either case."""
    wavelet_head: bool = False
    """Let the decoder predict Haar wavelet coefficients, which give a picture of twice the height and width
    (ruDALL-E)."""
    decode_only: bool = False
    """The tokenizer has no encoder, since its checkpoint has none (min-dalle)."""
    quantizer: Literal["nearest", "gumbel", "fsq"] = "nearest"
    """How a latent becomes a code: `nearest` takes the nearest codebook vector, `gumbel` the most likely code by a
    linear layer that was trained with Gumbel noise, `fsq` rounds each channel to one of its levels (finite scalar
    quantization), without a codebook that could collapse."""
    levels: tuple[int, ...] = ()
    """Levels of each channel of a latent, only for `fsq`: 3 or more each, codebook_dim of them, with codebook_size as
    their product. 8 5 5 5 are 1,000 codes; 8 8 8 6 5 are 15,360."""
    z_channels: int | None = None
    """Channels of the encoder's output and the decoder's input, where 1 x 1 convolutions (`quant_conv`,
    `post_quant_conv`) map them to `codebook_dim` and back; None: no such convolutions."""
    double_z: bool = False
    """Give the encoder's output twice `z_channels`, all of which the first 1 x 1 convolution takes (vqgan-jax; in
    latent diffusion they are means and variances)."""
    codebook_size: int = 4096
    """K: number of codes, each with a codebook vector."""
    codebook_dim: int = 16
    """D: channels of a codebook vector."""
    normalize_codes: bool = True
    """Compare and look up codebook vectors at unit length (ViT-VQGAN, LlamaGen)."""
    blank_code: int | None = None
    """Code of every patch whose pixels the encoder reads as all white or, with 4 channels, all transparent; None lets
    it choose. An encoder that sees beyond the patch gives such patches hundreds of codes that look alike and depend on
    their surroundings, which the Transformer cannot predict."""

    def __post_init__(self) -> None:
        require(len(self.widths) >= 1, "widths needs at least one level")
        require(self.channels in (3, 4), f"channels is {self.channels}; it must be 3 (RGB) or 4 (RGBA)")
        require(self.channels == 4 or self.alpha_widths is None, "alpha_widths needs RGBA: channels must be 4")
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
            f"normalize_codes compares codes with latents; the {self.quantizer} quantizer does not",
        )
        self._check_levels()
        for name, widths in (("decoder_widths", self.decoder_widths), ("alpha_widths", self.alpha_widths)):
            require(
                widths is None or len(widths) == len(self.widths),
                f"{name} has {len(widths or ())} levels; widths has {len(self.widths)}",
            )
        require(self.blocks_of_decoder >= 1, f"num_decoder_blocks is {self.num_decoder_blocks}; it must be at least 1")
        for width in (self.encoder_widths[0], *self.widths, *self.widths_of_decoder, *(self.alpha_widths or ())):
            require(
                width > 0 and width % self.norm_groups == 0,
                f"width {width} is not a multiple of norm_groups {self.norm_groups}",
            )
        for level in self.attention_levels:
            require(0 <= level < len(self.widths), f"attention level {level} is not in 0..{len(self.widths) - 1}")
        require_multiple(self, self.factor, "image_size")

    def _check_levels(self) -> None:
        levels, size, dim = self.levels, self.codebook_size, self.codebook_dim
        if self.quantizer != "fsq":
            return require(not levels, f"levels is {levels}; only the fsq quantizer has levels")
        require(len(levels) >= 1 and min(levels) >= 3, f"levels is {levels}; it must be numbers of at least 3")
        require(
            (math.prod(levels), len(levels)) == (size, dim),
            f"levels {levels} are {math.prod(levels)} codes of {len(levels)} channels; codebook_size is {size} and "
            f"codebook_dim {dim}",
        )

    @property
    def factor(self) -> int:
        """Pixels per code, along each side, of an image to encode."""
        return self.patch_size * 2 ** (len(self.widths) - 1)

    @property
    def picture_factor(self) -> int:
        """Pixels per code, along each side, of a decoded image: `factor`, or twice that with a wavelet head."""
        return 2 * self.factor if self.wavelet_head else self.factor

    @property
    def inner_channels(self) -> int:
        """Channels of the pictures that the encoder reads and the decoder draws: 3 if alpha has a network of its
        own, else `channels`."""
        return self.channels if self.alpha_widths is None else 3

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels of the encoder's first convolution, then of its levels from the finest to the coarsest."""
        return (self.widths[0] if self.base_width is None else self.base_width, *self.widths)

    @property
    def widths_of_decoder(self) -> tuple[int, ...]:
        """Channels of each level of the decoder, from the finest to the coarsest."""
        return self.widths if self.decoder_widths is None else self.decoder_widths

    @property
    def blocks_of_decoder(self) -> int:
        """Residual blocks in each level of the decoder."""
        return self.num_res_blocks + 1 if self.num_decoder_blocks is None else self.num_decoder_blocks

    @property
    def grid_size(self) -> int:
        """Codes along each side of the nominal image."""
        return self.image_size // self.factor
