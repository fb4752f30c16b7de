"""The folder that a batch is written to: on a disk, or on any storage that fsspec reaches (`s3://bucket/folder`).

A file exists completely or not at all. On a disk it is written under another name in `.work/`, flushed to the disk and
renamed, and its folder is flushed before the shard is committed. Object stores replace objects atomically themselves.
Every failure is raised as a `StorageError` with a readable message.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import fsspec

from dalle.errors import DalleError
from dalle.files import atomic_file

__all__ = ["WORK", "LocalStorage", "Storage", "StorageError", "open_storage"]

WORK = ".work"
"""Folder of files that are needed only until the batch is finished; removed then."""


class StorageError(DalleError):
    """The folder cannot be read or written: it is full or missing, or belongs to another batch."""


class Storage(Protocol):
    """Files in a folder. A file's name is its path relative to the folder, with `/`."""

    def __str__(self) -> str: ...

    def prepare(self) -> None:
        """Create the folder, and check that it can be written to. Raises `StorageError`."""

    def read(self, name: str) -> bytes | None:
        """The content of a file, None if it does not exist. Raises `StorageError`."""

    def lines(self, name: str) -> Iterator[bytes]:
        """Yield the lines of a file. Raises `StorageError`, also if it does not exist."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically, in place of an existing one. Raises `StorageError`."""

    def replace(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Write a file atomically, as `write` does, through a file object: it replaces an existing file at the end of
        the `with`."""

    def flush(self) -> None:
        """Make everything written so far survive a loss of power. Raises `StorageError`."""

    def append(self, name: str, content: bytes) -> bool:
        """Append to a file. Returns False if the storage cannot append. Raises `StorageError`."""

    def list(self, folder: str) -> list[str]:
        """Names of the files directly in a folder, sorted; empty if it does not exist. Raises `StorageError`."""

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder, if it exists. Raises `StorageError`."""

    def free_bytes(self) -> int | None:
        """Free space in bytes, None if unknown."""

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keep other runs out of the folder, if the storage supports locks. Raises `StorageError` if it is locked."""


def open_storage(place: str) -> Storage:
    """The storage at a path, or at a URL that fsspec supports. Nothing is created yet. Raises `StorageError`."""
    protocol, separator, path = place.partition("://")
    if not separator or protocol in ("file", "local"):
        return LocalStorage(Path(path if separator else place).absolute())
    try:
        return _RemoteStorage(place)
    except (ImportError, ValueError, OSError) as error:
        raise StorageError(f"{place} cannot be reached: {error}") from error


class LocalStorage:
    """A folder on a disk, which several machines may share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._unflushed: set[Path] = set()
        """Folders with new entries, to be flushed."""

    def __str__(self) -> str:
        return str(self.root)

    def prepare(self) -> None:
        with self._storage_errors("write to"):
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / WORK).mkdir(exist_ok=True)
            self.write(f"{WORK}/probe-{socket.gethostname()}-{os.getpid()}", b"")

    def read(self, name: str) -> bytes | None:
        with self._storage_errors(f"read {name} in"):
            try:
                return (self.root / name).read_bytes()
            except FileNotFoundError:
                return None

    def lines(self, name: str) -> Iterator[bytes]:
        with self._storage_errors(f"read {name} in"), open(self.root / name, "rb") as file:
            yield from file

    def write(self, name: str, content: bytes) -> None:
        with self.replace(name) as file:
            file.write(content)

    @contextlib.contextmanager
    def replace(self, name: str) -> Iterator[BinaryIO]:
        part = self.root / WORK / f"{uuid.uuid4().hex}.part"
        with self._storage_errors(f"write {name} in"):
            with atomic_file(self.root / name, part=part, fsync=True):
                with open(part, "wb") as file:
                    yield file
                self._make_folder(name)
            self._unflushed.add((self.root / name).parent)

    def flush(self) -> None:
        with self._storage_errors("write to"):
            while self._unflushed:
                _flush_folder(self._unflushed.pop())

    def append(self, name: str, content: bytes) -> bool:
        with self._storage_errors(f"write {name} in"):
            self._make_folder(name)
            with open(self.root / name, "ab", buffering=0) as file:
                file.write(content)
        return True

    def list(self, folder: str) -> list[str]:
        with self._storage_errors(f"read {folder} in"):
            try:
                return sorted(os.listdir(self.root / folder))
            except FileNotFoundError:
                return []

    def remove(self, name: str) -> None:
        path = self.root / name
        with self._storage_errors(f"remove {name} in"), contextlib.suppress(FileNotFoundError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def free_bytes(self) -> int | None:
        with self._storage_errors("get the free space of"):
            return shutil.disk_usage(self.root).free

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        with self._storage_errors("lock"):
            file = open(self.root / WORK / "lock", "ab")  # noqa: SIM115 (open as long as it is locked)
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StorageError(f"another run is writing to {self}: wait until it has finished") from None
            except OSError:
                pass  # a file system without locks
            yield

    def _make_folder(self, name: str) -> None:
        """Create the folders of a file, but never the root: if it was removed during the run, it must not be created
        empty."""
        for parent in reversed(list(PurePosixPath(name).parents)[:-1]):
            folder = self.root / parent
            if not folder.is_dir():
                folder.mkdir(exist_ok=True)
                self._unflushed.add(folder.parent)

    @contextlib.contextmanager
    def _storage_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"cannot {doing} {self}: {error.strerror or error}") from error


def _flush_folder(folder: Path) -> None:
    """Flush a folder's entries. Without this a loss of power may lose a file's name, though its content was flushed.
    Once for many files, it costs next to nothing."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # some file systems cannot flush folders
            raise
    finally:
        os.close(descriptor)


class _RemoteStorage:
    """A folder on an object store."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        fs, root = fsspec.url_to_fs(self.url, use_listings_cache=False)
        self.fs: Any = fs
        self.root = str(root).rstrip("/")
        self._made: set[str] = set()
        """Folders that exist."""

    def __str__(self) -> str:
        return self.url

    def prepare(self) -> None:
        name = f"{WORK}/probe-{socket.gethostname()}-{os.getpid()}"
        self.write(name, b"")
        self.remove(name)

    def read(self, name: str) -> bytes | None:
        with self._storage_errors(f"read {name} in"):
            try:
                content: bytes = self.fs.cat_file(f"{self.root}/{name}")
                return content
            except FileNotFoundError:
                return None

    def lines(self, name: str) -> Iterator[bytes]:
        with self._storage_errors(f"read {name} in"), self.fs.open(f"{self.root}/{name}", "rb") as file:
            yield from file

    def write(self, name: str, content: bytes) -> None:
        with self._storage_errors(f"write {name} in"):
            self._make_folder(name)
            self.fs.pipe_file(f"{self.root}/{name}", content)

    @contextlib.contextmanager
    def replace(self, name: str) -> Iterator[BinaryIO]:
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(tempfile.NamedTemporaryFile())
                yield file  # type: ignore[misc]  # it is a BinaryIO in all but name
                file.flush()
            except OSError as error:
                place = tempfile.gettempdir()
                raise StorageError(f"cannot write {name} to {place}: {error.strerror or error}") from error
            with self._storage_errors(f"write {name} in"):
                self._make_folder(name)
                self.fs.put_file(file.name, f"{self.root}/{name}")

    def flush(self) -> None:
        pass

    def append(self, name: str, content: bytes) -> bool:
        return False

    def list(self, folder: str) -> list[str]:
        with self._storage_errors(f"read {folder} in"):
            try:
                return sorted(PurePosixPath(path).name for path in self.fs.ls(f"{self.root}/{folder}", detail=False))
            except FileNotFoundError:
                return []

    def remove(self, name: str) -> None:
        with self._storage_errors(f"remove {name} in"), contextlib.suppress(FileNotFoundError):
            self.fs.rm(f"{self.root}/{name}", recursive=True)

    def free_bytes(self) -> int | None:
        return None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        yield

    def _make_folder(self, name: str) -> None:
        """Create the folder of a file: object stores have none, but other storages of fsspec do."""
        folder = f"{self.root}/{name}".rpartition("/")[0]
        if folder not in self._made:
            self.fs.makedirs(folder, exist_ok=True)
            self._made.add(folder)

    @contextlib.contextmanager
    def _storage_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except Exception as error:  # every client of an object store has its own exceptions
            raise StorageError(f"cannot {doing} {self}: {error}") from error
