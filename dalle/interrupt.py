"""Ctrl-C while Python still imports: the program ends at once with exit code 130, instead of a stack trace.

A KeyboardInterrupt in the middle of an import may also be swallowed by a module that tries another one, or leave a
module half loaded. So programs call `exit_on_interrupt` before they import anything large. `dalle.command_line.program`
gives Ctrl-C its usual meaning again. This module imports nothing large itself.
"""

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["INTERRUPTED", "exit_on_interrupt", "heavy_imports", "interruptible"]

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def _exit(*_: Any) -> None:
    os._exit(INTERRUPTED)


def exit_on_interrupt() -> None:
    """Let Ctrl-C end the process at once and quietly. A handler that is not Python's own stays: a shell ignores the
    signal in what it starts in the background, and tests have handlers of theirs."""
    if _handler() is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def _handler() -> Any:
    """The handler of Ctrl-C; None in a thread that cannot change it."""
    main = threading.current_thread() is threading.main_thread()
    return signal.getsignal(signal.SIGINT) if main else None


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in the body, in a program that called `exit_on_interrupt`; in others nothing
    changes. Afterwards, while Python ends, Ctrl-C is quiet again."""
    if _handler() is not _exit:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        exit_on_interrupt()


@contextmanager
def heavy_imports() -> Iterator[None]:
    """For the first import of torch and what stands on it, in the body: Ctrl-C ends the process quietly.

    These imports make some 200,000 objects that live until the end. The garbage collector would search them several
    times while they are made, and once more at exit; so it is off in the body, and ignores those objects afterwards.
    """
    if "torch" in sys.modules:
        yield
        return
    raising = _handler() is signal.default_int_handler
    exit_on_interrupt()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        if raising:
            signal.signal(signal.SIGINT, signal.default_int_handler)
