"""Transformer blocks and the decoder: one causal Transformer over the row [text | image].

`Decoder.forward` has one meaning: ids and their positions in, hidden states out, with or without a cache. Logits are a
separate, cheap step, because a row has two vocabularies and sampling wants only one of them at one position.

One class, driven by configuration. The defaults are the modern block (RMSNorm before each branch, SwiGLU, rotary
positions in two dimensions, normalised queries and keys); the options are what the DALL-E family used: LayerNorm and
GELU (GPT-2, minDALL-E), sandwich norm (CogView, arXiv 2105.13290), layer scale (CaiT, 2103.17239), GEGLU and SwiGLU
(Shazeer 2020, 2002.05202), learned, axial, sinusoidal or rotary positions, and DALL-E's sparse attention.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.attention import Attention, Pattern, attention_mask, rotary_table
from dalle.cache import CacheView, KVCache, LayerCache
from dalle.config import Config, require
from dalle.sequence import RowLayout

__all__ = ["Decoder", "DecoderConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(Config):
    """Shape of a decoder."""

    text_vocab_size: int
    text_length: int
    """T: text positions in a row."""
    codebook_size: int
    grid_height: int
    grid_width: int
    pad_id: int = 0
    attend_padding: bool = False
    """Let text padding be looked at like any token, as minDALL-E does."""
    width: int = 384
    """D: of the hidden states."""
    depth: int = 8
    num_heads: int = 6
    num_kv_heads: int = 6
    """Below num_heads, groups of queries share keys and values."""
    head_dim: int = 64
    mlp: Literal["gelu", "gelu_tanh", "gelu_sigmoid", "geglu", "swiglu"] = "swiglu"
    mlp_width: int = 1024
    """Channels between the layers of the MLP (of the gate and of the value alike)."""
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    norm_epsilon: float = 1e-5
    qk_norm: bool = True
    sandwich_norm: bool = False
    """A norm after each branch too, before it is added."""
    layer_scale: float | None = None
    """First value of a learned factor for each channel of each branch; None for no factor."""
    positions: Literal["learned", "axial", "sinusoidal", "rotary", "rotary_2d", "none"] = "rotary_2d"
    rotary_base: float = 100.0
    patterns: tuple[Pattern, ...] = ("causal",)
    """Attention mask of each layer, repeated over the depth."""
    convolution_size: int = 5
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    tie_embeddings: bool = False
    """Use the embedding of the tokens, text and image, as the head too."""

    def __post_init__(self) -> None:
        for name in (
            "text_vocab_size text_length codebook_size grid_height grid_width width depth num_heads num_kv_heads "
            "head_dim mlp_width convolution_size"
        ).split():
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}",
        )
        require(len(self.patterns) > 0, "patterns needs at least one attention pattern")
        require(0 <= self.pad_id < self.text_vocab_size, f"pad_id {self.pad_id} is not in the text vocabulary")
        share = {"rotary": 2, "rotary_2d": 4}.get(self.positions, 1)
        require(self.head_dim % share == 0, f"head_dim {self.head_dim} is no multiple of {share}")
        require(not (self.tie_embeddings and self.head_bias), "tie_embeddings leaves no room for head_bias")

    @property
    def layout(self) -> RowLayout:
        """Where everything is in a row."""
        return RowLayout(
            text_length=self.text_length,
            grid_height=self.grid_height,
            grid_width=self.grid_width,
            text_vocab_size=self.text_vocab_size,
            pad_id=self.pad_id,
        )


class MLP(nn.Module):
    """Two layers with an activation between them; in the gated kinds, the activation of one half scales the other."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        activations: dict[str, Callable[[Tensor], Tensor]] = {
            "gelu": F.gelu,
            "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
            "gelu_sigmoid": lambda x: x * torch.sigmoid(1.702 * x),
            "geglu": F.gelu,
            "swiglu": F.silu,
        }
        self.activation = activations[config.mlp]
        self.gated = config.mlp in ("geglu", "swiglu")
        self.input = nn.Linear(config.width, config.mlp_width * (1 + self.gated), bias=config.mlp_bias)
        self.output = nn.Linear(config.mlp_width, config.width, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.input(x)
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            return self.output(self.activation(gate) * value)
        return self.output(self.activation(hidden))


class LayerScale(nn.Module):
    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def _norm(config: DecoderConfig) -> nn.Module:
    kinds = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}
    return kinds[config.norm](config.width, eps=config.norm_epsilon)


def _after_branch(config: DecoderConfig) -> nn.Sequential:
    layers: list[nn.Module] = [_norm(config)] if config.sandwich_norm else []
    layers += [LayerScale(config.width, config.layer_scale)] if config.layer_scale is not None else []
    return nn.Sequential(*layers)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = _norm(config)
        self.attention = Attention(
            config.width,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            qkv_bias=config.qkv_bias,
            output_bias=config.output_bias,
            qk_norm_epsilon=config.norm_epsilon if config.qk_norm else None,
        )
        self.after_attention = _after_branch(config)
        self.mlp_norm = _norm(config)
        self.mlp = MLP(config)
        self.after_mlp = _after_branch(config)

    def forward(self, x: Tensor, mask: Tensor, rotary: Tensor | None, cache: LayerCache | None) -> Tensor:
        x = x + self.after_attention(self.attention(self.attention_norm(x), mask, rotary, cache))
        return x + self.after_mlp(self.mlp(self.mlp_norm(x)))


class PositionEmbedding(nn.Module):
    """The vector added at each position: () -> (T + N, D)."""

    sinusoids: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        layout, width = config.layout, config.width
        self.kind = config.positions
        if self.kind == "learned":
            self.table = nn.Parameter(torch.randn(layout.length, width) * 0.02)
        elif self.kind == "axial":
            self.text = nn.Parameter(torch.randn(layout.text_length, width) * 0.02)
            self.rows = nn.Parameter(torch.randn(layout.grid_height, width) * 0.02)
            self.columns = nn.Parameter(torch.randn(layout.grid_width, width) * 0.02)
        elif self.kind == "sinusoidal":
            with torch.device("cpu"):  # never stored, so it must be real even where the weights are still to come
                angles = torch.arange(layout.length)[:, None] * 1e4 ** (-torch.arange(0, width, 2) / width)
                waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
            self.register_buffer("sinusoids", waves, persistent=False)

    def forward(self) -> Tensor | None:
        if self.kind == "learned":
            return self.table
        if self.kind == "axial":
            grid = rearrange(self.rows, "h d -> h 1 d") + self.columns
            return torch.cat([self.text, rearrange(grid, "h w d -> (h w) d")])
        return self.sinusoids if self.kind == "sinusoidal" else None


class Decoder(nn.Module):
    """The causal Transformer over rows. Ids are those of the joint vocabulary that `RowLayout` defines."""

    masks: Tensor
    rotary: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = config.layout
        vocab_size = config.text_vocab_size + config.codebook_size
        self.embedding = nn.Embedding(vocab_size, config.width)
        self.position_embedding = PositionEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_norm = _norm(config)
        self.head = None if config.tie_embeddings else nn.Linear(config.width, vocab_size, bias=config.head_bias)
        self._start_weights()
        self._derive_tables()

    def _start_weights(self) -> None:
        """Normal with deviation 0.02, and less in the layers that write to the residual stream (GPT-2)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2 and not name.startswith("position_embedding"):
                depth_scale = math.sqrt(2 * self.config.depth) if name.endswith("output.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 / depth_scale)

    def _derive_tables(self) -> None:
        """Masks (kinds, P, P) and rotary table (P, head_dim / 2, 2) follow from the configuration: never stored."""
        config, layout = self.config, self.layout
        with torch.device("cpu"):
            self.pattern_kinds = sorted(set(config.patterns))
            masks = [attention_mask(layout, pattern, config.convolution_size) for pattern in self.pattern_kinds]
            coordinates = torch.arange(layout.length)[:, None]
            if config.positions == "rotary_2d":
                coordinates = layout.coordinates()
            rotary = rotary_table(coordinates, config.head_dim, config.rotary_base)
            self.register_buffer("masks", torch.stack(masks), persistent=False)
            self.register_buffer("rotary", rotary, persistent=False)

    def new_cache(self, num_slots: int) -> KVCache:
        """A cache for this decoder, on its device and in its dtype."""
        config, weight = self.config, self.embedding.weight
        return KVCache(
            depth=config.depth,
            num_slots=num_slots,
            num_kv_heads=config.num_kv_heads,
            length=self.layout.length,
            head_dim=config.head_dim,
            device=weight.device,
            dtype=weight.dtype,
        )

    def forward(self, ids: Tensor, positions: Tensor, cache: CacheView | None = None) -> Tensor:
        """Hidden states (B, L, D) of ids (B, L) at positions.

        Without a cache, positions are (L,), ascending, the same for all rows, and what is attended to is these L
        tokens. With one, positions are (B, L) and all that the slots hold up to each position is attended to.
        """
        x = self.embedding(ids)
        added = self.position_embedding()
        if added is not None:
            x = x + added[positions]
        rotary = None
        if self.config.positions in ("rotary", "rotary_2d"):
            rotary = self.rotary[positions] if cache is not None else self.rotary[positions][None]
        masks = self._masks(ids, positions, cache)
        for i, block in enumerate(self.blocks):
            pattern = self.config.patterns[i % len(self.config.patterns)]
            mask = masks[self.pattern_kinds.index(pattern)]
            x = block(x, mask, rotary, cache.layer(i) if cache is not None else None)
        return self.final_norm(x)

    def _masks(self, ids: Tensor, positions: Tensor, cache: CacheView | None) -> Tensor:
        """(kinds, B or 1, 1, L, S): the patterns at these positions, without padding. A position may always look at
        itself, so that no row of a mask is empty."""
        is_padding = self.layout.is_padding(ids) & (positions < self.layout.text_length)
        if cache is None:
            masks = rearrange(self.masks[:, positions][:, :, positions], "k l s -> k 1 1 l s")
            key_positions = positions
        else:
            is_padding = cache.mark_padding(is_padding)
            masks = rearrange(self.masks[:, positions], "k b l s -> k b 1 l s")
            key_positions = torch.arange(self.layout.length, device=ids.device)
        if self.config.attend_padding:
            return masks
        itself = rearrange(positions[..., None] == key_positions, "... l s -> ... 1 l s")
        return masks & (rearrange(~is_padding, "b s -> b 1 1 s") | itself)

    def _head(self, part: slice) -> tuple[Tensor, Tensor | None]:
        if self.head is None:
            return self.embedding.weight[part], None
        return self.head.weight[part], self.head.bias[part] if self.head.bias is not None else None

    def text_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., text_vocab_size): what the next text id may be."""
        return F.linear(hidden, *self._head(slice(None, self.config.text_vocab_size)))

    def image_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., codebook_size): what the next code may be."""
        return F.linear(hidden, *self._head(slice(self.config.text_vocab_size, None)))

    def teacher_forced(self, text_ids: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits over whole rows: text (B, T' - 1, text_vocab_size) and image (B, N, codebook_size).

        text_ids are (B, T), codes (B, H, W) or (B, N). Padding on the left that all rows share is left out of the
        computation but for its last place, which predicts the first text id: this changes no result. T' is what
        remains. Text logits are right-aligned: the last one predicts the last text id.
        """
        skipped = 0 if self.config.attend_padding else max(0, self.layout.num_common_padding(text_ids) - 1)
        ids = self.layout.row(text_ids, codes)[:, skipped:-1]
        positions = torch.arange(skipped, self.layout.length - 1, device=ids.device)
        hidden = self(ids, positions)
        first_image = self.layout.text_length - 1 - skipped
        return self.text_logits(hidden[:, :first_image]), self.image_logits(hidden[:, first_image:])
