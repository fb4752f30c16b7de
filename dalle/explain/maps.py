"""Attention of each patch to the text and to earlier patches, gathered layer by layer from a replay.

A patch is a code on the grid. All attention of a large model is too much for a page: of 1,024 codes in 24 layers of 16
heads it is 200 million numbers. So maps have the finest detail that fits a limit: every head of every layer, each
layer averaged over its heads, or one average.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["MAX_NUMBERS", "AttentionMaps"]

MAX_NUMBERS = 4 * 2**20
"""Most weights that are kept of the text, and of patches each: 4 MiB as bytes."""


class AttentionMaps:
    """Maps of chosen layers and heads, both numbered from 0, for a row whose text is gathered into C columns.

    columns (first_code, C): 1 where a position of the text belongs to a column. Weights of a column are sums.
    """

    def __init__(self, layers: Sequence[int], heads: Sequence[int], columns: Tensor, num_codes: int) -> None:
        self._layers, self._heads, self._columns = [*layers], [*heads], columns
        self._earlier = torch.tril_indices(num_codes, num_codes, -1)
        self.text = self._room(num_codes * columns.shape[1]).unflatten(-1, (num_codes, -1))
        """(layers, heads, N, C): weights of each patch on each column. The first axis is 1 where layers are averaged,
        the second where heads are."""
        self.patches = self._room(self._earlier.shape[1])
        """(layers, heads, N (N - 1) / 2): weights of patch 1 on 0, of patch 2 on 0 and 1, and so on, with axes of
        their own as in `text`."""

    def _room(self, size: int) -> Tensor:
        shape = (len(self._layers), len(self._heads))
        for coarser in ((shape[0], 1), (1, 1)):
            if shape[0] * shape[1] * size > MAX_NUMBERS:
                shape = coarser
        return torch.zeros(*shape, size)

    def add(self, layer: int, weights: Tensor) -> None:
        """Add a layer's weights (heads, N, first_code + N - 1), as `replay` gives them."""
        if layer not in self._layers:
            return
        weights = weights[self._heads].cpu()
        first_code = len(self._columns)
        rows, earlier = self._earlier
        self._put(self.text, layer, weights[..., :first_code] @ self._columns)
        self._put(self.patches, layer, weights[:, rows, first_code + earlier])

    def _put(self, maps: Tensor, layer: int, values: Tensor) -> None:
        if maps.shape[1] == 1:
            values = values.mean(0, keepdim=True)
        if maps.shape[0] == 1:
            maps[0] += values / len(self._layers)
        else:
            maps[self._layers.index(layer)] = values
