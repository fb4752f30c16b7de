"""The one owner of the row layout: the joint sequence [text | image] that the decoder learns.

    position   0 ......... first_code - 1 | first_code ...... length - 1
    holds      begin ids, text ids        | codes, row by row
    id space   [0, text_vocab)            | [text_vocab, text_vocab + codebook_size)

A condition is `text_length` ids; whatever else stands before the first code, the layout adds: ids that begin every row
(DALLE-pytorch's and ruDALL-E's BOS), and an id of its own for the padding at each place (both projects again). The last
text position is always the one that predicts the first code.

Our own text is padded on the left and ends with [EOS], and padding is not attended to. Other projects pad on the right
and attend to padding. A class label is a text of one id. Where the condition is a row of features, the ids only say
which of them count: 1 for a feature, `pad_id` for padding.
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
    """T: ids, or features, of a condition."""
    grid_height: int
    grid_width: int
    text_vocab_size: int
    pad_id: int
    begin_ids: tuple[int, ...] = ()
    """Set before the text of every row."""
    unique_padding: bool = False
    """Padding at place t of the text becomes the id `num_text_ids` + t."""

    @property
    def first_code(self) -> int:
        """The position of the first code: how many come before it."""
        return len(self.begin_ids) + self.text_length

    @property
    def num_codes(self) -> int:
        """N: image positions in a row."""
        return self.grid_height * self.grid_width

    @property
    def length(self) -> int:
        """All positions of a row."""
        return self.first_code + self.num_codes

    @property
    def num_text_ids(self) -> int:
        """The ids that a condition may have are 0..num_text_ids - 1."""
        return self.text_vocab_size - (self.text_length if self.unique_padding else 0)

    @property
    def empty_ids(self) -> Tensor:
        """(T,) int64: nothing but padding, the null caption of a decoder without a text tokenizer to say another."""
        return torch.full((self.text_length,), self.pad_id)

    def code_ids(self, codes: Tensor) -> Tensor:
        """Codes (B, ..., in raster order) -> ids (B, M) of the joint vocabulary."""
        return codes.flatten(1) + self.text_vocab_size

    def text_row(self, text_ids: Tensor) -> Tensor:
        """(B, T) text ids -> (B, first_code): what stands before the first code."""
        assert text_ids.shape[1] == self.text_length, text_ids.shape
        if self.unique_padding:
            own = torch.arange(self.num_text_ids, self.text_vocab_size, device=text_ids.device)
            text_ids = torch.where(text_ids == self.pad_id, own, text_ids)
        if self.begin_ids:
            begin = torch.tensor(self.begin_ids, device=text_ids.device).expand(len(text_ids), -1)
            text_ids = torch.cat([begin, text_ids], dim=1)
        return text_ids

    def row(self, text_ids: Tensor, codes: Tensor) -> Tensor:
        """(B, T) text ids and (B, H, W) or (B, M) codes, M <= N -> (B, first_code + M) ids of the joint vocabulary."""
        return torch.cat([self.text_row(text_ids), self.code_ids(codes)], dim=1)

    def grid(self, codes: Tensor) -> Tensor:
        """(B, N) -> (B, H, W)."""
        return rearrange(codes, "b (h w) -> b h w", h=self.grid_height)

    def is_padding(self, ids: Tensor) -> Tensor:
        """(B, L) ids of the joint vocabulary -> (B, L) bool: which are text padding."""
        return ids == self.pad_id

    def num_common_padding(self, text_ids: Tensor) -> int:
        """How many positions at the left are padding in every row of (B, T): they can be left out of a batch, where
        padding is not attended to."""
        used = (text_ids != self.pad_id).any(0).nonzero()
        return int(used[0]) if len(used) else self.text_length

    def coordinates(self) -> Tensor:
        """(length, 2) int64: row and column of each position on the grid. Text lies on the diagonal before the origin:
        the position t is at (t - first_code, t - first_code)."""
        text = torch.arange(-self.first_code, 0)
        rows = torch.arange(self.grid_height).repeat_interleave(self.grid_width)
        columns = torch.arange(self.grid_width).repeat(self.grid_height)
        return torch.stack([torch.cat([text, rows]), torch.cat([text, columns])], dim=1)

    def shift_sources(self) -> Tensor:
        """(length, 2) int64: the positions from which token shift takes the first and the second quarter of the
        channels, -1 for none: of a code the one above and the one to the left; of text, the one before, twice."""
        positions = torch.arange(self.length)
        rows, columns = self.coordinates().unbind(1)
        above = torch.where(rows > 0, positions - self.grid_width, -1)
        left = torch.where(columns > 0, positions - 1, -1)
        is_text = positions < self.first_code
        return torch.stack([torch.where(is_text, positions - 1, source) for source in (above, left)], dim=1)
