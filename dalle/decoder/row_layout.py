"""The one owner of the row layout: the joint sequence [text | image] that the decoder learns.

    position   0 ......... first_code - 1 | first_code ...... length - 1
    holds      begin ids, text ids        | codes, row by row
    id space   [0, text_vocab)            | [text_vocab, text_vocab + codebook_size)

A condition is `text_length` ids. The layout adds everything else that stands before the first code: ids that begin
every row (DALLE-pytorch's and ruDALL-E's BOS), and a separate id for the padding at each text position (in both
projects too). The last text position always predicts the first code.

Our own text is padded on the left and ends with [EOS]; padding is not attended to. Other projects pad on the right and
attend to padding. A class label is a text of one id. If the condition is a row of features, the ids only mark which of
them count: 1 for a feature, `pad_id` for padding.
"""

import dataclasses

import torch
from einops import rearrange
from torch import Tensor

__all__ = ["RowLayout"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowLayout:
    """Positions and ids of everything in a row. All sizes are counts of tokens."""

    text_length: int
    """T: number of ids, or of features, of a condition."""
    grid_height: int
    grid_width: int
    text_vocab_size: int
    pad_id: int
    begin_ids: tuple[int, ...] = ()
    """Ids in front of the text of every row."""
    unique_padding: bool = False
    """Whether padding at text position t gets the id `num_text_ids` + t."""

    @property
    def first_code(self) -> int:
        """Position of the first code, which is the number of tokens before it."""
        return len(self.begin_ids) + self.text_length

    @property
    def num_codes(self) -> int:
        """N: number of image positions in a row."""
        return self.grid_height * self.grid_width

    @property
    def length(self) -> int:
        """Number of positions in a row."""
        return self.first_code + self.num_codes

    @property
    def num_text_ids(self) -> int:
        """Size of a condition's vocabulary: its ids are in 0..num_text_ids - 1."""
        return self.text_vocab_size - (self.text_length if self.unique_padding else 0)

    @property
    def empty_ids(self) -> Tensor:
        """A condition of padding alone, (T,) int64: the null caption of a decoder without a text tokenizer."""
        return torch.full((self.text_length,), self.pad_id)

    def code_ids(self, codes: Tensor) -> Tensor:
        """Convert codes (B, ..., in raster order) to ids (B, M) of the joint vocabulary."""
        return codes.flatten(1) + self.text_vocab_size

    def text_row(self, text_ids: Tensor) -> Tensor:
        """Convert text ids (B, T) to the tokens in front of the first code, (B, first_code)."""
        assert text_ids.shape[1] == self.text_length, text_ids.shape
        if self.unique_padding:
            own = torch.arange(self.num_text_ids, self.text_vocab_size, device=text_ids.device)
            text_ids = torch.where(text_ids == self.pad_id, own, text_ids)
        if self.begin_ids:
            begin = torch.tensor(self.begin_ids, device=text_ids.device).expand(len(text_ids), -1)
            text_ids = torch.cat([begin, text_ids], dim=1)
        return text_ids

    def row(self, text_ids: Tensor, codes: Tensor) -> Tensor:
        """Join text ids (B, T) and codes (B, H, W) or (B, M), M <= N, to joint ids (B, first_code + M)."""
        return torch.cat([self.text_row(text_ids), self.code_ids(codes)], dim=1)

    def grid(self, codes: Tensor) -> Tensor:
        """Arrange codes (B, N) as grids (B, H, W)."""
        return rearrange(codes, "b (h w) -> b h w", h=self.grid_height)

    def is_padding(self, ids: Tensor) -> Tensor:
        """Mark the text padding among ids (B, L) of the joint vocabulary: (B, L) bool."""
        return ids == self.pad_id

    def num_common_padding(self, text_ids: Tensor) -> int:
        """Number of positions at the left that are padding in every row of (B, T). A batch can leave them out if
        padding is not attended to."""
        used = (text_ids != self.pad_id).any(0).nonzero()
        return int(used[0]) if len(used) else self.text_length

    def coordinates(self) -> Tensor:
        """Row and column of each position on the grid: (length, 2) int64. Text lies on the diagonal before the origin:
        position t is at (t - first_code, t - first_code)."""
        text = torch.arange(-self.first_code, 0)
        rows = torch.arange(self.grid_height).repeat_interleave(self.grid_width)
        columns = torch.arange(self.grid_width).repeat(self.grid_height)
        return torch.stack([torch.cat([text, rows]), torch.cat([text, columns])], dim=1)

    def shift_sources(self) -> Tensor:
        """Positions from which token shift takes the first and the second quarter of the channels: (length, 2) int64,
        -1 for none. A code takes from the code above it and the code to its left; text takes both from the token
        before it."""
        positions = torch.arange(self.length)
        rows, columns = self.coordinates().unbind(1)
        above = torch.where(rows > 0, positions - self.grid_width, -1)
        left = torch.where(columns > 0, positions - 1, -1)
        is_text = positions < self.first_code
        return torch.stack([torch.where(is_text, positions - 1, source) for source in (above, left)], dim=1)
