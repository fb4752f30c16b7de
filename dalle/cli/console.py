"""What the commands of `dalle` share: mistakes in words, and files that are written whole or not at all."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from dalle.errors import DalleError
from dalle.files import atomic_write
from dalle.receipt import printable

__all__ = ["CannotWriteError", "mistakes_in_words", "prepare_folder", "print_error", "write_file"]


class CannotWriteError(DalleError):
    """The disk is full, or the folder is gone or not ours."""


@contextmanager
def mistakes_in_words() -> Iterator[None]:
    """A caller's mistake is one line on stderr and exit code 2; a warning is one line."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_args, **_kwargs: print(
            f"warning: {printable(str(message))}", file=sys.stderr
        )
        try:
            yield
        except DalleError as error:
            print_error(error)
            raise typer.Exit(2) from error


def print_error(error: DalleError) -> None:
    print(f"error: {printable(str(error))}", file=sys.stderr)


def prepare_folder(folder: Path) -> None:
    """Make the folder and see that it can be written to, before anything is drawn. Raises `CannotWriteError`."""
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
