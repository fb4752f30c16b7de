"""Shared by the commands of `dalle`: warnings as one line each, and files that are written whole or not at all."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dalle.errors import DalleError
from dalle.files import atomic_write
from dalle.receipt import printable

__all__ = ["CannotWriteError", "prepare_folder", "short_warnings", "write_file"]


class CannotWriteError(DalleError):
    """A file or folder cannot be written: the disk is full, or the folder is gone or belongs to somebody else."""


@contextmanager
def short_warnings() -> Iterator[None]:
    """Print every warning of the body as one line on stderr, without the place in the code that it comes from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_args, **_kwargs: print(
            f"warning: {printable(str(message))}", file=sys.stderr
        )
        yield


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
