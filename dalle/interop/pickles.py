"""What torch.save wrote, read without running any of it: plain containers, lazy tensors, and stubs with names.

A pickle is a program. This reader knows a short list of names: the containers, torch's tensors and storages, and the
classes that the projects of `dalle.interop` are known to leave in their files, for each of which there is a stub that
holds what it was given and does nothing. Any other name is refused, with the name in the message, before anything of
it happens. Sizes are checked against the file before memory is taken, and a tensor's numbers stay in the file until
they are asked for. Both of torch's layouts are read: the zip archive, and the plain stream of torch before 1.6.
"""

import collections
import dataclasses
import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from torch import Tensor

from dalle.errors import CheckpointError
from dalle.weights import LazyTensor, read_numbers

__all__ = ["StrangeFileError", "Stub", "looks_saved", "module_weights", "read_pickle"]

MAX_PICKLE_BYTES = 16 << 20
"""Of the pickle alone, without the numbers: ten times that of the largest model with its optimizer's state. What a byte
of a pickle makes may take two hundred of memory."""
ZIP = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

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
class _Storage:
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


class StrangeFileError(CheckpointError):
    """The file is no checkpoint of a family that is known here, nor a part of one: torch.save did not write it, or it
    asks for names that none needs."""


class _Refused(pickle.UnpicklingError):
    """The pickle asks for something that is not on the list."""


def _checked(keys: list[Any]) -> list[Any]:
    """What is about to be hashed. Tuples within tuples are refused: Python hashes them without a limit to their depth,
    which ends the process, and once for every way that leads to one, which takes forever."""
    for key in keys:
        if isinstance(key, tuple) and any(isinstance(part, tuple) for part in key):
            raise _Refused("a key of tuples within tuples")
    return keys


def _ordered_dict(items: Iterable[Any] = ()) -> dict[Any, Any]:
    pairs = list(items)
    _checked([key for key, _ in pairs])
    return collections.OrderedDict(pairs)


def _set(items: Iterable[Any] = ()) -> set[Any]:
    return set(_checked(list(items)))


# The unpickler written in Python is slower than the one in C, and safer: memory is taken only for what is in the file.
class _Unpickler(pickle._Unpickler):
    """Finds nothing but what is listed above."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def __init__(self, file: IO[bytes], storage: Callable[[str, torch.dtype, int], _Storage]) -> None:
        super().__init__(_Bounded(file))
        self.storage = storage

    def load_build(self) -> None:
        """Give a stub its state; what else would have one (the metadata of a state_dict) goes without."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Stub) and isinstance(state, dict):
            self.stack[-1].fields = state

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:
        """Python makes room for all of one before it reads."""
        raise _Refused("a bytearray")

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        module = "builtins" if module == "__builtin__" else module  # as Python 2 called it, and protocol 2 does
        match f"{module}.{name}":
            case "collections.OrderedDict":
                return _ordered_dict
            case "builtins.set":
                return _set
            case "torch._utils._rebuild_tensor_v2":
                return self._tensor
            case "torch._utils._rebuild_parameter":
                return _parameter
            case full if full in _STUB_CLASSES:
                return _STUB_CLASSES[full]
            case full:
                raise _Refused(full)

    def get_extension(self, code: int) -> None:
        raise _Refused(f"extension {code}")

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # the plain stream: a class, with its source code
            return pid[1]
        kind, dtype, key, _place, numel, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or (view and view[0] is not None):
            raise _Refused(f"a persistent object of kind {kind!r}")
        if type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError(f"a storage of {numel!r} numbers")
        return self.storage(str(key), dtype, numel)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_rest: object) -> LazyTensor:
        numbers = (offset, *size, *stride)
        if (
            not isinstance(storage, _Storage)
            or any(type(number) is not int or number < 0 for number in numbers)
            or len(size) != len(stride)
        ):
            raise pickle.UnpicklingError("a tensor that is none")
        shape = tuple(size)
        numel = math.prod(shape)  # torch's own product wraps around
        span = 1 + sum((extent - 1) * step for extent, step in zip(shape, stride, strict=True)) if numel else 0
        if offset + span > storage.numel or numel > storage.numel:
            raise pickle.UnpicklingError(f"a tensor of shape {shape} reaches beyond its {storage.numel} numbers")
        return LazyTensor(shape, storage.dtype, lambda: _read_tensor(storage, offset, span, shape, tuple(stride)))


def _hashing(load: Callable[[_Unpickler], None], keys: slice) -> Callable[[_Unpickler], None]:
    def checked(unpickler: _Unpickler) -> None:
        _checked(unpickler.stack[keys])
        load(unpickler)

    return checked


HASHING = {
    pickle.SETITEM: slice(-2, -1),
    pickle.SETITEMS: slice(None, None, 2),
    pickle.DICT: slice(None, None, 2),
    pickle.ADDITEMS: slice(None),
    pickle.FROZENSET: slice(None),
}
"""What hashes something, and where on the stack that is."""
_Unpickler.dispatch |= {code[0]: _hashing(_Unpickler.dispatch[code[0]], keys) for code, keys in HASHING.items()}


def _parameter(data: Any, *_rest: object) -> Any:
    return data


def _read_tensor(storage: _Storage, offset: int, span: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    start = storage.offset + offset * storage.dtype.itemsize
    return read_numbers(storage.path, start, span, storage.dtype).as_strided(shape, stride)


def looks_saved(path: Path) -> bool:
    """Whether a file begins as what torch.save writes does, in either layout."""
    number = LEGACY_MAGIC.to_bytes(10, "little")
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(ZIP) or number in start


def read_pickle(path: Path) -> Any:
    """What torch.save wrote into a file: dicts, lists and the like of `LazyTensor`s and `Stub`s.

    Raises `CheckpointError`, naming the file: for one that is cut short or damaged, for one that torch.save did not
    write, and for one whose pickle asks for a name that is not listed here.
    """
    start = b""
    try:
        with open(path, "rb") as file:
            start = file.read(len(ZIP))
        return _read_zip(path) if start == ZIP else _read_stream(path)
    except _Refused as error:
        raise StrangeFileError(
            f"{path} asks for {error} on loading, which no checkpoint of a known family needs; nothing of it was run"
        ) from error
    except (zipfile.BadZipFile, EOFError) as error:
        raise CheckpointError(f"{path} is cut short or damaged ({error}): is it a whole download?") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged pickle makes of the unpickler's stack
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        kind = CheckpointError if start == ZIP else StrangeFileError
        raise kind(f"{path} is no file of torch.save's, or a damaged one ({reason})") from error


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise CheckpointError(f"{path} is a zip file, but none of torch.save's: it has no single data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        for name in ("data.pkl", "byteorder"):
            info = entries.get(f"{root}{name}")
            if info is not None and info.file_size > MAX_PICKLE_BYTES:
                raise CheckpointError(f"{path}: its {name} has more than {MAX_PICKLE_BYTES >> 20} MB")
            if info is not None and info.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{path}: its {name} is compressed, which torch.save does not do")
        order = entries.get(f"{root}byteorder")
        if order is not None and archive.read(order) != b"little":
            raise CheckpointError(f"{path} was written on a big-endian machine, which is not read")
        data = archive.read(entries[pickles[0]])
    size = path.stat().st_size

    def storage(key: str, dtype: torch.dtype, numel: int) -> _Storage:
        info = entries.get(f"{root}data/{key}")
        if info is None or info.compress_type != zipfile.ZIP_STORED or info.file_size != numel * dtype.itemsize:
            raise CheckpointError(f"{path}: its storage {key} is missing, compressed or of another size")
        with open(path, "rb") as file:
            file.seek(info.header_offset)
            local = file.read(30)
        start = info.header_offset + 30 + sum(int.from_bytes(local[i : i + 2], "little") for i in (26, 28))
        if local[:4] != ZIP or start + info.file_size > size:
            raise CheckpointError(f"{path}: its storage {key} lies outside the file")
        return _Storage(path, dtype, numel, start)

    return _Unpickler(io.BytesIO(data), storage).load()


def _read_stream(path: Path) -> Any:
    """Magic number, protocol, system, object, keys: five pickles; then each storage, as its length and its numbers."""
    storages: dict[str, _Storage] = {}

    def storage(key: str, dtype: torch.dtype, numel: int) -> _Storage:
        if numel * dtype.itemsize > size:
            raise CheckpointError(
                f"{path} is cut short: its storage {key} has {numel} numbers; is it a whole download?"
            )
        return storages.setdefault(key, _Storage(path, dtype, numel))

    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        magic, protocol, _system, content, keys = (_Unpickler(file, storage).load() for _ in range(5))
        if (magic, protocol) != (LEGACY_MAGIC, LEGACY_PROTOCOL):
            raise CheckpointError(f"{path} is no file of torch.save's")
        for key in keys:
            found = storages[str(key)]
            numel = int.from_bytes(file.read(8), "little")
            found.offset = file.tell()
            stop = found.offset + found.numel * found.dtype.itemsize
            if numel != found.numel or stop > size:
                raise CheckpointError(f"{path} is cut short in its storage {key}: is it a whole download?")
            file.seek(stop)
    if missing := [key for key, found in storages.items() if found.offset < 0]:
        raise CheckpointError(f"{path} is damaged: it lacks the storage {missing[0]}")
    return content


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
