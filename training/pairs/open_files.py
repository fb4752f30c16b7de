"""Many files that are read at random places, each opened at its first read and kept open."""

import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dalle.errors import DataError

__all__ = ["OpenFiles"]

SPARE = 256
"""File descriptors that stay for everything else in this process."""


class OpenFiles:
    """Files by number. Reading moves no position and keeps nothing in memory, so processes and threads can share the
    object; it can be pickled."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._opened: dict[int, int] = {}
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = len(self.paths) + SPARE
        if soft != resource.RLIM_INFINITY and soft < needed:
            limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    def read(self, number: int, offset: int, length: int) -> bytes:
        """These bytes of a file. Raises `DataError` if it cannot be read, or has become shorter."""
        try:
            if number not in self._opened:
                self._opened[number] = os.open(self.paths[number], os.O_RDONLY | os.O_CLOEXEC)
            found = os.pread(self._opened[number], length, offset)
        except OSError as error:
            raise DataError(f"{self.paths[number]} cannot be read: {error.strerror}") from error
        if len(found) < length:
            raise DataError(
                f"{self.paths[number]} ends before byte {offset + length}: it has changed since it was opened"
            )
        return found
