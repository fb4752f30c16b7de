"""A restricted unpickler for checkpoints: plain containers, lazy tensors, and stubs for a list of foreign classes.

A pickle is a program that may call anything. This reader allows a short list of names: containers, torch's tensors and
storages, and the classes that the projects of `dalle.interop` leave in their files, each replaced by a stub that stores
its state and does nothing. Any other name is rejected, and named in the message, before it is imported or called. A
tensor's numbers stay in the file until they are needed.
"""

import collections
import dataclasses
import math
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from torch import Tensor

from dalle.checkpoint.weights import LazyTensor, read_numbers

__all__ = ["MAX_PICKLE_BYTES", "RefusedError", "Storage", "Stub", "Unpickler", "module_weights"]

MAX_PICKLE_BYTES = 16 << 20
"""Largest size of a pickle without its tensors' numbers: ten times that of the largest model with its optimizer's
state. One byte of a pickle may take two hundred bytes of memory."""
MAX_COPIES = 1 << 20
"""Most list items that may be copied into sets and dicts, as in the state_dict of a torch before 1.0."""
MAX_AXES = 64
"""Most axes of a tensor, which is torch's own limit."""

STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
STUBS = frozenset(
    {
        # Lightning stores the states of its callbacks under their classes
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        # LlamaGen stores the arguments of its training programs
        "argparse.Namespace",
        # OpenAI published its image tokenizer as pickled modules
        "dall_e.decoder.Decoder",
        "dall_e.decoder.DecoderBlock",
        "dall_e.encoder.Encoder",
        "dall_e.encoder.EncoderBlock",
        "dall_e.utils.Conv2d",
        "torch.device",
        "torch.nn.modules.activation.ReLU",
        "torch.nn.modules.container.Sequential",
        "torch.nn.modules.linear.Identity",
        "torch.nn.modules.pooling.MaxPool2d",
        "torch.nn.modules.upsampling.Upsample",
    }
)


class Stub:
    """Placeholder for an object of a foreign class; `fields` is its pickled state."""

    name = ""
    """Full name of the foreign class."""
    fields: dict[str, Any]

    def __new__(cls, *_arguments: object) -> "Stub":  # pickles call it; the arguments are not needed
        stub = super().__new__(cls)
        stub.fields = {}
        return stub


_STUB_CLASSES = {name: type("Stub", (Stub,), {"name": name}) for name in STUBS}


@dataclasses.dataclass
class Storage:
    """A sequence of numbers in the file. In the legacy format its offset is known only after the pickle has been
    read."""

    path: Path
    dtype: torch.dtype
    numel: int
    offset: int = -1


class _Bounded:
    """A file limited to `MAX_PICKLE_BYTES`, since an unpickler reads as many bytes as the pickle declares."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.left = MAX_PICKLE_BYTES

    def read(self, size: int) -> bytes:
        return self._counted(self.file.read(min(size, self.left)))

    def readline(self) -> bytes:
        return self._counted(self.file.readline(self.left))

    def _counted(self, data: bytes) -> bytes:
        self.left -= len(data)
        return data


class RefusedError(pickle.UnpicklingError):
    """The pickle asks for a name or an operation that is not allowed."""


def _checked(keys: list[Any]) -> list[Any]:
    """Check keys before they are hashed. Tuples inside tuples are rejected: Python hashes them recursively without a
    limit, which crashes the process, and once for every path to each, which may take forever. Frozensets, the only
    other nested keys, cannot be made here."""
    for key in keys:
        if isinstance(key, tuple) and any(isinstance(part, tuple) for part in key):
            raise RefusedError("a key of tuples within tuples")
    return keys


# Python's unpickler in Python is slower than the one in C and safer: it allocates memory only for bytes in the file.
class Unpickler(pickle._Unpickler):
    """Unpickler that finds only the names listed in this module."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def __init__(self, file: IO[bytes], storage: Callable[[str, torch.dtype, int], Storage]) -> None:
        super().__init__(_Bounded(file))
        self.storage = storage
        self.copies_left = MAX_COPIES

    def load_build(self) -> None:
        """Set the state of a stub; other states, such as the metadata of a state_dict, are dropped."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Stub) and isinstance(state, dict):
            self.stack[-1].fields = state

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:
        """Reject a bytearray, for which Python would allocate its declared size before reading."""
        raise RefusedError("a bytearray")

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_frozenset(self) -> None:
        """Reject a frozenset: comparing nested equal ones may take forever."""
        raise RefusedError("a frozenset")

    dispatch[pickle.FROZENSET[0]] = load_frozenset

    def _copied(self, items: Iterable[Any]) -> list[Any]:
        """Copy items within the limit `MAX_COPIES`: a few bytes of a pickle may copy a long list again and again."""
        copy = list(items)
        self.copies_left -= len(copy)
        if self.copies_left < 0:
            raise RefusedError(f"copies of more than {MAX_COPIES} items")
        return copy

    def _ordered_dict(self, items: Iterable[Any] = ()) -> dict[Any, Any]:
        pairs = self._copied(items)
        _checked([key for key, _ in pairs])
        return collections.OrderedDict(pairs)

    def _set(self, items: Iterable[Any] = ()) -> set[Any]:
        return set(_checked(self._copied(items)))

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        module = "builtins" if module == "__builtin__" else module  # its name in Python 2 and in protocol 2
        match f"{module}.{name}":
            case "collections.OrderedDict":
                return self._ordered_dict
            case "builtins.set":
                return self._set
            case "torch._utils._rebuild_tensor_v2":
                return self._tensor
            case "torch._utils._rebuild_parameter":
                return _parameter
            case full if full in _STUB_CLASSES:
                return _STUB_CLASSES[full]
            case full:
                raise RefusedError(full)

    def get_extension(self, code: int) -> None:
        raise RefusedError(f"extension {code}")

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # the legacy format: a class with its source code
            return pid[1]
        kind, dtype, key, _place, numel, *view = pid
        if not isinstance(kind, str) or not isinstance(key, str | int):
            raise RefusedError("a persistent object without a name")
        if kind != "storage" or not isinstance(dtype, torch.dtype) or (view and view[0] is not None):
            raise RefusedError(f"a persistent object of kind {kind!r}")
        if type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError("a storage of invalid size")
        return self.storage(str(key), dtype, numel)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_rest: object) -> LazyTensor:
        if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise pickle.UnpicklingError("an invalid tensor")
        numbers = (offset, *size[: MAX_AXES + 1], *stride[: MAX_AXES + 1])
        if (
            any(type(number) is not int or not 0 <= number < 1 << 63 for number in numbers)
            or len(size) != len(stride)
            or len(size) > MAX_AXES
        ):
            raise pickle.UnpicklingError("an invalid tensor")
        shape = tuple(size)
        numel = math.prod(shape)  # torch's product would overflow
        span = 1 + sum((extent - 1) * step for extent, step in zip(shape, stride, strict=True)) if numel else 0
        if offset + span > storage.numel or numel > storage.numel:
            raise pickle.UnpicklingError(f"a tensor of shape {shape} reaches beyond its {storage.numel} numbers")
        return LazyTensor(shape, storage.dtype, lambda: _read_tensor(storage, offset, span, shape, tuple(stride)))


def _hashing(load: Callable[[Unpickler], None], keys: slice) -> Callable[[Unpickler], None]:
    def checked(unpickler: Unpickler) -> None:
        _checked(unpickler.stack[keys])
        load(unpickler)

    return checked


HASHING = {
    pickle.SETITEM: slice(-2, -1),
    pickle.SETITEMS: slice(None, None, 2),
    pickle.DICT: slice(None, None, 2),
    pickle.ADDITEMS: slice(None),
}
"""Opcodes that hash keys, and the places of the keys on the stack."""
Unpickler.dispatch |= {code[0]: _hashing(Unpickler.dispatch[code[0]], keys) for code, keys in HASHING.items()}


def _parameter(data: Any, *_rest: object) -> Any:
    return data


def _read_tensor(storage: Storage, offset: int, span: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    start = storage.offset + offset * storage.dtype.itemsize
    return read_numbers(storage.path, start, span, storage.dtype).as_strided(shape, stride)


def module_weights(module: Stub, prefix: str = "") -> dict[str, LazyTensor]:
    """The weights of a pickled module, under the names of its state_dict."""
    weights = {
        f"{prefix}{name}": value
        for kind in ("_parameters", "_buffers")
        for name, value in module.fields.get(kind, {}).items()
        if isinstance(value, LazyTensor)
    }
    for name, child in module.fields.get("_modules", {}).items():
        if isinstance(child, Stub):
            weights |= module_weights(child, f"{prefix}{name}.")
    return weights
