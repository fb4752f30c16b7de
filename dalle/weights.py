"""Weights that are read when they are asked for, and written one tensor at a time: memory for the largest tensor is
enough for a file of any size.

This is how checkpoints are converted. A `LazyTensor` knows its shape and type at once and its numbers later; a `Part`
is a network's configuration with its weights. Running a network is no business of this module.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import torch
from safetensors import safe_open
from torch import Tensor

from dalle.config import Config

__all__ = ["LazyTensor", "Part", "read_safetensors", "write_safetensors"]

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""As safetensors calls them."""


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor that is not in memory yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]
    """Reads it, anew at every call."""

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """One that is in memory after all."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    def then(self, function: Callable[[Tensor], Tensor]) -> "LazyTensor":
        """The same with a function applied after reading: a transposition, a slice, another type. What shape and type
        it gives is found out on a tensor without numbers."""
        result = function(torch.empty(self.shape, dtype=self.dtype, device="meta"))
        return LazyTensor(tuple(result.shape), result.dtype, lambda: function(self.load()))

    @classmethod
    def joined(cls, *parts: "LazyTensor") -> Self:
        """Parts one below the other, along their first axis."""
        assert len({(part.shape[1:], part.dtype) for part in parts}) == 1, [part.shape for part in parts]
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        return cls(shape, parts[0].dtype, lambda: torch.cat([part.load() for part in parts]))

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A network of a model directory: its configuration, and all its weights under the network's own names."""

    config: Config
    weights: Mapping[str, LazyTensor]


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a safetensors file, by name. Raises `OSError` or `SafetensorError` if it cannot be read."""

    def load(name: str) -> Tensor:
        with safe_open(path, "pt") as file:
            return file.get_tensor(name).clone()  # not the mapped file, whose pages would add up

    dtypes = {name: dtype for dtype, name in DTYPE_NAMES.items()}
    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: LazyTensor(tuple(piece.get_shape()), dtypes[piece.get_dtype()], functools.partial(load, name))
            for name, piece in slices.items()
        }


def write_safetensors(
    path: Path, weights: Mapping[str, LazyTensor], *, on_written: Callable[[int], None] | None = None
) -> None:
    """Write a safetensors file, byte for byte as the safetensors package would, one tensor at a time.

    `on_written` is told the bytes of each tensor when they are written. Raises `OSError` as writing does.
    """
    # the package's order: wide types first, so that every tensor is aligned, then by name
    names = sorted(weights, key=lambda name: (-weights[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        tensor = weights[name]
        stop = start + tensor.num_bytes
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in names:
            loaded = weights[name].load()
            assert (tuple(loaded.shape), loaded.dtype) == (weights[name].shape, weights[name].dtype), name
            file.write(loaded.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            if on_written is not None:
                on_written(weights[name].num_bytes)
