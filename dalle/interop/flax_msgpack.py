"""Flax's msgpack files, read and written without JAX: nested dicts of arrays as lazy tensors by their joined names.

The reader maps the file into memory and loads an array only when it is needed. It knows the part of MessagePack
(github.com/msgpack/msgpack) that Flax writes: maps, strings, and arrays as extension 1, whose content is a message with
shape, type and bytes. Flax writes an array of more than a gigabyte as a map with its shape and its numbers in chunks.
"""

import math
import mmap
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import torch

from dalle.checkpoint.weights import LazyTensor, read_numbers
from dalle.errors import CheckpointError

__all__ = ["read_flax", "write_flax"]

Item = TypeVar("Item")

ARRAY = 1
"""Flax's extension type for an array."""
CHUNKED = "__msgpack_chunked_array__"
"""First key of a map that is an array in chunks."""
TRUE = 0xC3
MAX_DEPTH = 32
DTYPES = {
    "bfloat16": torch.bfloat16,
    "bool": torch.bool,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
}
LENGTHS = {
    **{0xC4 + i: ("bin", 1 << i) for i in range(3)},
    **{0xC7 + i: ("ext", 1 << i) for i in range(3)},
    **{0xD9 + i: ("str", 1 << i) for i in range(3)},
    **{0xDC + i: ("array", 2 << i) for i in range(2)},
    **{0xDE + i: ("map", 2 << i) for i in range(2)},
}
"""First byte of a message -> its kind, and the number of bytes of its length."""
INTEGERS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}


class _Reader:
    """Reads messages from mapped bytes; the content of arrays is located, not copied."""

    def __init__(self, data: mmap.mmap, start: int = 0, stop: int | None = None) -> None:
        self.data = data
        self.at = start
        self.stop = len(data) if stop is None else stop

    def take(self, size: int) -> int:
        """Advance by `size` bytes and return the position before."""
        start = self.at
        if start + size > self.stop:
            raise ValueError(f"it ends at byte {self.stop}, in the middle of {size} bytes from {start}")
        self.at += size
        return start

    def number(self, size: int) -> int:
        start = self.take(size)
        return int.from_bytes(self.data[start : start + size], "big")

    def head(self) -> tuple[str, int]:
        """(kind, length) of the next message; for an integer, its value."""
        first = self.number(1)
        if first < 0x80:
            return "int", first
        if first < 0x90:
            return "map", first & 0x0F
        if first < 0xA0:
            return "array", first & 0x0F
        if first < 0xC0:
            return "str", first & 0x1F
        if 0xD4 <= first <= 0xD8:
            return "ext", 1 << (first - 0xD4)
        if first in INTEGERS:
            return "int", self.number(struct.calcsize(INTEGERS[first]))
        if first not in LENGTHS:
            raise ValueError(f"a message of type {first:#x} at byte {self.at - 1}, a type that Flax does not write")
        kind, size = LENGTHS[first]
        return kind, self.number(size)

    def expect(self, kind: str) -> int:
        found, length = self.head()
        if found != kind:
            raise ValueError(f"{found} at byte {self.at}, where {kind} was expected")
        return length

    def text(self) -> str:
        length = self.expect("str")
        start = self.take(length)
        return str(self.data[start : start + length], "utf-8")

    def array(self, path: Path) -> LazyTensor:
        """Read the content of an array extension whose head and type have been read."""
        if self.expect("array") != 3:
            raise ValueError(f"no shape, type and bytes at byte {self.at}")
        shape = tuple(self.expect("int") for _ in range(self.expect("array")))
        name = self.text()
        if name not in DTYPES:
            raise ValueError(f"an array of {name}")
        length = self.expect("bin")
        start = self.take(length)
        numel = 1
        for extent in shape:
            numel *= extent
        if numel * DTYPES[name].itemsize != length:
            raise ValueError(f"an array of shape {shape} and type {name} in {length} bytes")
        return LazyTensor(shape, DTYPES[name], lambda: read_numbers(path, start, numel, DTYPES[name]).reshape(shape))

    def extension(self, path: Path, length: int) -> LazyTensor:
        """Read an array extension whose length has been read."""
        if self.number(1) != ARRAY:
            raise ValueError(f"no array in the extension at byte {self.at}")
        stop = self.at + length
        return _Reader(self.data, self.take(length), stop).array(path)

    def chunked(self, path: Path) -> LazyTensor:
        """Read an array in chunks, {CHUNKED: true, "shape": {"0": ...}, "chunks": {"0": ...}}, after the first key."""
        if self.number(1) != TRUE or self.text() != "shape":
            raise ValueError(f"no shape of an array in chunks at byte {self.at}")
        shape = tuple(self._numbered(lambda: self.expect("int")))
        if self.text() != "chunks":
            raise ValueError(f"no chunks of an array at byte {self.at}")
        chunks = self._numbered(lambda: self.extension(path, self.expect("ext")))
        numel = sum(math.prod(chunk.shape) for chunk in chunks)
        if numel != math.prod(shape) or len({chunk.dtype for chunk in chunks}) != 1:
            raise ValueError(f"an array of shape {shape} in chunks of {[chunk.shape for chunk in chunks[:20]]}")
        return LazyTensor.joined(*(chunk.then(torch.flatten) for chunk in chunks)).then(lambda t: t.reshape(shape))

    def _numbered(self, read: Callable[[], Item]) -> list[Item]:
        """Read a sequence, which Flax writes as a map with the keys "0", "1", ..."""
        values = []
        for i in range(self.expect("map")):
            if self.text() != str(i):
                raise ValueError(f"no item {i} of a sequence at byte {self.at}")
            values.append(read())
        return values


def read_flax(path: Path) -> dict[str, LazyTensor]:
    """Read the arrays of a `flax_model.msgpack`, by their names joined with slashes.

    Raises `CheckpointError`, which names the file, if it is truncated or is not such a file.
    """
    weights: dict[str, LazyTensor] = {}

    def walk(reader: _Reader, name: str, depth: int) -> None:
        kind, length = reader.head()
        if kind == "map" and depth < MAX_DEPTH:
            for i in range(length):
                key = reader.text()
                if key == CHUNKED and (i, length) == (0, 3):
                    weights[name] = reader.chunked(path)
                    break
                walk(reader, f"{name}/{key}" if name else key, depth + 1)
        elif kind == "ext":
            try:
                weights[name] = reader.extension(path, length)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        else:
            raise ValueError(f"{kind} at byte {reader.at}, where a dict or an array was expected")

    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data)
            walk(reader, "", 0)
            if reader.at != len(data):
                raise ValueError(f"{len(data) - reader.at} bytes too many")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not a msgpack file of Flax, or an incomplete one: {error}") from error
    return weights


def write_flax(path: Path, weights: Mapping[str, LazyTensor]) -> None:
    """Write arrays as Flax does, the inverse of `read_flax`, one at a time. Raises `OSError` if writing fails."""
    tree: dict[str, Any] = {}
    for name in sorted(weights):
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = weights[name]
    with open(path, "wb") as file:
        _write_tree(file, tree)


def _write_tree(file: IO[bytes], node: Any) -> None:
    if isinstance(node, dict):
        file.write(_head("map", len(node)))
        for name, child in node.items():
            file.write(_text(name))
            _write_tree(file, child)
        return
    names = {dtype: name for name, dtype in DTYPES.items()}
    data = node.load().contiguous().reshape(-1).view(torch.uint8).numpy().data
    message = b"".join([_head("array", 3), _shape(node.shape), _text(names[node.dtype]), _head("bin", len(data))])
    file.write(_head("ext", len(message) + len(data)) + bytes([ARRAY]) + message)
    file.write(data)


def _shape(shape: Iterable[int]) -> bytes:
    extents = list(shape)
    return _head("array", len(extents)) + b"".join(map(_integer, extents))


def _integer(value: int) -> bytes:
    if value < 0x80:
        return bytes([value])
    first, form = next(item for item in INTEGERS.items() if value < 256 ** struct.calcsize(item[1]))
    return bytes([first]) + struct.pack(form, value)


def _text(text: str) -> bytes:
    data = text.encode()
    return _head("str", len(data)) + data


def _head(kind: str, length: int) -> bytes:
    """The first bytes of a message, in their shortest form."""
    short = {"map": (0x80, 16), "array": (0x90, 16), "str": (0xA0, 32)}
    if kind in short and length < short[kind][1]:
        return bytes([short[kind][0] | length])
    first, size = next(
        (first, size) for first, (found, size) in LENGTHS.items() if found == kind and length < 256**size
    )
    return bytes([first]) + length.to_bytes(size, "big")
