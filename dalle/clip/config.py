"""Sizes and variants of the two encoders of a CLIP model, and of the whole.

CLIP is Radford et al. 2021 (arXiv 2103.00020), its sigmoid loss Zhai et al. 2023 (SigLIP, 2303.15343), the Vision
Transformer Dosovitskiy et al. 2020 (2010.11929).
"""

import dataclasses
from typing import Literal

from dalle.config import Config, require, require_at_least, require_multiple
from dalle.transformer.masks import GridLayout
from dalle.transformer.plain_block import PlainBlock

__all__ = ["ClipConfig", "EncoderConfig", "TextConfig", "VisionConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(PlainBlock, Config):
    """Sizes and variants of the blocks of an encoder: a `BlockShape` of `dalle.transformer`."""

    width: int = 192
    """D: channels of the hidden states; a multiple of num_heads."""
    depth: int = 6
    """Number of blocks, each with attention and an MLP."""
    num_heads: int = 3
    """Number of attention heads."""
    mlp: Literal["gelu", "gelu_tanh", "gelu_sigmoid", "geglu", "swiglu"] = "gelu"
    """Kind of the MLP: GELU, exact or approximated (`gelu_tanh`; `gelu_sigmoid`, which is QuickGELU), or gated."""
    mlp_width: int = 768
    """Channels between the two layers of the MLP."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Kind of every norm: LayerNorm or RMSNorm."""
    norm_epsilon: float = 1e-5
    """Epsilon that every norm adds to the variance (RMSNorm: to the mean square)."""
    qk_norm: bool = False
    """Whether queries and keys are normalised by RMSNorm in each head."""
    qkv_bias: bool = True
    """Whether the projection to queries, keys and values has a bias."""
    output_bias: bool = True
    """Whether the attention's output projection has a bias."""
    mlp_bias: bool = True
    """Whether the MLP's layers have biases."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "width", "depth", "num_heads", "mlp_width")
        require_multiple(self, self.num_heads, "width")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(EncoderConfig):
    """Sizes and variants of a Vision Transformer."""

    image_size: int = 64
    """Height and width, in pixels, of the pictures; other sizes are resized before."""
    patch_size: int = 8
    """Height and width of a patch in pixels; a divisor of `image_size`."""
    patch_bias: bool = True
    """Whether the layer from patches to hidden states has a bias."""
    pooling: Literal["class_token", "mean"] = "class_token"
    """The vector of a picture: a learned token of its own in front of the patches, or the mean over all patches."""
    positions: Literal["learned", "sinusoidal"] = "learned"
    """Kind of the positions that are added to the patches."""
    input_norm: bool = False
    """Whether there is a norm before the first block too, as in CLIP."""
    pixel_mean: tuple[float, ...] = (0.5,)
    """Mean that is subtracted from pixels in [0, 1]: one number, or one each for red, green and blue."""
    pixel_std: tuple[float, ...] = (0.5,)
    """Standard deviation by which pixels are divided afterwards: one number, or one for each colour."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "patch_size")
        require_multiple(self, self.patch_size, "image_size")
        for name in ("pixel_mean", "pixel_std"):
            require(len(getattr(self, name)) in (1, 3), f"{name} has {len(getattr(self, name))} numbers, not 1 or 3")
        require(min(self.pixel_std) > 0, f"pixel_std is {self.pixel_std}; its numbers must be above 0")

    @property
    def layout(self) -> GridLayout:
        """The sequence of the class token, if there is one, and the patches."""
        side = self.image_size // self.patch_size
        return GridLayout(first_code=int(self.pooling == "class_token"), grid_height=side, grid_width=side)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(EncoderConfig):
    """Sizes and variants of a text encoder."""

    vocab_size: int
    """Number of ids of the text tokenizer. Training takes the value from the text tokenizer."""
    text_length: int
    """T: number of ids of a prompt. Training takes the value from the text tokenizer."""
    end_id: int
    """Text id at whose first place the vector of a prompt is read. Training takes it from the text tokenizer."""
    pad_id: int = 0
    """Text id of padding. Training takes the value from the text tokenizer."""
    causal: bool = False
    """Whether a token attends only to itself and those before it, as in CLIP."""
    attend_padding: bool = False
    """Whether padding is attended to like any other token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "vocab_size", "text_length")
        for name in ("end_id", "pad_id"):
            value = getattr(self, name)
            require(0 <= value < self.vocab_size, f"{name} {value} is not in the vocabulary of {self.vocab_size}")

    @property
    def layout(self) -> GridLayout:
        """The sequence of the text ids."""
        return GridLayout(first_code=self.text_length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig(Config):
    """Sizes and variants of a CLIP model."""

    vision: VisionConfig
    text: TextConfig
    embedding_width: int = 256
    """E: channels of the space that pictures and prompts share."""
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    """Loss of the training. With `sigmoid`, the sigmoid of a logit is the probability that a picture and a prompt
    belong together; with `softmax`, logits are compared only among the candidates for one picture or prompt."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "embedding_width")
