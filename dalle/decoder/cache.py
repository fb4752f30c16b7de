"""The key-value cache: arrays over slots, allocated once, one for each layer so that a step writes into them in place.

Every picture of a model has the same number of tokens, so a slot is an array of positions, without paging.
The cache also stores which positions of a slot hold padding, which is not attended to; and, for a decoder with token
shift, the channels that later positions take from earlier ones.
"""

import dataclasses

import torch
from torch import Tensor

from dalle.transformer.attention import LayerState

__all__ = ["LENGTH_BLOCK", "KVCache", "LayerCache", "PrefillView", "StepView", "cache_length", "read_length"]

LENGTH_BLOCK = 32
"""A step reads a multiple of so many positions. Attention then adds the same numbers in the same order as over the
whole length, and zeros (torch's does at multiples of 16): how far other rows are changes no bit of a row."""


def cache_length(length: int) -> int:
    """Number of positions that a cache has for rows of `length` tokens, of which the last is never read: whole blocks,
    and one position that no step reads, so that a compiled step needs no case for the whole array."""
    return -(-(length - 1) // LENGTH_BLOCK) * LENGTH_BLOCK + 1


def read_length(num_positions: int) -> int:
    """Number of positions that a step reads if it needs the first `num_positions`, which are fewer than a row has."""
    return -(-num_positions // LENGTH_BLOCK) * LENGTH_BLOCK


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCache:
    """What one layer stores of all slots."""

    keys: Tensor
    """(slots, kv_heads, length, head_dim)."""
    values: Tensor
    """(slots, kv_heads, length, head_dim)."""
    shifted: Tensor
    """Channels of both branches' inputs that token shift moves: (2, slots, length, shift_width)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KVCache:
    """The cache of all layers, and `padding` (slots, length) bool, true at positions that hold padding."""

    layers: tuple[LayerCache, ...]
    padding: Tensor

    @classmethod
    def allocate(
        cls,
        *,
        depth: int,
        num_slots: int,
        num_kv_heads: int,
        row_length: int,
        head_dim: int,
        shift_width: int = 0,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "KVCache":
        """A cache that holds zeros, for rows of `row_length` tokens."""
        length = cache_length(row_length)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, device=device, dtype=dtype)

        shape = (num_slots, num_kv_heads, length, head_dim)
        layers = tuple(
            LayerCache(keys=zeros(*shape), values=zeros(*shape), shifted=zeros(2, num_slots, length, shift_width))
            for _ in range(depth)
        )
        return cls(layers=layers, padding=torch.zeros(num_slots, length, dtype=torch.bool, device=device))

    @property
    def num_slots(self) -> int:
        return self.padding.shape[0]

    @property
    def num_bytes(self) -> int:
        """Size of the cache in bytes, without the padding mask."""
        arrays = [array for layer in self.layers for array in (layer.keys, layer.values, layer.shifted)]
        return sum(array.numel() * array.element_size() for array in arrays)

    def prefill_view(self, slot: int) -> "PrefillView":
        """View for a forward pass over the first tokens of the row in a slot."""
        return PrefillView(self, slot)

    def step_view(self, positions: Tensor, length: int) -> "StepView":
        """View for a forward pass over W tokens in each of the first B slots, at positions (B, W): tokens attend to the
        first `length` positions of their slots."""
        _, num_kv_heads, whole_length, _ = self.layers[0].keys.shape
        heads = torch.arange(len(positions) * num_kv_heads, device=positions.device).view(-1, num_kv_heads, 1)
        slots = torch.arange(len(positions), device=positions.device)[:, None]
        return StepView(
            self,
            length,
            head_rows=(heads * whole_length + positions[:, None]).flatten(),
            rows=(slots * whole_length + positions).flatten(),
        )

    def move(self, source: int, target: int) -> None:
        """Copy the whole content of a slot to another one."""
        for layer in self.layers:
            layer.keys[target] = layer.keys[source]
            layer.values[target] = layer.values[source]
            layer.shifted[:, target] = layer.shifted[:, source]
        self.padding[target] = self.padding[source]


@dataclasses.dataclass(frozen=True)
class PrefillView:
    """The first positions of one slot, which a forward pass over L tokens fills."""

    cache: KVCache
    slot: int

    def layer(self, index: int) -> LayerState:
        return _PrefillLayer(self.cache.layers[index], self.slot)

    def copy(self, length: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Copy the first `length` positions of the slot, for `paste`."""
        return [
            (
                layer.keys[self.slot, :, :length].clone(),
                layer.values[self.slot, :, :length].clone(),
                layer.shifted[:, self.slot, :length].clone(),
            )
            for layer in self.cache.layers
        ]

    def paste(self, content: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Write into the slot what `copy` copied from one."""
        for layer, (keys, values, shifted) in zip(self.cache.layers, content, strict=True):
            length = keys.shape[1]
            layer.keys[self.slot, :, :length] = keys
            layer.values[self.slot, :, :length] = values
            layer.shifted[:, self.slot, :length] = shifted


@dataclasses.dataclass(frozen=True)
class _PrefillLayer:
    layer: LayerCache
    slot: int

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.layer.keys[self.slot, :, : keys.shape[2]] = keys[0]
        self.layer.values[self.slot, :, : values.shape[2]] = values[0]
        return keys, values

    def write_shifted(self, branch: int, inputs: Tensor) -> Tensor:
        self.layer.shifted[branch, self.slot, : inputs.shape[1]] = inputs[0]
        return inputs


@dataclasses.dataclass(frozen=True)
class StepView:
    """W positions of each of the first B slots, to which a step writes, and the positions that it reads."""

    cache: KVCache
    length: int
    head_rows: Tensor
    """Where the step writes if slots, heads and positions are one axis: (B * kv_heads * W,) int64."""
    rows: Tensor
    """Where the step writes if slots and positions are one axis: (B * W,) int64."""

    def layer(self, index: int) -> LayerState:
        return _StepLayer(self, self.cache.layers[index])


@dataclasses.dataclass(frozen=True)
class _StepLayer:
    view: StepView
    layer: LayerCache

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        num_slots, length = len(keys), self.view.length
        for stored, new in ((self.layer.keys, keys), (self.layer.values, values)):
            flat = stored.view(-1, stored.shape[-1])
            flat.index_copy_(0, self.view.head_rows, new.reshape(-1, new.shape[-1]).to(stored.dtype))
        return self.layer.keys[:num_slots, :, :length], self.layer.values[:num_slots, :, :length]

    def write_shifted(self, branch: int, inputs: Tensor) -> Tensor:
        stored = self.layer.shifted[branch]
        stored.view(-1, stored.shape[-1]).index_copy_(0, self.view.rows, inputs.flatten(0, 1).to(stored.dtype))
        return stored[: len(inputs)]
