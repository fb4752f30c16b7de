"""Transformer blocks and the decoder: one causal Transformer over the row [text | image].

`Decoder.forward` has one meaning: ids and their positions in, hidden states out, with or without a cache. Logits are a
separate, cheap step, because a row has two vocabularies and sampling wants only one of them at one position.

One class, driven by `DecoderConfig`, for every model of the family.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.decoder.cache import CacheView, KVCache, LayerCache
from dalle.decoder.config import DecoderConfig
from dalle.transformer.attention import Attention, attention_mask, rotary_table, rotary_text_image_table

__all__ = ["Decoder", "DecoderConfig"]


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


def shift_tokens(x: Tensor, earlier: Tensor, sources: Tensor) -> Tensor:
    """Token shift: the first two quarters of the channels of x (B, L, D) come from other tokens.

    earlier: (B, S, D / 2), the first half of the channels of all tokens there are; sources: (B or 1, L, 2), whose
    quarters they are, as indices into S; -1 for zeros.
    """
    quarters = rearrange(earlier, "b s (two q) -> b s two q", two=2)
    index = rearrange(sources.clamp_min(0), "b l two -> b l two 1").expand(len(x), -1, -1, quarters.shape[-1])
    moved = quarters.gather(1, index).masked_fill(rearrange(sources < 0, "b l two -> b l two 1"), 0.0)
    return torch.cat([rearrange(moved, "b l two q -> b l (two q)"), x[..., earlier.shape[-1] :]], dim=-1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with token shift, after each norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.shift_width = config.shift_width
        self.attention_norm = _norm(config)
        self.attention = Attention(
            config.width,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            qkv_bias=config.qkv_bias,
            output_bias=config.output_bias,
            qk_norm_epsilon=config.norm_epsilon if config.qk_norm else None,
            rotary_values=config.rotary_values,
        )
        self.after_attention = _after_branch(config)
        self.mlp_norm = _norm(config)
        self.mlp = MLP(config)
        self.after_mlp = _after_branch(config)

    def forward(
        self, x: Tensor, mask: Tensor, rotary: Tensor | None, sources: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        """(B, L, D) -> (B, L, D). `sources` (B or 1, L, 2) is where token shift takes from, if there is any."""
        inputs = self._shifted(self.attention_norm(x), 0, sources, cache)
        x = x + self.after_attention(self.attention(inputs, mask, rotary, cache))
        inputs = self._shifted(self.mlp_norm(x), 1, sources, cache)
        return x + self.after_mlp(self.mlp(inputs))

    def _shifted(self, inputs: Tensor, branch: int, sources: Tensor | None, cache: LayerCache | None) -> Tensor:
        if sources is None:
            return inputs
        earlier = inputs[..., : self.shift_width]
        return shift_tokens(inputs, earlier if cache is None else cache.hand_on(branch, earlier), sources)


class FeatureProjection(nn.Module):
    """Features (..., F), of a text encoder, -> (..., D), in the place of text embeddings: LlamaGen's two layers. Also
    keeps the features that stand for no caption."""

    def __init__(self, config: DecoderConfig, feature_width: int) -> None:
        super().__init__()
        self.input = nn.Linear(feature_width, config.width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)
        self.null = nn.Parameter(torch.randn(config.text_length, feature_width) / feature_width**0.5)

    def forward(self, features: Tensor) -> Tensor:
        return self.output(F.gelu(self.input(features), approximate="tanh"))


class PositionEmbedding(nn.Module):
    """The vector added at each position: () -> (P, D)."""

    sinusoids: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        layout, width = config.layout, config.width
        self.kind = config.positions
        if self.kind == "learned":
            self.table = nn.Parameter(torch.randn(layout.length, width) * 0.02)
        elif self.kind == "axial":
            self.text = nn.Parameter(torch.randn(layout.first_code, width) * 0.02)
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
    shift_sources: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = config.layout
        vocab_size = config.text_vocab_size + config.codebook_size
        self.embedding = nn.Embedding(vocab_size, config.width)
        self.features = FeatureProjection(config, config.feature_width) if config.feature_width is not None else None
        self.position_embedding = PositionEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        for part, numbers in (("attention", config.shared_attention), ("mlp", config.shared_mlp)):
            owners: dict[int, nn.Module] = {}
            for i, block in enumerate(self.blocks if numbers else []):
                setattr(block, part, owners.setdefault(numbers[i % len(numbers)], getattr(block, part)))
        self.final_norm = _norm(config)
        self.head_norm = _norm(config) if config.head_norm else None
        self.head = None
        if not config.tie_embeddings:
            num_outputs = vocab_size if config.text_head else config.codebook_size
            self.head = nn.Linear(config.width, num_outputs, bias=config.head_bias)
        self._start_weights()
        self._derive_tables()

    def _start_weights(self) -> None:
        """Normal with deviation 0.02, and less in the layers that write to the residual stream (GPT-2)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2 and not name.startswith(("position_embedding", "features.null")):
                depth_scale = math.sqrt(2 * self.config.depth) if name.endswith("output.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 / depth_scale)

    def _derive_tables(self) -> None:
        """Masks (kinds, P, P), rotary table (P, head_dim / 2, 2) and sources of token shift (P, 2) follow from the
        configuration: never stored."""
        config, layout = self.config, self.layout
        with torch.device("cpu"):
            self.pattern_kinds = sorted(set(config.patterns))
            masks = [
                attention_mask(layout, pattern, config.convolution_size, config.pattern_shift)
                for pattern in self.pattern_kinds
            ]
            self.register_buffer("masks", torch.stack(masks), persistent=False)
            self.register_buffer("rotary", self._rotary_table(), persistent=False)
            self.register_buffer("shift_sources", layout.shift_sources(), persistent=False)

    def _rotary_table(self) -> Tensor:
        config, layout = self.config, self.layout
        if config.positions == "rotary_text_image":
            dtype: torch.dtype = getattr(torch, config.rotary_dtype)
            return rotary_text_image_table(layout, config.head_dim, config.rotary_base, dtype)
        coordinates = torch.arange(layout.length)[:, None]
        if config.positions in ("rotary_2d", "rotary_2d_image"):
            coordinates = layout.coordinates()
        table = rotary_table(coordinates, config.head_dim, config.rotary_base)
        if config.positions == "rotary_2d_image":
            table[: layout.first_code] = 0
        return table

    def new_cache(self, num_slots: int) -> KVCache:
        """A cache for this decoder, on its device and in its dtype."""
        config, weight = self.config, self.embedding.weight
        return KVCache(
            depth=config.depth,
            num_slots=num_slots,
            num_kv_heads=config.num_kv_heads,
            length=self.layout.length,
            head_dim=config.head_dim,
            shift_width=config.shift_width,
            device=weight.device,
            dtype=weight.dtype,
        )

    def forward(
        self, ids: Tensor, positions: Tensor, cache: CacheView | None = None, features: Tensor | None = None
    ) -> Tensor:
        """Hidden states (B, L, D) of ids (B, L) at positions.

        Without a cache, positions are (L,), ascending, the same for all rows, and what is attended to is these L
        tokens. With one, positions are (B, L) and all that the slots hold up to each position is attended to. In a
        model of features, `features` (B, M, feature_width) stand in the place of the first M tokens, M <= L, but of
        those that are codes; there may be none if all are.
        """
        x = self.embedding(ids)
        if self.features is not None and features is not None:
            first = features.shape[1]
            is_text = (positions < self.layout.first_code)[..., :first, None]
            x = torch.cat([torch.where(is_text, self.features(features), x[:, :first]), x[:, first:]], dim=1)
        added = self.position_embedding()
        if added is not None:
            x = x + added[positions]
        batched = positions if cache is not None else positions[None]
        rotary = self.rotary[batched] if self.config.positions.startswith("rotary") else None
        sources = self.shift_sources[batched] if self.config.token_shift else None
        masks = self._masks(ids, positions, cache)
        for i, block in enumerate(self.blocks):
            pattern = self.config.patterns[i % len(self.config.patterns)]
            mask = masks[self.pattern_kinds.index(pattern)]
            x = block(x, mask, rotary, sources, cache.layer(i) if cache is not None else None)
        if self.config.divide_max:
            x = x / x.amax(-1, keepdim=True)
        x = self.final_norm(x)
        return x if self.head_norm is None else self.head_norm(x)

    def _masks(self, ids: Tensor, positions: Tensor, cache: CacheView | None) -> Tensor:
        """(kinds, B or 1, 1, L, S): the patterns at these positions, without padding. A position may always look at
        itself, so that no row of a mask is empty."""
        is_padding = self.layout.is_padding(ids) & (positions < self.layout.first_code)
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
        """(..., D) -> (..., text_vocab_size): what the next text id may be; (..., 0) without a text head."""
        return F.linear(hidden, *self._head(slice(None, self._num_text_outputs)))

    def image_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., codebook_size): what the next code may be."""
        return F.linear(hidden, *self._head(slice(self._num_text_outputs, None)))

    @property
    def _num_text_outputs(self) -> int:
        return self.config.text_vocab_size if self.config.text_head else 0

    def hidden_rows(self, text_ids: Tensor, codes: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Hidden states over whole rows: text (B, T' - 1, D), of which position i predicts text id i + 1, and image (B,
        N, D), of which position i predicts code i.

        text_ids are (B, T), codes (B, H, W) or (B, N), features (B, T, feature_width) where the model has them. Padding
        on the left that all rows share is left out of the computation but for its last place, which predicts the first
        text id: this changes no result. T' is what remains.
        """
        skipped = 0 if self.config.attend_padding else max(0, self.layout.num_common_padding(text_ids) - 1)
        ids = self.layout.row(text_ids, codes)[:, skipped:-1]
        positions = torch.arange(skipped, self.layout.length - 1, device=ids.device)
        hidden = self(ids, positions, features=None if features is None else features[:, skipped:])
        first_image = self.layout.first_code - 1 - skipped
        return hidden[:, :first_image], hidden[:, first_image:]

    def teacher_forced(self, text_ids: Tensor, codes: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits over whole rows, from the same arguments as `hidden_rows`: text (B, T' - 1, text_vocab_size) and image
        (B, N, codebook_size). Text logits are right-aligned: the last one predicts the last text id.
        """
        text, image = self.hidden_rows(text_ids, codes, features)
        return self.text_logits(text), self.image_logits(image)
