"""Pictures in a temporary file, for sources whose rows come in another order than that in which they are written."""

import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Self

__all__ = ["Spool"]


class Spool:
    """A file without a name, in a folder, which is made at the first use and gone with the process. A context manager,
    which removes it at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[bytes] | None = None
        self._end = 0

    def add(self, content: bytes) -> tuple[int, int]:
        """Keep some bytes. Returns their place, for `read`."""
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 (closed at the end)
        self._file.write(content)
        place = (self._end, len(content))
        self._end += len(content)
        return place

    def read(self, place: tuple[int, int]) -> bytes:
        """The bytes at a place. All must have been added before the first is read."""
        assert self._file is not None
        self._file.flush()
        return os.pread(self._file.fileno(), place[1], place[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
