"""The pickles of checkpoints, read without running any of them: plain containers, lazy tensors, and stubs with names.

A pickle is a program. This reader knows a short list of names: the containers, torch's tensors and storages, and the
classes that the projects of `dalle.interop` are known to leave in their files, for each of which there is a stub that
holds what it was given and does nothing. Any other name is refused, with the name in the message, before anything of
it happens. A tensor's numbers stay in the file until they are asked for.
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
"""Of the pickle alone, without the numbers: ten times that of the largest model with its optimizer's state. What a byte
of a pickle makes may take two hundred of memory."""
MAX_COPIES = 1 << 20
"""Items of lists that become sets and dicts: a state_dict of torch before 1.0 is made of one."""
MAX_AXES = 64
"""Of a tensor; torch has no more."""

STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
STUBS = frozenset(
    {
        # Lightning keys the states of its callbacks by their classes
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        # LlamaGen keeps the arguments of its training programs
        "argparse.Namespace",
        # OpenAI published its image tokenizer as whole modules
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
    """Stands for an object of a foreign class; `fields` is the state that was pickled."""

    name = ""
    """Of the foreign class, in full."""
    fields: dict[str, Any]

    def __new__(cls, *_arguments: object) -> "Stub":  # the one that pickles call; what they pass is not needed
        stub = super().__new__(cls)
        stub.fields = {}
        return stub


_STUB_CLASSES = {name: type("Stub", (Stub,), {"name": name}) for name in STUBS}


@dataclasses.dataclass
class Storage:
    """A run of numbers in the file. In the plain stream its place is known only after the pickle has been read."""

    path: Path
    dtype: torch.dtype
    numel: int
    offset: int = -1


class _Bounded:
    """A file that ends after `MAX_PICKLE_BYTES`: unpicklers ask for what the pickle says."""

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
    """The pickle asks for something that is not on the list."""


def _checked(keys: list[Any]) -> list[Any]:
    """What is about to be hashed. Tuples within tuples are refused: Python hashes them without a limit to their depth,
    which ends the process, and once for every way that leads to one, which takes forever. Frozensets, the only other
    keys with something in them, cannot be made here."""
    for key in keys:
        if isinstance(key, tuple) and any(isinstance(part, tuple) for part in key):
            raise RefusedError("a key of tuples within tuples")
    return keys


# The unpickler written in Python is slower than the one in C, and safer: memory is taken only for what is in the file.
class Unpickler(pickle._Unpickler):
    """Finds nothing but what is listed above."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def __init__(self, file: IO[bytes], storage: Callable[[str, torch.dtype, int], Storage]) -> None:
        super().__init__(_Bounded(file))
        self.storage = storage
        self.copies_left = MAX_COPIES

    def load_build(self) -> None:
        """Give a stub its state; what else would have one (the metadata of a state_dict) goes without."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Stub) and isinstance(state, dict):
            self.stack[-1].fields = state

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:
        """Python makes room for all of one before it reads."""
        raise RefusedError("a bytearray")

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_frozenset(self) -> None:
        """Two equal ones that hold equal ones in turn take forever to compare."""
        raise RefusedError("a frozenset")

    dispatch[pickle.FROZENSET[0]] = load_frozenset

    def _copied(self, items: Iterable[Any]) -> list[Any]:
        """A few bytes of a pickle copy a list that is there, as often as they like."""
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
        module = "builtins" if module == "__builtin__" else module  # as Python 2 called it, and protocol 2 does
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
        if pid[0] == "module":  # the plain stream: a class, with its source code
            return pid[1]
        kind, dtype, key, _place, numel, *view = pid
        if not isinstance(kind, str) or not isinstance(key, str | int):
            raise RefusedError("a persistent object without a name")
        if kind != "storage" or not isinstance(dtype, torch.dtype) or (view and view[0] is not None):
            raise RefusedError(f"a persistent object of kind {kind!r}")
        if type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError("a storage whose size is none")
        return self.storage(str(key), dtype, numel)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_rest: object) -> LazyTensor:
        if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise pickle.UnpicklingError("a tensor that is none")
        numbers = (offset, *size[: MAX_AXES + 1], *stride[: MAX_AXES + 1])
        if (
            any(type(number) is not int or not 0 <= number < 1 << 63 for number in numbers)
            or len(size) != len(stride)
            or len(size) > MAX_AXES
        ):
            raise pickle.UnpicklingError("a tensor that is none")
        shape = tuple(size)
        numel = math.prod(shape)  # torch's own product wraps around
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
"""What hashes something, and where on the stack that is."""
Unpickler.dispatch |= {code[0]: _hashing(Unpickler.dispatch[code[0]], keys) for code, keys in HASHING.items()}


def _parameter(data: Any, *_rest: object) -> Any:
    return data


def _read_tensor(storage: Storage, offset: int, span: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    start = storage.offset + offset * storage.dtype.itemsize
    return read_numbers(storage.path, start, span, storage.dtype).as_strided(shape, stride)


def module_weights(module: Stub, prefix: str = "") -> dict[str, LazyTensor]:
    """The weights of a module that was pickled whole, by the names that its state_dict would have."""
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
