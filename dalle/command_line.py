"""Shared by every command line of this project: a caller's mistake and a warning become one line on stderr each."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from safetensors import SafetensorError

from dalle.errors import DalleError
from dalle.receipt import printable

__all__ = ["exit_on_mistake", "one_line", "print_error", "short_warnings"]

MISTAKE = 2
"""Exit code for a caller's mistake."""


@contextmanager
def exit_on_mistake(*, system_errors: bool = False) -> Iterator[None]:
    """End the program with one line on stderr and exit code 2, instead of a stack trace, if the body raises a
    `DalleError`.

    system_errors: do the same for errors of the operating system, such as a full disk or a folder that cannot be
        written to; for programs that do not turn them into a `DalleError` themselves.
    """
    try:
        yield
    except DalleError as error:
        _exit(str(error), error)
    except OSError as error:
        if not system_errors or error.strerror is None:  # without strerror it was raised by code, not by the system
            raise
        _exit(f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror, error)
    except SafetensorError as error:  # raised instead of OSError for a file that cannot be written
        if not system_errors:
            raise
        _exit(str(error), error)


def _exit(message: str, cause: BaseException) -> NoReturn:
    print_error(message)
    raise SystemExit(MISTAKE) from cause


def print_error(message: str) -> None:
    """Print an error message on stderr as one line, with control characters escaped."""
    print(f"error: {one_line(message)}", file=sys.stderr)


def one_line(text: str) -> str:
    """A text with control characters escaped, line breaks among them: names of files may have any."""
    return printable(text).replace("\n", "\\n")


@contextmanager
def short_warnings() -> Iterator[None]:
    """Print every warning of the body as one line on stderr, without the place in the code that it comes from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_args, **_kwargs: print(
            f"warning: {printable(str(message))}", file=sys.stderr
        )
        yield
