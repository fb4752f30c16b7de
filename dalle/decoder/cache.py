"""The key-value cache: one array over slots, allocated once, passed as an explicit argument.

Every picture of a model has the same number of tokens, so a slot is an array of `length` positions, without paging.
The cache also stores which positions of a slot hold padding, which is not attended to; and, for a decoder with token
shift, the channels that later positions take from earlier ones.
"""

import dataclasses

import torch
from torch import Tensor

__all__ = ["CacheView", "KVCache", "LayerCache"]


class KVCache:
    """Keys and values of all layers: (depth, 2, slots, kv_heads, length, head_dim).

    `padding` (slots, length) bool is true at positions that hold padding. `shifted` (depth, 2, slots, length,
    shift_width) holds the channels of both branches' inputs that token shift moves.
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
        """Size of the cache in bytes, without the padding mask."""
        return (self.values.numel() + self.shifted.numel()) * self.values.element_size()

    def copy_slot(self, slot: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Copy the first `length` positions of a slot, for `fill_slot`."""
        return (
            self.values[:, :, slot, :, :length].clone(),
            self.shifted[:, :, slot, :length].clone(),
            self.padding[slot].clone(),
        )

    def fill_slot(self, slot: int, content: tuple[Tensor, Tensor, Tensor]) -> None:
        """Write into a slot what `copy_slot` copied from one."""
        values, shifted, padding = content
        self.values[:, :, slot, :, : values.shape[3]] = values
        self.shifted[:, :, slot, : shifted.shape[2]] = shifted
        self.padding[slot] = padding

    def view(self, slots: Tensor, positions: Tensor) -> "CacheView":
        """View for a forward pass over rows in these slots (B,), which writes to positions (B, L)."""
        return CacheView(self, slots, slots, positions)

    def first_view(self, positions: Tensor) -> "CacheView":
        """View for a forward pass over the first B slots, in order, writing to positions (B, L). It reads in place,
        where `view` copies."""
        return CacheView(self, torch.arange(len(positions), device=positions.device), slice(len(positions)), positions)


@dataclasses.dataclass(frozen=True)
class CacheView:
    """The slots and positions of the cache that a forward pass writes to and reads from."""

    cache: KVCache
    slots: Tensor
    """Slot of each row: (B,) int64."""
    read: Tensor | slice
    """The same slots as an index for reading; a slice reads without a copy."""
    positions: Tensor
    """Positions of the tokens of the forward pass: (B, L) int64."""

    def layer(self, index: int) -> "LayerCache":
        return LayerCache(self, index)

    def mark_padding(self, is_padding: Tensor) -> Tensor:
        """Store which written positions hold padding, (B, L) bool; return the mask of whole slots, (B, length)."""
        self.cache.padding[self.slots[:, None], self.positions] = is_padding
        return self.cache.padding[self.read]


@dataclasses.dataclass(frozen=True)
class LayerCache:
    """One layer of a `CacheView`."""

    view: CacheView
    index: int

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, kv_heads, L, head_dim); return whole slots, (B, kv_heads, length, head_dim)."""
        stored_keys, stored_values = self.view.cache.values[self.index]
        slots, positions = self.view.slots[:, None], self.view.positions
        stored_keys[slots, :, positions] = keys.transpose(1, 2).to(stored_keys.dtype)
        stored_values[slots, :, positions] = values.transpose(1, 2).to(stored_values.dtype)
        return stored_keys[self.view.read], stored_values[self.view.read]

    def write_shifted(self, branch: int, inputs: Tensor) -> Tensor:
        """Store the inputs of a branch, (B, L, shift_width); return whole slots, (B, length, shift_width)."""
        stored = self.view.cache.shifted[self.index, branch]
        stored[self.view.slots[:, None], self.view.positions] = inputs.to(stored.dtype)
        return stored[self.view.read]
