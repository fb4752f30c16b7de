"""Attention masks of sequences that end in a grid: causal, and DALL-E's sparse patterns over rows and columns.

The sparse patterns are DALL-E's (Ramesh et al. 2021, arXiv 2102.12092) as DALLE-pytorch and ruDALL-E read them.
"""

import dataclasses
from typing import Literal, Protocol

import torch
from torch import Tensor

__all__ = ["GridLayout", "GridSequence", "Pattern", "attention_mask"]

Pattern = Literal["causal", "row", "column", "convolution", "local", "convolution_centered", "convolution_wrapped"]


class GridSequence(Protocol):
    """A sequence of P positions: some tokens in front, then a grid of tokens, row by row."""

    @property
    def first_code(self) -> int:
        """Position of the grid's first token, and the number of tokens in front of it."""

    @property
    def num_codes(self) -> int:
        """Number of tokens on the grid."""

    @property
    def length(self) -> int:
        """P: number of all positions."""

    @property
    def grid_height(self) -> int:
        """Number of rows of the grid."""

    @property
    def grid_width(self) -> int:
        """Number of columns of the grid."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridLayout:
    """A sequence of tokens: some in front, then a grid, row by row. It is a `GridSequence`."""

    first_code: int
    """Number of tokens in front of the grid."""
    grid_height: int = 0
    """Number of rows of the grid."""
    grid_width: int = 0
    """Number of columns of the grid."""

    @property
    def num_codes(self) -> int:
        """Number of tokens on the grid."""
        return self.grid_height * self.grid_width

    @property
    def length(self) -> int:
        """Number of all tokens."""
        return self.first_code + self.num_codes


def attention_mask(layout: GridSequence, pattern: Pattern, convolution_size: int, shift: int = 0) -> Tensor:
    """The mask of an attention pattern: (P, P) bool, true where a query (first axis) may attend to a key (second axis).

    Tokens in front of the grid (text) attend to themselves and all tokens before them, in every pattern. A token on the
    grid (a code) attends to all text, and to these codes among itself and the codes before it:

        causal                all
        row, column           the codes of its own row, of its own column
        convolution           the `convolution_size` rows and columns that end at it (DALLE-pytorch)
        local                 the `grid_width` codes before it (ruDALL-E's row mask)
        convolution_centered  the `convolution_size` rows and columns around it (ruDALL-E)
        convolution_wrapped   the same on a torus (ruDALL-E's first models)

    `shift` starts the grid that many positions earlier: the pattern then takes the last text positions for codes.
    """
    positions = torch.arange(layout.length)
    back = positions[:, None] - positions
    if pattern == "causal":
        return back >= 0
    places = positions - layout.first_code + shift
    rows, columns = places // layout.grid_width, places % layout.grid_width
    rows_up, columns_left = rows[:, None] - rows, columns[:, None] - columns

    def around(distance: Tensor, size: int) -> Tensor:
        reach = convolution_size // 2
        near = distance.abs() <= reach
        return near | (distance.abs() >= size - reach) if pattern == "convolution_wrapped" else near

    if pattern == "row":
        near = rows_up == 0
    elif pattern == "column":
        near = columns_left == 0
    elif pattern == "local":
        near = back <= layout.grid_width
    elif pattern == "convolution":
        near = (rows_up < convolution_size) & (columns_left >= 0) & (columns_left < convolution_size)
    else:
        near = around(rows_up, layout.grid_height) & around(columns_left, layout.grid_width)
    return (back >= 0) & (near | (places < 0) | (places[:, None] < 0))
