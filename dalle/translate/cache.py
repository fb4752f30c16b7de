"""`DecodingCache`: keys and values of the target tokens that were decoded so far.

Unlike the cache of `dalle.decoder`, whose slots hold pictures of one known length, it grows token by token, and its
rows change places when a beam goes on from another one.
"""

import torch
from torch import Tensor

from dalle.transformer.attention import LayerState

__all__ = ["DecodingCache"]


class _Layer:
    """One layer's keys and values, (B, kv_heads, length, head_dim)."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values

    def write_shifted(self, branch: int, inputs: Tensor) -> Tensor:
        raise AssertionError("an encoder-decoder has no token shift")


class DecodingCache:
    """The cache of all layers of a decoder; empty at first."""

    def __init__(self, depth: int) -> None:
        self._layers = [_Layer() for _ in range(depth)]

    @property
    def length(self) -> int:
        """Number of tokens that the cache holds. It changes when the last layer has been written."""
        keys = self._layers[-1].keys
        return 0 if keys is None else keys.shape[2]

    def layer(self, index: int) -> LayerState:
        """The part that one layer reads and writes."""
        return self._layers[index]

    def take(self, rows: Tensor) -> None:
        """Keep these rows (B',) int64 of the batch, in this order; a row may be there several times."""
        for layer in self._layers:
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
