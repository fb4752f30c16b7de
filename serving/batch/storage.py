"""The folder that a batch is written to: on a disk, or on whatever storage fsspec reaches (`s3://bucket/folder`).

A file is there whole or not at all. On a disk it is written under another name in `.work/`, flushed to the disk and
renamed, and its folder is flushed before its shard is committed; object stores replace an object at once by themselves.
Whatever goes wrong is one `StorageError` in words.
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
"""What is of use only while a batch is not finished; removed when it is."""


class StorageError(DalleError):
    """The folder cannot be read or written: it is full, gone, or not ours."""


class Storage(Protocol):
    """Files by name, a path with `/` relative to the folder."""

    def __str__(self) -> str: ...

    def prepare(self) -> None:
        """Make the folder, and see that it can be written to. Raises `StorageError`."""

    def read(self, name: str) -> bytes | None:
        """A file, or None if it is not there. Raises `StorageError`."""

    def lines(self, name: str) -> Iterator[bytes]:
        """The lines of a file, read as they are asked for. Raises `StorageError`, also if it is not there."""

    def write(self, name: str, content: bytes) -> None:
        """A file whole or not at all, over one that may be there. Raises `StorageError`."""

    def replace(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """As `write`, for a file too large for memory: it takes its place at the end of the `with`."""

    def flush(self) -> None:
        """See that what was written outlasts a loss of power. Raises `StorageError`."""

    def append(self, name: str, content: bytes) -> bool:
        """Add to the end of a file. False where the storage cannot do that. Raises `StorageError`."""

    def list(self, folder: str) -> list[str]:
        """Names of the files directly in a folder, sorted; none if it is not there. Raises `StorageError`."""

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder, if it is there. Raises `StorageError`."""

    def free_bytes(self) -> int | None:
        """What can still be written; None if that is not known."""

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keep other runs out of the folder, as far as the storage can. Raises `StorageError` if one is in it."""


def open_storage(place: str) -> Storage:
    """The storage at a path, or at a URL that fsspec knows. Nothing is made or touched yet. Raises `StorageError`."""
    protocol, separator, path = place.partition("://")
    if not separator or protocol in ("file", "local"):
        return LocalStorage(Path(path if separator else place).absolute())
    try:
        return _RemoteStorage(place)
    except (ImportError, ValueError, OSError) as error:
        raise StorageError(f"{place} cannot be reached: {error}") from error


class LocalStorage:
    """A folder on a disk, which may be one that several machines share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._unflushed: set[Path] = set()
        """Folders with new names."""

    def __str__(self) -> str:
        return str(self.root)

    def prepare(self) -> None:
        with self._in_words("write to"):
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / WORK).mkdir(exist_ok=True)
            self.write(f"{WORK}/probe-{socket.gethostname()}-{os.getpid()}", b"")

    def read(self, name: str) -> bytes | None:
        with self._in_words(f"read {name} in"):
            try:
                return (self.root / name).read_bytes()
            except FileNotFoundError:
                return None

    def lines(self, name: str) -> Iterator[bytes]:
        with self._in_words(f"read {name} in"), open(self.root / name, "rb") as file:
            yield from file

    def write(self, name: str, content: bytes) -> None:
        with self.replace(name) as file:
            file.write(content)

    @contextlib.contextmanager
    def replace(self, name: str) -> Iterator[BinaryIO]:
        part = self.root / WORK / f"{uuid.uuid4().hex}.part"
        with self._in_words(f"write {name} in"):
            with atomic_file(self.root / name, part=part, fsync=True):
                with open(part, "wb") as file:
                    yield file
                self._make_folder(name)
            self._unflushed.add((self.root / name).parent)

    def flush(self) -> None:
        with self._in_words("write to"):
            while self._unflushed:
                _flush_folder(self._unflushed.pop())

    def append(self, name: str, content: bytes) -> bool:
        with self._in_words(f"write {name} in"):
            self._make_folder(name)
            with open(self.root / name, "ab", buffering=0) as file:
                file.write(content)
        return True

    def list(self, folder: str) -> list[str]:
        with self._in_words(f"read {folder} in"):
            try:
                return sorted(os.listdir(self.root / folder))
            except FileNotFoundError:
                return []

    def remove(self, name: str) -> None:
        path = self.root / name
        with self._in_words(f"remove {name} in"), contextlib.suppress(FileNotFoundError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def free_bytes(self) -> int | None:
        with self._in_words("look at"):
            return shutil.disk_usage(self.root).free

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        with self._in_words("lock"):
            file = open(self.root / WORK / "lock", "ab")  # noqa: SIM115 (open as long as it is locked)
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StorageError(f"another batch is at work in {self}: wait until it is done") from None
            except OSError:
                pass  # a file system without locks
            yield

    def _make_folder(self, name: str) -> None:
        """The folders of a file, but never the root: if that is gone, it shall not come back without what was in it."""
        for parent in reversed(list(PurePosixPath(name).parents)[:-1]):
            folder = self.root / parent
            if not folder.is_dir():
                folder.mkdir(exist_ok=True)
                self._unflushed.add(folder.parent)

    @contextlib.contextmanager
    def _in_words(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"cannot {doing} {self}: {error.strerror or error}") from error


def _flush_folder(folder: Path) -> None:
    """Without this a name may be lost with the power, though what it names was flushed. Done for many files at once it
    costs next to nothing."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # not all file systems can
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
        """Folders."""

    def __str__(self) -> str:
        return self.url

    def prepare(self) -> None:
        name = f"{WORK}/probe-{socket.gethostname()}-{os.getpid()}"
        self.write(name, b"")
        self.remove(name)

    def read(self, name: str) -> bytes | None:
        with self._in_words(f"read {name} in"):
            try:
                content: bytes = self.fs.cat_file(f"{self.root}/{name}")
                return content
            except FileNotFoundError:
                return None

    def lines(self, name: str) -> Iterator[bytes]:
        with self._in_words(f"read {name} in"), self.fs.open(f"{self.root}/{name}", "rb") as file:
            yield from file

    def write(self, name: str, content: bytes) -> None:
        with self._in_words(f"write {name} in"):
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
            with self._in_words(f"write {name} in"):
                self._make_folder(name)
                self.fs.put_file(file.name, f"{self.root}/{name}")

    def flush(self) -> None:
        pass

    def append(self, name: str, content: bytes) -> bool:
        return False

    def list(self, folder: str) -> list[str]:
        with self._in_words(f"read {folder} in"):
            try:
                return sorted(PurePosixPath(path).name for path in self.fs.ls(f"{self.root}/{folder}", detail=False))
            except FileNotFoundError:
                return []

    def remove(self, name: str) -> None:
        with self._in_words(f"remove {name} in"), contextlib.suppress(FileNotFoundError):
            self.fs.rm(f"{self.root}/{name}", recursive=True)

    def free_bytes(self) -> int | None:
        return None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        yield

    def _make_folder(self, name: str) -> None:
        """Object stores have no folders, but some of what fsspec reaches has."""
        folder = f"{self.root}/{name}".rpartition("/")[0]
        if folder not in self._made:
            self.fs.makedirs(folder, exist_ok=True)
            self._made.add(folder)

    @contextlib.contextmanager
    def _in_words(self, doing: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except Exception as error:  # every client of an object store has errors of its own
            raise StorageError(f"cannot {doing} {self}: {error}") from error
