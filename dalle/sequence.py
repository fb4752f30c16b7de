"""The one owner of the row layout: the joint sequence [text | image] that the decoder learns.

    position   0 ......... T-1 | T ................ T+N-1
    holds      text ids        | codes, row by row
    id space   [0, text_vocab) | [text_vocab, text_vocab + codebook_size)

Text is padded on the left and ends with [EOS], so that the last text position is always the one that predicts the
first code. The null caption of classifier-free guidance is the empty caption: padding and [EOS].
"""

import dataclasses

import torch
from einops import rearrange
from torch import Tensor

__all__ = ["RowLayout"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowLayout:
    """Where everything is in a row. All sizes are counts of tokens."""

    text_length: int
    grid_height: int
    grid_width: int
    text_vocab_size: int
    pad_id: int

    @property
    def num_codes(self) -> int:
        """N: image positions in a row."""
        return self.grid_height * self.grid_width

    @property
    def length(self) -> int:
        """T + N."""
        return self.text_length + self.num_codes

    def code_ids(self, codes: Tensor) -> Tensor:
        """Codes (B, ..., in raster order) -> ids (B, M) of the joint vocabulary."""
        return codes.flatten(1) + self.text_vocab_size

    def row(self, text_ids: Tensor, codes: Tensor) -> Tensor:
        """(B, T) text ids and (B, H, W) or (B, M) codes, M <= N -> (B, T + M) ids of the joint vocabulary."""
        assert text_ids.shape[1] == self.text_length, text_ids.shape
        return torch.cat([text_ids, self.code_ids(codes)], dim=1)

    def grid(self, codes: Tensor) -> Tensor:
        """(B, N) -> (B, H, W)."""
        return rearrange(codes, "b (h w) -> b h w", h=self.grid_height)

    def is_padding(self, ids: Tensor) -> Tensor:
        """(B, L) ids of the joint vocabulary -> (B, L) bool: which are text padding."""
        return ids == self.pad_id

    def num_common_padding(self, text_ids: Tensor) -> int:
        """How many positions at the left are padding in every row of (B, T): they can be left out of a batch, since
        padding is not attended to."""
        used = (text_ids != self.pad_id).any(0).nonzero()
        return int(used[0]) if len(used) else self.text_length

    def coordinates(self) -> Tensor:
        """(T + N, 2) int64: row and column of each position on the grid. Text lies on the diagonal before the origin:
        position t is at (t - T, t - T)."""
        text = torch.arange(-self.text_length, 0)
        rows = torch.arange(self.grid_height).repeat_interleave(self.grid_width)
        columns = torch.arange(self.grid_width).repeat(self.grid_height)
        return torch.stack([torch.cat([text, rows]), torch.cat([text, columns])], dim=1)
