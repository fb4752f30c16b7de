"""Pictures that are asked for as URLs: files with names that nobody guesses, in a folder, for a while.

What the folder holds besides is left alone. All methods wait for the file system: call them beside the event loop.
"""

import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from os import DirEntry, scandir, stat_result, unlink
from pathlib import Path

from dalle.errors import ConfigError
from dalle.files import atomic_write

__all__ = ["ImageStore"]

NAME = re.compile(r"[A-Za-z0-9_-]{32}\.(png|jpeg|webp)")
PART = re.compile(rf"\.{NAME.pattern}\.part")
SWEEP_SECONDS = 60.0
"""So long a picture may outlive its time, and so old may be what a store knows of others that write to its folder."""


class ImageStore:
    """A folder of pictures that live for `seconds` and take `max_bytes` at most: the oldest go first.

    Several stores may share a folder. Together they may exceed `max_bytes` by what they write between two sweeps.
    """

    def __init__(self, folder: Path, seconds: float, max_bytes: int) -> None:
        self.folder = folder
        self.seconds = seconds
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._room = 0
        """Bytes that may still be written before the next sweep."""
        self._swept = 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / ".probe").write_bytes(b"")
            (folder / ".probe").unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"the store {folder} cannot be written to: {error}") from error

    def put(self, image: bytes, extension: str) -> str:
        """Keep a picture; returns its name, of 192 random bits. Now and then removes what is too old or too much."""
        with self._lock:
            if len(image) > self._room or time.monotonic() > self._swept + SWEEP_SECONDS:
                self._sweep(len(image))
            self._room -= len(image)
        name = f"{secrets.token_urlsafe(24)}.{extension}"
        atomic_write(self.folder / name, image, part=self.folder / f".{name}.part")
        return name

    def get(self, name: str) -> bytes | None:
        """The picture of a name that `put` gave; None if it is unknown, or was removed, or its time is over."""
        if NAME.fullmatch(name) is None:
            return None
        path = self.folder / name
        try:
            return path.read_bytes() if path.stat().st_mtime + self.seconds > time.time() else None
        except OSError:
            return None

    def _sweep(self, num_bytes: int) -> None:
        """Remove pictures until there is room for as many bytes, and a tenth of the store to spare."""
        now, kept, full = time.time(), 0, False
        newest_first = sorted(self._entries(), key=lambda found: found[1].st_mtime, reverse=True)
        room = self.max_bytes - max(num_bytes, self.max_bytes // 10)
        for entry, status in newest_first:
            full = full or kept + status.st_size > room
            if not full and status.st_mtime + self.seconds > now:
                kept += status.st_size
            else:
                with suppress(OSError):  # another store may sweep the same folder
                    unlink(entry.path)
        self._room = self.max_bytes - kept
        self._swept = time.monotonic()

    def _entries(self) -> Iterator[tuple[DirEntry[str], stat_result]]:
        with scandir(self.folder) as entries:
            for entry in entries:
                if NAME.fullmatch(entry.name) or PART.fullmatch(entry.name):
                    with suppress(OSError):
                        yield entry, entry.stat(follow_symlinks=False)
