"""Reader for files of torch.save in both formats: the zip archive, and the legacy stream of torch before 1.6.

A file is a pickle and the numbers of its storages. The pickle is read by `pickles`, which runs no code from it. This
module locates the storages, and checks sizes against the file before memory is allocated.
"""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from dalle.errors import CheckpointError
from dalle.interop.pickles import MAX_PICKLE_BYTES, RefusedError, Storage, Unpickler

__all__ = ["UnknownFileError", "looks_saved", "read_torch"]

ZIP = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


class UnknownFileError(CheckpointError):
    """The file belongs to no known family: torch.save did not write it, or its pickle asks for names that no family
    needs."""


def looks_saved(path: Path) -> bool:
    """Whether a file begins like one of torch.save's, in either format."""
    number = LEGACY_MAGIC.to_bytes(10, "little")
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(ZIP) or number in start


def read_torch(path: Path) -> Any:
    """Read a file of torch.save: containers of `LazyTensor`s, `Stub`s and plain values.

    Raises `CheckpointError`, which names the file, for one that is truncated or damaged; `UnknownFileError` for one
    that torch.save did not write, or whose pickle asks for a name that `pickles` does not allow.
    """
    try:
        with open(path, "rb") as file:
            is_zip = file.read(len(ZIP)) == ZIP
        return _read_zip(path) if is_zip else _read_stream(path)
    except RefusedError as error:
        raise UnknownFileError(
            f"{path} asks for {error} on loading, which no checkpoint of a known family needs; nothing of it was run"
        ) from error
    except (zipfile.BadZipFile, EOFError) as error:
        if not looks_saved(path):
            raise UnknownFileError(f"{path} is not a file of torch.save") from error
        raise CheckpointError(f"{path} is truncated or damaged: is the download complete?") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle may raise anything in the unpickler
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        kind = CheckpointError if looks_saved(path) else UnknownFileError
        raise kind(f"{path} is not a file of torch.save, or a damaged one ({reason})") from error


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise UnknownFileError(f"{path} is a zip file, but not one of torch.save: it must have one data.pkl")
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

    def storage(key: str, dtype: torch.dtype, numel: int) -> Storage:
        info = entries.get(f"{root}data/{key}")
        if info is None or info.compress_type != zipfile.ZIP_STORED or info.file_size != numel * dtype.itemsize:
            raise CheckpointError(f"{path}: its storage {key} is missing, compressed or of another size")
        with open(path, "rb") as file:
            file.seek(info.header_offset)
            local = file.read(30)
        start = info.header_offset + 30 + sum(int.from_bytes(local[i : i + 2], "little") for i in (26, 28))
        if local[:4] != ZIP or start + info.file_size > size:
            raise CheckpointError(f"{path}: its storage {key} lies outside the file")
        return Storage(path, dtype, numel, start)

    return Unpickler(io.BytesIO(data), storage).load()


def _read_stream(path: Path) -> Any:
    """Read the legacy format: five pickles (magic number, protocol, system, object, keys), then each storage as its
    length and its numbers."""
    storages: dict[str, Storage] = {}

    def storage(key: str, dtype: torch.dtype, numel: int) -> Storage:
        if numel * dtype.itemsize > size:
            raise CheckpointError(
                f"{path} is truncated: its storage {key} has {numel} numbers; is the download complete?"
            )
        return storages.setdefault(key, Storage(path, dtype, numel))

    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        magic, protocol, _system, content, keys = (Unpickler(file, storage).load() for _ in range(5))
        if (magic, protocol) != (LEGACY_MAGIC, LEGACY_PROTOCOL):
            raise CheckpointError(f"{path} is not a file of torch.save")
        for key in keys:
            if not isinstance(key, str | int):
                raise CheckpointError(f"{path} is damaged: it has a storage without a name")
            found = storages[str(key)]
            numel = int.from_bytes(file.read(8), "little")
            found.offset = file.tell()
            stop = found.offset + found.numel * found.dtype.itemsize
            if numel != found.numel or stop > size:
                raise CheckpointError(f"{path} is truncated in its storage {key}: is the download complete?")
            file.seek(stop)
    if missing := [key for key, found in storages.items() if found.offset < 0]:
        raise CheckpointError(f"{path} is damaged: it lacks the storage {missing[0]}")
    return content
