"""`TextEncoder`: text ids to vectors, by a Transformer that is read at the end of the text."""

import torch
from torch import Tensor, nn

from dalle.clip.config import TextConfig
from dalle.clip.encoder import Encoder, start_weights
from dalle.transformer.block import make_norm
from dalle.transformer.positions import PositionEmbedding

__all__ = ["TextEncoder"]


class TextEncoder(nn.Module):
    """Text ids to vectors. Padding that all rows share is left out of the computation, which changes no result."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = PositionEmbedding("learned", config.width, config.layout)
        self.encoder = Encoder(config)
        self.final_norm = make_norm(config)
        start_weights(self, config.depth)

    def forward(self, text_ids: Tensor) -> Tensor:
        """Text ids (B, T) int64, each row with an end -> vectors (B, D)."""
        assert text_ids.shape[1] == self.config.text_length, tuple(text_ids.shape)
        start, stop = self._used(text_ids)
        ids = text_ids[:, start:stop]
        x = self.embedding(ids) + self.position_embedding()[start:stop]
        x = self.encoder(x, self._mask(ids))
        ends = (ids == self.config.end_id).int().argmax(1)  # the first of them
        return self.final_norm(x[torch.arange(len(x), device=x.device), ends])

    def _used(self, text_ids: Tensor) -> tuple[int, int]:
        """The positions that decide the result: all but padding at the ends that no row needs."""
        length = text_ids.shape[1]
        if self.config.attend_padding and not self.config.causal:
            return 0, length
        used = (text_ids != self.config.pad_id).any(0).nonzero()
        start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, length)
        return (0 if self.config.attend_padding else start), stop

    def _mask(self, ids: Tensor) -> Tensor | None:
        """The mask (B or 1, 1, L, L); None if every token attends to all. Every token attends to itself, so that no row
        of a mask is empty."""
        places = torch.arange(ids.shape[1], device=ids.device)
        back = places[:, None] - places
        earlier = back >= 0 if self.config.causal else torch.ones_like(back, dtype=torch.bool)
        if self.config.attend_padding:
            return earlier[None, None] if self.config.causal else None
        is_text = (ids != self.config.pad_id)[:, None, None]
        return (earlier & is_text) | (back == 0)
