"""Key-value cache: one array over slots, allocated once, passed as an explicit argument.

Every picture of a model has the same number of tokens, so a slot is a plain stretch of `length` positions and nothing
is ever moved. The cache also remembers which positions of a slot may be looked at, since a prompt's padding may not;
and, for a decoder with token shift, the channels that later positions take over.
"""

import dataclasses

import torch
from torch import Tensor

__all__ = ["CacheView", "KVCache", "LayerCache"]


class KVCache:
    """Keys and values of all layers: (depth, 2, slots, kv_heads, length, head_dim).

    `padding` (slots, length) bool marks the positions that hold padding. `shifted` (depth, 2, slots, length,
    shift_width) has the inputs of both branches of each block, as far as token shift hands them on.
    """

    def __init__(
        self,
        *,
        depth: int,
        num_slots: int,
        num_kv_heads: int,
        length: int,
        head_dim: int,
        shift_width: int = 0,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (depth, 2, num_slots, num_kv_heads, length, head_dim)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.shifted = torch.zeros(depth, 2, num_slots, length, shift_width, device=device, dtype=dtype)
        self.padding = torch.zeros(num_slots, length, dtype=torch.bool, device=device)

    @property
    def num_bytes(self) -> int:
        """Memory of all that it holds but the padding."""
        return (self.values.numel() + self.shifted.numel()) * self.values.element_size()

    def copy_slot(self, slot: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """What the first `length` positions of a slot hold, for `fill_slot`."""
        return (
            self.values[:, :, slot, :, :length].clone(),
            self.shifted[:, :, slot, :length].clone(),
            self.padding[slot].clone(),
        )

    def fill_slot(self, slot: int, content: tuple[Tensor, Tensor, Tensor]) -> None:
        """Put into a slot what `copy_slot` took from one."""
        values, shifted, padding = content
        self.values[:, :, slot, :, : values.shape[3]] = values
        self.shifted[:, :, slot, : shifted.shape[2]] = shifted
        self.padding[slot] = padding

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

    def write_shifted(self, branch: int, inputs: Tensor) -> Tensor:
        """Store (B, L, shift_width), inputs of a branch, and return all of the slots, (B, length, shift_width)."""
        stored = self.view.cache.shifted[self.index, branch]
        stored[self.view.slots[:, None], self.view.positions] = inputs.to(stored.dtype)
        return stored[self.view.read]
