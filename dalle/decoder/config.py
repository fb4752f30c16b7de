"""`DecoderConfig`: the sizes of a decoder, and its choices among the variants of the DALL-E family.

The defaults are the modern block (RMSNorm before each branch, SwiGLU, rotary positions in two dimensions, normalised
queries and keys); the options are what the family used: LayerNorm and GELU (GPT-2, minDALL-E), sandwich norm (CogView,
arXiv 2105.13290), layer scale (CaiT, 2103.17239), GEGLU and SwiGLU (Shazeer 2020, 2002.05202), learned, axial,
sinusoidal or rotary positions, token shift, and DALL-E's sparse attention.
"""

import dataclasses
from typing import Literal

from dalle.config import Config, require, require_at_least
from dalle.decoder.row_layout import RowLayout
from dalle.transformer.masks import Pattern

__all__ = ["DecoderConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(Config):
    """Sizes and variants of a decoder."""

    text_vocab_size: int
    """Number of ids of the text tokenizer. Training takes the value from the text tokenizer."""
    text_length: int
    """T: number of ids of a condition; 1 for a class label. Training takes the value from the text tokenizer."""
    codebook_size: int
    """Number of codes of the image tokenizer. Training takes the value from the image tokenizer."""
    grid_height: int
    """Number of grid rows (rows of codes) of a picture. Training takes the value from the token shards, whose codes the
    image tokenizer wrote."""
    grid_width: int
    """Number of codes in a grid row. Training takes the value from the token shards, as for `grid_height`."""
    begin_ids: tuple[int, ...] = ()
    """Text ids in front of the condition, in every row."""
    unique_padding: bool = False
    """Whether padding has a separate id at each text position: the last T ids of the text vocabulary."""
    feature_width: int | None = None
    """Channels of the features that the decoder is conditioned on; None if it is conditioned on text ids. With
    features, text ids only mark which of them count (1) and which are padding."""
    guidance: bool = True
    """Whether training dropped captions, so that classifier-free guidance has an unconditional branch."""
    pad_id: int = 0
    """Text id of padding. Training takes the value from the text tokenizer."""
    attend_padding: bool = False
    """Whether text padding is attended to like any other token, as in minDALL-E."""
    width: int = 384
    """D: channels of the hidden states."""
    depth: int = 8
    """Number of blocks, each with attention and an MLP."""
    num_heads: int = 6
    """Number of attention heads; a multiple of num_kv_heads."""
    num_kv_heads: int = 6
    """Number of heads of keys and values. Below num_heads, groups of query heads share them."""
    head_dim: int = 64
    """Channels of an attention head."""
    mlp: Literal["gelu", "gelu_tanh", "gelu_sigmoid", "geglu", "swiglu"] = "swiglu"
    """Kind of the MLP: GELU, exact or approximated (`gelu_tanh`, `gelu_sigmoid`), or gated (`geglu`, `swiglu`)."""
    mlp_width: int = 1024
    """Channels between the two layers of the MLP; in gated kinds, channels of the gate and of the value each."""
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    """Kind of every norm: LayerNorm or RMSNorm."""
    norm_epsilon: float = 1e-5
    """Epsilon that every norm adds to the variance (RMSNorm: to the mean square)."""
    qk_norm: bool = True
    """Whether queries and keys are normalised by RMSNorm in each head, before rotation."""
    sandwich_norm: bool = False
    """Whether each branch has a norm after it too, before it is added to the residual stream."""
    head_norm: bool = False
    """Whether the head has a norm of its own after the final one, as in ruDALL-E."""
    divide_max: bool = False
    """Whether hidden states are divided by their largest channel before the final norm: DALLE-pytorch's `stable`, after
    CogView."""
    layer_scale: float | None = None
    """Initial value of a learned factor for each channel of each branch; None for no factor."""
    positions: Literal[
        "learned", "axial", "sinusoidal", "rotary", "rotary_2d", "rotary_2d_image", "rotary_text_image", "none"
    ] = "rotary_2d"
    """Kind of positions. `rotary_2d_image` is `rotary_2d` with the queries and keys of text set to zero (LlamaGen);
    `rotary_text_image` has an axis for text beside the two axes of the grid (DALLE-pytorch)."""
    rotary_base: float = 100.0
    """Base of the frequencies of rotary positions (theta in RoFormer): pair i of n pairs rotates by base^(-i / n) per
    position."""
    rotary_values: bool = False
    """Whether values are rotated too, as in DALLE-pytorch."""
    rotary_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type that the angles of `rotary_text_image` are rounded to, as DALLE-pytorch does in half precision."""
    token_shift: bool = False
    """Whether half of the input channels of each branch come from the previous token and, on the grid, from the token
    above (RWKV; DALLE-pytorch)."""
    patterns: tuple[Pattern, ...] = ("causal",)
    """Attention mask of each layer, repeated over the depth."""
    pattern_shift: int = 0
    """Number of text positions at the end that the patterns treat as codes: 1 in ruDALL-E's second version, whose masks
    were computed without its first id."""
    convolution_size: int = 5
    """Height and width, in codes, of the window of the `convolution` patterns."""
    shared_attention: tuple[int, ...] = ()
    """Number of the attention module of each layer, repeated over the depth. Layers with equal numbers share the module
    (Universal Transformer, ALBERT), but not norms and scales. Empty: no sharing."""
    shared_mlp: tuple[int, ...] = ()
    """Number of the MLP of each layer, as in `shared_attention`."""
    qkv_bias: bool = False
    """Whether the projection to queries, keys and values has a bias."""
    output_bias: bool = False
    """Whether the attention's output projection has a bias."""
    mlp_bias: bool = False
    """Whether the MLP's layers have biases."""
    head_bias: bool = False
    """Whether the head has a bias."""
    text_head: bool = True
    """Whether the head predicts text ids too."""
    tie_embeddings: bool = False
    """Whether the head uses the token embedding, text and image, as its weight."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, *"text_vocab_size text_length codebook_size grid_height grid_width".split())
        require_at_least(self, 1, *"width depth num_heads num_kv_heads head_dim mlp_width convolution_size".split())
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}",
        )
        require(len(self.patterns) > 0, "patterns needs at least one attention pattern")
        require(0 <= self.pad_id < self.text_vocab_size, f"pad_id {self.pad_id} is not in the text vocabulary")
        share = {"rotary": 2, "rotary_2d": 4, "rotary_2d_image": 4, "rotary_text_image": 2}.get(self.positions, 1)
        require(self.head_dim % share == 0, f"head_dim {self.head_dim} is not a multiple of {share}")
        require(not (self.tie_embeddings and self.head_bias), "tie_embeddings leaves no room for head_bias")
        require(self.text_head or not self.tie_embeddings, "tie_embeddings makes a head for text too")
        require(
            not self.unique_padding or self.text_length < self.text_vocab_size,
            f"unique_padding needs {self.text_length} ids of a text vocabulary of {self.text_vocab_size}",
        )
        for token in self.begin_ids:
            require(0 <= token < self.text_vocab_size, f"begin id {token} is not in the text vocabulary")
        for name in ("unique_padding", "begin_ids", "token_shift"):
            require(self.attend_padding or not getattr(self, name), f"{name} needs attend_padding")
        require(self.feature_width is None or self.feature_width >= 1, f"feature_width is {self.feature_width}")
        require(not self.token_shift or self.width % 4 == 0, f"token_shift needs a width in fours, not {self.width}")
        require(
            0 <= self.pattern_shift <= self.text_length,
            f"pattern_shift is {self.pattern_shift}; it must be in 0..{self.text_length}, the text length",
        )

    @property
    def shift_width(self) -> int:
        """Number of channels that token shift takes from other tokens; 0 without token shift."""
        return self.width // 2 if self.token_shift else 0

    @property
    def layout(self) -> RowLayout:
        """Layout of the decoder's rows."""
        return RowLayout(
            text_length=self.text_length,
            grid_height=self.grid_height,
            grid_width=self.grid_width,
            text_vocab_size=self.text_vocab_size,
            pad_id=self.pad_id,
            begin_ids=self.begin_ids,
            unique_padding=self.unique_padding,
        )
