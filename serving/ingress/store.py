"""`ImageStore`: pictures of requests with `response_format: url`, as files with unguessable names that expire.

Other files in the folder are left alone. All methods block on the file system: call them in a thread.
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
from dalle.files import CannotWriteError, atomic_write, prepare_folder

__all__ = ["ImageStore"]

NAME = re.compile(r"[A-Za-z0-9_-]{32}\.(png|jpeg|webp)")
PART = re.compile(rf"\.{NAME.pattern}\.part")
SWEEP_SECONDS = 60.0
"""Longest time between two sweeps. Expired pictures stay on the disk for as long, and pictures that other stores write
to the folder are counted as late."""


class ImageStore:
    """A folder of pictures that expire after `seconds` and take `max_bytes` at most; the oldest are removed first.

    Several stores can share a folder. Together they can exceed `max_bytes` by what they write between two sweeps.
    """

    def __init__(self, folder: Path, seconds: float, max_bytes: int) -> None:
        self.folder = folder
        self.seconds = seconds
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._room = 0
        """Bytes that can still be written before the next sweep."""
        self._swept = 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            prepare_folder(folder)
        except (OSError, CannotWriteError) as error:
            raise ConfigError(f"the store {folder} cannot be written to: {error}") from error

    def put(self, image: bytes, extension: str) -> str:
        """Store a picture. Returns its name, of 192 random bits. Some calls also remove old pictures (a sweep)."""
        with self._lock:
            if len(image) > self._room or time.monotonic() > self._swept + SWEEP_SECONDS:
                self._sweep(len(image))
            self._room -= len(image)
        name = f"{secrets.token_urlsafe(24)}.{extension}"
        atomic_write(self.folder / name, image, part=self.folder / f".{name}.part")
        return name

    def get(self, name: str) -> tuple[bytes, int] | None:
        """The picture with a name that `put` returned, and the whole seconds until it expires; None if it is unknown,
        removed or expired."""
        if NAME.fullmatch(name) is None:
            return None
        path = self.folder / name
        try:
            seconds = path.stat().st_mtime + self.seconds - time.time()
            return (path.read_bytes(), int(seconds)) if seconds > 0 else None
        except OSError:
            return None

    def _sweep(self, num_bytes: int) -> None:
        """Remove expired pictures, and the oldest ones until at least `num_bytes` and a tenth of the store are free."""
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
