"""The decoder: one causal Transformer over the row [text | image].

`Decoder.forward` has one meaning: ids and their positions in, hidden states out. It reads whole rows, or the first
tokens of a row, which it then leaves in a slot of a cache; a step over one token in each slot (`step.py`) goes through
the same blocks. Logits are apart, because a row has two vocabularies, and sampling needs one of them at one position.

One class, driven by `DecoderConfig`, for every model of the DALL-E family.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.decoder.cache import KVCache, PrefillView, StepView, cache_length
from dalle.decoder.config import DecoderConfig
from dalle.transformer.block import Block, make_norm
from dalle.transformer.linear import Weights, for_inference, inference_linear, linear
from dalle.transformer.masks import attention_mask
from dalle.transformer.positions import ADDED_POSITIONS, PositionEmbedding, rotary_table, rotary_text_image_table

__all__ = ["Decoder"]


class FeatureProjection(nn.Module):
    """Projection of a text encoder's features, (..., F) -> (..., D), which replaces text embeddings: LlamaGen's two
    layers. `null` (T, F) are the features of the null caption."""

    def __init__(self, config: DecoderConfig, feature_width: int) -> None:
        super().__init__()
        self.input = nn.Linear(feature_width, config.width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)
        self.null = nn.Parameter(torch.randn(config.text_length, feature_width) / feature_width**0.5)

    def forward(self, features: Tensor) -> Tensor:
        return self.output(F.gelu(self.input(features), approximate="tanh"))


class Decoder(nn.Module):
    """The causal Transformer over rows of ids from the joint vocabulary, which `RowLayout` defines."""

    masks: Tensor
    rotary: Tensor
    shift_sources: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = config.layout
        self.shift_width = config.shift_width
        vocab_size = config.text_vocab_size + config.codebook_size
        self.embedding = nn.Embedding(vocab_size, config.width)
        self.features = FeatureProjection(config, config.feature_width) if config.feature_width is not None else None
        self.position_embedding = None
        if config.positions in ADDED_POSITIONS:
            self.position_embedding = PositionEmbedding(config.positions, config.width, config.layout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        for part, numbers in (("attention", config.shared_attention), ("mlp", config.shared_mlp)):
            owners: dict[int, nn.Module] = {}
            for i, block in enumerate(self.blocks if numbers else []):
                setattr(block, part, owners.setdefault(numbers[i % len(numbers)], getattr(block, part)))
        self.final_norm = make_norm(config)
        self.head_norm = make_norm(config) if config.head_norm else None
        self.head = None
        if not config.tie_embeddings:
            num_outputs = vocab_size if config.text_head else config.codebook_size
            self.head = nn.Linear(config.width, num_outputs, bias=config.head_bias)
        self.image_head: nn.Module | None = None
        """The part of the head that predicts codes, in a twin for inference."""
        self._start_weights()
        self._derive_tables()

    def _start_weights(self) -> None:
        """Initialise weights: normal with deviation 0.02, less in layers that write to the residual stream (GPT-2)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2 and not name.startswith(("position_embedding", "features.null")):
                depth_scale = math.sqrt(2 * self.config.depth) if name.endswith("output.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 / depth_scale)

    def _derive_tables(self) -> None:
        """Compute what follows from the configuration and is never stored: masks (kinds, P, C) over the C positions of
        a cache, rotary table (P, head_dim / 2, 2), sources of token shift (P, 2)."""
        config, layout = self.config, self.layout
        with torch.device("cpu"):
            self.pattern_kinds = sorted(set(config.patterns))
            masks = [
                attention_mask(layout, pattern, config.convolution_size, config.pattern_shift)
                for pattern in self.pattern_kinds
            ]
            unused = cache_length(layout.length) - layout.length
            self.register_buffer("masks", F.pad(torch.stack(masks), (0, unused)), persistent=False)
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
        """Allocate a cache for this decoder, on its device and in its dtype."""
        config, weight = self.config, self.embedding.weight
        return KVCache.allocate(
            depth=config.depth,
            num_slots=num_slots,
            num_kv_heads=config.num_kv_heads,
            row_length=self.layout.length,
            head_dim=config.head_dim,
            shift_width=self.shift_width,
            device=weight.device,
            dtype=weight.dtype,
        )

    def forward(
        self, ids: Tensor, positions: Tensor, cache: PrefillView | None = None, features: Tensor | None = None
    ) -> Tensor:
        """Hidden states (B, L, D) of ids (B, L) at positions (L,), ascending, the same for all rows. Tokens attend to
        these L tokens. With a cache, B is 1, positions start at 0, and keys and values are stored in a slot.

        In a model that follows features, `features` (B, M, feature_width) replace the embeddings of the text among the
        first M tokens, M <= L; they may be None if all tokens are codes.
        """
        masks = self.masks[:, positions][:, None, None, :, positions]
        if not self.config.attend_padding:
            is_padding = self.layout.is_padding(ids) & (positions < self.layout.first_code)
            masks = masks & self.attended(is_padding[:, None, None], positions[:, None] == positions)
        return self.transform(self.embed(ids, positions, features), positions[None], masks, cache)

    @staticmethod
    def attended(is_padding: Tensor, is_itself: Tensor) -> Tensor:
        """Mask of the keys that padding leaves: a position always attends to itself, so that no row of a mask is
        empty."""
        return ~is_padding | is_itself

    def embed(self, ids: Tensor, positions: Tensor, features: Tensor | None = None) -> Tensor:
        """Embeddings (B, L, D) of ids (B, L) at positions (L,) or (B, L), with added positions and features."""
        x = self.embedding(ids)
        if self.features is not None and features is not None:
            first = features.shape[1]
            is_text = (positions < self.layout.first_code)[..., :first, None]
            x = torch.cat([torch.where(is_text, self.features(features), x[:, :first]), x[:, first:]], dim=1)
        return x if self.position_embedding is None else x + self.position_embedding()[positions]

    def transform(self, x: Tensor, positions: Tensor, masks: Tensor, cache: PrefillView | StepView | None) -> Tensor:
        """All blocks and the final norm: embeddings (B, L, D) at positions (B or 1, L) -> hidden states (B, L, D).

        masks (kinds, B or 1, 1, L, S), bool or added to scores, are those of `pattern_kinds` over the S keys that
        tokens may attend to: the L tokens themselves or, in a step, the positions of the cache that it reads.
        """
        rotary = self.rotary[positions] if self.config.positions.startswith("rotary") else None
        sources = self.shift_sources[positions] if self.config.token_shift else None
        for i, block in enumerate(self.blocks):
            pattern = self.config.patterns[i % len(self.config.patterns)]
            mask = masks[self.pattern_kinds.index(pattern)]
            x = block(x, mask, rotary, sources, cache.layer(i) if cache is not None else None)
        if self.config.divide_max:
            x = x / x.amax(-1, keepdim=True)
        x = self.final_norm(x)
        return x if self.head_norm is None else self.head_norm(x)

    def for_inference(self, *, pack: bool, weights: Weights = "float32") -> "Decoder":
        """A twin of this decoder whose products are fast on this device. With `pack` it holds a copy of the weights as
        they are now, laid out for speed; other `weights` than float32 are a rounded copy. Where there is nothing to
        gain, it is this decoder itself."""
        blocks = for_inference(self.blocks, pack=pack, weights=weights)
        if blocks is self.blocks:
            return self
        twin = copy.deepcopy(self, {id(one): one for one in [self.blocks, *self.parameters(), *self.buffers()]})
        twin.blocks = blocks
        twin.image_head = inference_linear(*self._head(slice(self._num_text_outputs, None)), pack=pack, weights=weights)
        return twin

    def _head(self, part: slice) -> tuple[Tensor, Tensor | None]:
        if self.head is None:
            return self.embedding.weight[part], None
        return self.head.weight[part], self.head.bias[part] if self.head.bias is not None else None

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the next text id: (..., D) -> (..., text_vocab_size), or (..., 0) without a text head."""
        return linear(hidden, *self._head(slice(None, self._num_text_outputs)))

    def image_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the next code: (..., D) -> (..., codebook_size)."""
        if self.image_head is not None:
            logits: Tensor = self.image_head(hidden)
            return logits
        return linear(hidden, *self._head(slice(self._num_text_outputs, None)))

    @property
    def _num_text_outputs(self) -> int:
        return self.config.text_vocab_size if self.config.text_head else 0

    def hidden_rows(self, text_ids: Tensor, codes: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Hidden states over whole rows: text (B, T' - 1, D), of which position i predicts text id i + 1, and image (B,
        N, D), of which position i predicts code i.

        text_ids are (B, T), codes (B, H, W) or (B, N), features (B, T, feature_width) if the model follows them.
        Padding on the left that all rows share is left out of the computation, except for its last position, which
        predicts the first text id: this changes no result. T' is the text length that remains.
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
