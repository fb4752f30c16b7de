"""Key-value cache: one array over slots, allocated once, passed as an explicit argument.

Every picture of a model has the same number of tokens, so a slot is a plain stretch of `length` positions and nothing
is ever moved. The cache also remembers which positions of a slot may be looked at, since a prompt's padding may not.
"""

import dataclasses

import torch
from torch import Tensor

__all__ = ["CacheView", "KVCache", "LayerCache"]


class KVCache:
    """Keys and values of all layers: (depth, 2, slots, kv_heads, length, head_dim).

    `padding` (slots, length) bool marks the positions that hold padding.
    """

    def __init__(
        self,
        *,
        depth: int,
        num_slots: int,
        num_kv_heads: int,
        length: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (depth, 2, num_slots, num_kv_heads, length, head_dim)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.padding = torch.zeros(num_slots, length, dtype=torch.bool, device=device)

    @property
    def num_bytes(self) -> int:
        """Memory of the keys and values."""
        return self.values.numel() * self.values.element_size()

    def view(self, slots: Tensor, positions: Tensor) -> "CacheView":
        """The cache as a forward pass over rows at these slots (B,) sees it, writing to positions (B, L)."""
        return CacheView(self, slots, slots, positions)

    def first_view(self, positions: Tensor) -> "CacheView":
        """The cache as a forward pass over the first B slots, in order, sees it. It reads in place, where `view`
        copies."""
        return CacheView(self, torch.arange(len(positions), device=positions.device), slice(len(positions)), positions)


@dataclasses.dataclass(frozen=True)
class CacheView:
    """The rows of a forward pass, and where in the cache they are."""

    cache: KVCache
    slots: Tensor
    """(B,) int64."""
    read: Tensor | slice
    """The same slots as an index to read by: a slice copies nothing."""
    positions: Tensor
    """(B, L) int64."""

    def layer(self, index: int) -> "LayerCache":
        return LayerCache(self, index)

    def mark_padding(self, is_padding: Tensor) -> Tensor:
        """Note which of the positions written hold padding, (B, L) bool; returns it for the whole slots (B, length)."""
        self.cache.padding[self.slots[:, None], self.positions] = is_padding
        return self.cache.padding[self.read]


@dataclasses.dataclass(frozen=True)
class LayerCache:
    """One layer of a `CacheView`."""

    view: CacheView
    index: int

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, kv_heads, L, head_dim) and return all of the slots, (B, kv_heads, length, head_dim)."""
        stored_keys, stored_values = self.view.cache.values[self.index]
        slots, positions = self.view.slots[:, None], self.view.positions
        stored_keys[slots, :, positions] = keys.transpose(1, 2).to(stored_keys.dtype)
        stored_values[slots, :, positions] = values.transpose(1, 2).to(stored_values.dtype)
        return stored_keys[self.view.read], stored_values[self.view.read]
