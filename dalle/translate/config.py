"""`EncoderDecoderConfig`: the sizes of an encoder-decoder Transformer, and its choices among the variants in use.

Vaswani et al. 2017 (arXiv 1706.03762) have norms behind the additions, ReLU, sinusoidal positions, and one matrix for
the embeddings of both languages and for the output; the defaults differ in the norms, which are in front (Xiong et al.
2020, 2002.04745) and need no warm-up. Marian's models (Junczys-Dowmunt et al. 2018, 1804.00344) have norms behind, SiLU
and `sinusoidal_halves`; `torch.nn.Transformer` has norms behind the last blocks too.
"""

import dataclasses
from typing import Literal

from dalle.config import Config, require, require_at_least, require_multiple
from dalle.transformer.plain_block import PlainBlock

__all__ = ["EncoderDecoderConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(PlainBlock, Config):
    """Sizes and variants of an encoder-decoder Transformer; a `BlockShape` of `dalle.transformer`."""

    vocab_size: int
    """V: number of ids of the text tokenizer. Training takes the value from the text tokenizer."""
    pad_id: int
    """Id of padding, which no token attends to and which is never a translation's."""
    start_id: int
    """Id that the decoder reads first; it may be that of padding, and is never a translation's."""
    end_id: int
    """Id behind the last token of every source and every translation."""
    source_length: int = 64
    """Largest number of ids of a source, with its end."""
    target_length: int = 64
    """Largest number of ids of a translation, with its end."""
    width: int = 256
    """D: channels of the hidden states; a multiple of num_heads."""
    encoder_depth: int = 3
    """Number of blocks of the encoder, each with attention and an MLP."""
    decoder_depth: int = 3
    """Number of blocks of the decoder, each with attention, encoder-decoder attention and an MLP."""
    num_heads: int = 4
    """Number of attention heads."""
    mlp: Literal["relu", "silu", "gelu", "gelu_tanh", "gelu_sigmoid", "geglu", "swiglu"] = "relu"
    """Kind of the MLP: ReLU, SiLU, GELU (exact or approximated), or gated."""
    mlp_width: int = 1024
    """Channels between the two layers of the MLP; in gated kinds, channels of the gate and of the value each."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Kind of every norm: LayerNorm or RMSNorm."""
    norm_epsilon: float = 1e-5
    """Epsilon that every norm adds to the variance (RMSNorm: to the mean square)."""
    post_norm: bool = False
    """Whether each norm is behind the addition of its branch, instead of in front of the branch."""
    final_norm: bool = True
    """Whether there is a norm behind the last block of the encoder, and one behind that of the decoder."""
    positions: Literal["sinusoidal", "sinusoidal_halves", "learned", "rotary", "none"] = "sinusoidal"
    """Kind of positions. Rotary positions turn queries and keys within the encoder and within the decoder, not between
    them; `none` leaves a source without order, and a translation with the order that the causal mask implies."""
    rotary_base: float = 10000.0
    """Base of the frequencies of rotary positions: pair i of n pairs rotates by base^(-i / n) per position."""
    scale_embeddings: bool = True
    """Whether embeddings are multiplied by the square root of the width before positions are added."""
    share_embeddings: bool = True
    """Whether source and target have one embedding."""
    tie_head: bool = True
    """Whether the head uses the target's embedding as its weight."""
    head_bias: bool = False
    """Whether the head has a bias."""
    qk_norm: bool = False
    """Whether queries and keys are normalised by RMSNorm in each head."""
    qkv_bias: bool = True
    """Whether the projections to queries, keys and values have biases."""
    output_bias: bool = True
    """Whether the attentions' output projections have biases."""
    mlp_bias: bool = True
    """Whether the MLP's layers have biases."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, *"width encoder_depth decoder_depth num_heads mlp_width".split())
        require_at_least(self, 2, "vocab_size", "source_length", "target_length")
        require_multiple(self, self.num_heads, "width")
        for name in ("pad_id", "start_id", "end_id"):
            value = getattr(self, name)
            require(0 <= value < self.vocab_size, f"{name} {value} is not in the vocabulary of {self.vocab_size}")
        require(self.end_id not in (self.pad_id, self.start_id), f"end_id {self.end_id} is that of padding or start")
        if self.positions == "rotary":
            require(self.head_dim % 2 == 0, f"rotary positions need heads of an even width, not of {self.head_dim}")
        if self.positions == "sinusoidal_halves":
            require_multiple(self, 2, "width")
