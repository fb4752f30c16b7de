"""`EncoderDecoder`: the Transformer of Vaswani et al. 2017 (arXiv 1706.03762), from source ids to target ids.

The encoder reads a whole source (B, S). Each block of the decoder has a `Memory` of it: keys and values that are
computed once for a source, however many tokens are decoded. The decoder reads a target (B, L) from its start, and
predicts the next id at every position.

Training drops out what it wants with hooks on `embed_source`, `embed_target` and the `after_...` modules of the blocks,
which are the branches before they are added; the network itself has one behaviour.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from dalle.transformer.attention import Memory
from dalle.transformer.block import Block, make_norm
from dalle.transformer.linear import linear
from dalle.transformer.masks import GridLayout
from dalle.transformer.positions import ADDED_POSITIONS, PositionEmbedding, rotary_table
from dalle.translate.cache import DecodingCache
from dalle.translate.config import EncoderDecoderConfig

__all__ = ["EncoderDecoder"]


class Embedding(nn.Module):
    """Ids (B, L) at positions from `first` on -> (B, L, D): scaled embeddings with added positions."""

    def __init__(self, config: EncoderDecoderConfig, length: int, tokens: nn.Embedding | None = None) -> None:
        super().__init__()
        self.tokens = tokens or nn.Embedding(config.vocab_size, config.width)
        self.scale = math.sqrt(config.width) if config.scale_embeddings else 1.0
        self.positions = None
        if config.positions in ADDED_POSITIONS:
            self.positions = PositionEmbedding(config.positions, config.width, GridLayout(first_code=length))

    def forward(self, ids: Tensor, first: int = 0) -> Tensor:
        x = self.tokens(ids) * self.scale
        return x if self.positions is None else x + self.positions()[first : first + ids.shape[1]]


class EncoderDecoder(nn.Module):
    """An encoder-decoder Transformer over the ids of one vocabulary. Sources and targets are padded on the right."""

    rotary: Tensor

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_source = Embedding(config, config.source_length)
        shared = self.embed_source.tokens if config.share_embeddings else None
        self.embed_target = Embedding(config, config.target_length, shared)
        style: dict[str, Any] = {"post_norm": config.post_norm}
        self.encoder = nn.ModuleList(Block(config, **style) for _ in range(config.encoder_depth))
        self.decoder = nn.ModuleList(Block(config, reads_memory=True, **style) for _ in range(config.decoder_depth))
        self.encoder_norm = make_norm(config) if config.final_norm else nn.Identity()
        self.decoder_norm = make_norm(config) if config.final_norm else nn.Identity()
        self.head = None if config.tie_head else nn.Linear(config.width, config.vocab_size, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.head_bias else None
        self._start_weights()
        with torch.device("cpu"):  # never stored, so it must be real even where the weights are still to come
            positions = torch.arange(max(config.source_length, config.target_length))[:, None]
            table = rotary_table(positions, config.head_dim, config.rotary_base) if self._is_rotary else torch.empty(0)
            self.register_buffer("rotary", table, persistent=False)

    def _start_weights(self) -> None:
        """Initialise weights: Glorot's uniform distribution for layers, as the paper's code has it; embeddings with a
        deviation of 1 / sqrt(D), which is 1 once they are scaled; zeros for biases."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("tokens.weight"):
                nn.init.normal_(parameter, std=self.config.width**-0.5)
            elif parameter.ndim == 2 and not name.endswith("positions.table"):
                nn.init.xavier_uniform_(parameter)

    @property
    def _is_rotary(self) -> bool:
        return self.config.positions == "rotary"

    def forward(self, source_ids: Tensor, target_ids: Tensor) -> Tensor:
        """Logits (B, L, V) over whole translations, teacher-forced: position i predicts target id i from the source and
        from the target ids before it.

        source_ids: (B, S) int64, S <= source_length: tokens, the end, padding. target_ids: (B, L) int64, L <=
        target_length: the same. Logits at padding mean nothing: a loss leaves them out.
        """
        start = torch.full_like(target_ids[:, :1], self.config.start_id)
        inputs = torch.cat([start, target_ids[:, :-1]], dim=1)
        return self.logits(self.decode(inputs, self.remember(source_ids)))

    def encode(self, source_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (B, S, D) of sources (B, S), and the mask (B, 1, 1, S) bool, false at padding."""
        assert source_ids.shape[1] <= self.config.source_length, tuple(source_ids.shape)
        mask = (source_ids != self.config.pad_id)[:, None, None]
        x, rotary = self.embed_source(source_ids), self._rotary(0, source_ids.shape[1])
        for block in self.encoder:
            x = block(x, mask, rotary, None, None)
        return self.encoder_norm(x), mask

    def remember(self, source_ids: Tensor) -> list[Memory]:
        """The memory of sources (B, S) that each block of the decoder reads."""
        x, mask = self.encode(source_ids)
        attentions: list[Any] = [block.memory_attention for block in self.decoder]
        return [attention.remember(x, mask) for attention in attentions]

    def decode(self, ids: Tensor, memory: list[Memory], cache: DecodingCache | None = None) -> Tensor:
        """Hidden states (B, L, D) of the decoder's inputs (B, L), which begin with `start_id`, or follow what the cache
        holds and are then added to it. Tokens attend to themselves and all earlier ones."""
        first = 0 if cache is None else cache.length
        stop = first + ids.shape[1]
        assert stop <= self.config.target_length, stop
        places = torch.arange(stop, device=ids.device)
        mask = None if ids.shape[1] == 1 else places <= places[first:, None]
        x, rotary = self.embed_target(ids, first), self._rotary(first, stop)
        for i, (block, one) in enumerate(zip(self.decoder, memory, strict=True)):
            x = block(x, mask, rotary, None, None if cache is None else cache.layer(i), one)
        return self.decoder_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the next id: (..., D) -> (..., V)."""
        weight = self.embed_target.tokens.weight if self.head is None else self.head.weight
        return linear(hidden, weight, self.head_bias)

    def _rotary(self, first: int, stop: int) -> Tensor | None:
        return self.rotary[None, first:stop] if self._is_rotary else None
