"""A lock for which processes wait, around what the first of them makes for all."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["waiting"]


@contextmanager
def waiting(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock, then hold it. Raises `OSError` if the lock's file cannot be
    written."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
