"""Shared by every program of this project: exit codes, Ctrl-C, output that cannot be written, and a caller's mistake or
a warning as one line on stderr each."""

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from safetensors import SafetensorError

from dalle.errors import DalleError
from dalle.interrupt import INTERRUPTED, interruptible
from dalle.printable import printable

__all__ = [
    "CLOSED_PIPE",
    "DIFFERENT",
    "DONE",
    "INCOMPLETE",
    "INTERRUPTED",
    "MISTAKE",
    "STOPPED",
    "exit_on_mistake",
    "one_line",
    "print_error",
    "program",
    "short_warnings",
]

DONE = 0
DIFFERENT = 1
"""A check found a difference (`dalle verify`). Python ends with it too after an error of the program itself."""
MISTAKE = 2
"""A caller's mistake, or a file or folder that cannot be read or written."""
INCOMPLETE = 3
"""All is done but the lines or pictures that are listed as invalid or failed."""
STOPPED = 4
"""Stopped before the end with the work kept: the same command resumes."""
CLOSED_PIPE = 128 + 13
"""The reader of the output closed the pipe, as `head` does. Programs in C end so by SIGPIPE."""


@contextmanager
def program() -> Iterator[None]:
    """Around the whole of a program, the reading of its arguments too.

    Ctrl-C ends it without a stack trace and with exit code 130. Output that cannot be written, as to a full disk, is an
    error in one line. A reader that closes the pipe early (`dalle show ... | head`) is not told.
    """
    try:
        with interruptible():
            yield
            _flush()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BaseException as error:
        fault = _fault_of_stdout() or _fault_without_buffer(error)
        if fault is None:
            raise
        if sys.__stdout__ is not None:  # what is left in its buffer would be tried again while Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
        if fault.errno == errno.EPIPE:
            raise SystemExit(CLOSED_PIPE) from None
        print_error(f"cannot write to standard output: {fault.strerror}")
        raise SystemExit(MISTAKE) from None


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not stream.closed:
            stream.flush()


def _fault_of_stdout() -> OSError | None:
    """Why standard output cannot be written: a buffer that could not be written is full still. None if it can be."""
    try:
        _flush()
        if sys.__stdout__ is not None and sys.__stdout__.write_through:
            os.write(sys.__stdout__.fileno(), b"")  # /dev/full refuses that too
    except OSError as fault:
        return fault
    return None


def _fault_without_buffer(error: BaseException) -> OSError | None:
    """What ended the program, if that is the fault of a standard output without a buffer (`python -u`)."""
    if getattr(sys.__stdout__, "write_through", False) and isinstance(error, OSError) and error.filename is None:
        return error if error.errno in (errno.EPIPE, errno.ENOSPC) else None
    return None


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
        # without strerror it was raised by code, not by the system
        if not system_errors or error.strerror is None or error.errno == errno.EPIPE or _fault_of_stdout():
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
