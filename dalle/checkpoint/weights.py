"""Lazy weights: tensors that are read on request and written one at a time, so that a file of any size needs memory for
its largest tensor only.

Checkpoints are converted with these. A `LazyTensor` has its shape and type at once, and its numbers when it is loaded;
a `Part` is a network's configuration with its weights.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import torch
from safetensors import safe_open
from torch import Tensor

from dalle.config import Config
from dalle.errors import CheckpointError

__all__ = ["LazyTensor", "Part", "read_numbers", "read_safetensors", "write_safetensors"]

DTYPE_NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The names that safetensors has for types, in the order in which it stores them in a file: wide types first, so that
every tensor is aligned."""


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read from its file when `load` is called."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]
    """Reads the tensor, again at every call."""

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """A lazy tensor of one that is in memory."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    def then(self, function: Callable[[Tensor], Tensor]) -> "LazyTensor":
        """This tensor with a function applied after reading: a transposition, a slice, another type. The shape and type
        of the result are found by applying it to a tensor on the meta device."""
        result = function(torch.empty(self.shape, dtype=self.dtype, device="meta"))
        return LazyTensor(tuple(result.shape), result.dtype, lambda: function(self.load()))

    @classmethod
    def joined(cls, *parts: "LazyTensor") -> Self:
        """Tensors concatenated along their first axis; converted to float32 if their types differ."""
        assert len({part.shape[1:] for part in parts}) == 1, [part.shape for part in parts]
        if len({part.dtype for part in parts}) > 1:
            parts = tuple(part.then(lambda t: t.float()) for part in parts)
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        return cls(shape, parts[0].dtype, lambda: torch.cat([part.load() for part in parts]))

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A network of a model directory: its configuration, and its weights by their names in the network."""

    config: Config
    weights: Mapping[str, LazyTensor]


def read_numbers(path: Path, offset: int, numel: int, dtype: torch.dtype) -> Tensor:
    """Read `numel` numbers of a file, from the byte at `offset` on: (numel,), in memory of their own, not mapped.

    Raises `CheckpointError` if the file is too short.
    """
    numbers = torch.empty(numel, dtype=dtype)
    buffer = numbers.view(torch.uint8).numpy()
    done = 0
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        while done < len(buffer):
            if not (count := file.readinto(buffer[done:].data)):
                raise CheckpointError(f"{path} ends in the middle of a tensor: is it a whole download?")
            done += count
    return numbers


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a safetensors file, by name. Raises `OSError` or `SafetensorError` if it cannot be read,
    and `TypeError` for numbers of a type that torch's modules do not have."""
    with safe_open(path, "pt"):
        pass  # names, types, sizes and offsets agree with each other and with the file
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    dtypes = {name: dtype for dtype, name in DTYPE_NAMES.items()}
    weights = {}
    for name, entry in header.items():
        if entry["dtype"] not in dtypes:
            raise TypeError(f"{name} has numbers of type {entry['dtype']}")
        shape, dtype = tuple(entry["shape"]), dtypes[entry["dtype"]]
        load = functools.partial(_read_shaped, path, 8 + size + entry["data_offsets"][0], shape, dtype)
        weights[name] = LazyTensor(shape, dtype, load)
    return weights


def _read_shaped(path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return read_numbers(path, offset, torch.Size(shape).numel(), dtype).reshape(shape)


def write_safetensors(
    path: Path, weights: Mapping[str, LazyTensor], *, on_written: Callable[[int], None] | None = None
) -> None:
    """Write a safetensors file, byte for byte as the safetensors package would, one tensor at a time.

    `on_written` is called with the number of bytes of each tensor when it is written. Raises `OSError` as writing does.
    """
    order = list(DTYPE_NAMES)
    names = sorted(weights, key=lambda name: (order.index(weights[name].dtype), name))
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
            file.write(_bytes_of(weights[name]))
            if on_written is not None:
                on_written(weights[name].num_bytes)


def _bytes_of(lazy: LazyTensor) -> memoryview:
    tensor = lazy.load()
    assert (tuple(tensor.shape), tensor.dtype) == (lazy.shape, lazy.dtype)
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
