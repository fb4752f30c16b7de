"""Atomic writes: a file or folder appears under its name when it is complete, or not at all.

`prepare_folder` and `write_file` are for output that a person asked for: they raise `CannotWriteError`.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dalle.errors import DalleError

__all__ = [
    "CannotWriteError",
    "atomic_file",
    "atomic_folder",
    "atomic_write",
    "cache_folder",
    "flush_file",
    "prepare_folder",
    "write_file",
]


def cache_folder() -> Path:
    """The folder of what can be made or fetched again: DALLE_CACHE, or else ~/.cache/dalle."""
    root = os.environ.get("DALLE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dalle"
    return Path(root)


class CannotWriteError(DalleError):
    """A file or folder cannot be written: the disk is full, or the folder is gone or belongs to somebody else."""


def atomic_write(path: Path, content: bytes | str, *, part: Path | None = None) -> None:
    """Write a file, text as UTF-8, in place of one that may be there. Arguments and errors as in `atomic_file`."""
    with atomic_file(path, part=part) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path, *, part: Path | None = None, fsync: bool = False) -> Iterator[Path]:
    """A temporary path, to which the body of the `with` writes the file that then replaces `path`.

    part: the temporary path, on the same file system. By default it is `NAME.PID.part` beside `path`: processes that
        write the same file at once do not disturb each other. A fixed path is for files with one writer: what a killed
        process leaves there is overwritten by the next one, and not left for good.
    fsync: flush the content to the disk before the file gets its name, which then outlasts a loss of power.

    If the body or the replacement raises, the temporary file is removed and `path` is left as it was. A device or a
    pipe is written to directly, and never replaced. Raises `OSError` as writing does.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    if part is None:
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        if fsync:
            flush_file(part)
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(folder: Path, *, replace: bool = True) -> Iterator[Path]:
    """An empty temporary folder, which the body of the `with` fills and which then replaces `folder`.

    replace: whether a folder that is there is replaced. If not, one that appears while the body runs is an `OSError`.

    If the body raises, the temporary folder is removed and `folder` is left as it was. A folder that is replaced is
    moved aside for an instant: a process that is killed just then leaves it, whole, in `.NAME-.../before` beside.
    Raises `OSError` as writing does.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        files = Path(temporary) / "new"
        files.mkdir()
        yield files
        before = Path(temporary) / "before"
        if replace and folder.exists():
            folder.rename(before)
        try:
            files.rename(folder)
        except OSError:
            if before.exists():
                before.rename(folder)
            raise


def flush_file(path: Path) -> None:
    """Flush the content of a file to the disk. Raises `OSError` as flushing does."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def prepare_folder(folder: Path) -> None:
    """Make the folder and check that it can be written to, before anything is drawn. Raises `CannotWriteError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / ".dalle-probe", b"")
        (folder / ".dalle-probe").unlink(missing_ok=True)  # another process may probe the same folder
    except OSError as error:
        raise CannotWriteError(f"cannot write to {folder}: {error.strerror or error}") from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all. Raises `CannotWriteError`."""
    try:
        atomic_write(path, content)
    except OSError as error:
        raise CannotWriteError(f"cannot write {path}: {error.strerror or error}") from error
