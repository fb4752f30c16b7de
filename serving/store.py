"""Pictures that are asked for as URLs: files with names that nobody guesses, in a folder, for a while."""

import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

from dalle.errors import ConfigError

__all__ = ["ImageStore"]

NAME = re.compile(r"[A-Za-z0-9_-]{32}\.(png|jpeg|webp)")


class ImageStore:
    """A folder of pictures that live for `seconds`. Replicas may share one."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / ".probe").write_bytes(b"")
            (folder / ".probe").unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"the store {folder} cannot be written to: {error}") from error

    def put(self, image: bytes, extension: str) -> str:
        """Keep a picture; returns its name, of 192 random bits. Removes those whose time is over."""
        self._sweep()
        name = f"{secrets.token_urlsafe(24)}.{extension}"
        part = self.folder / f".{name}.part"
        part.write_bytes(image)
        part.replace(self.folder / name)
        return name

    def get(self, name: str) -> Path | None:
        """The file of a name that `put` gave; None if it is unknown or its time is over."""
        path = self.folder / name
        if NAME.fullmatch(name) is None:
            return None
        try:
            return path if os.stat(path).st_mtime + self.seconds > time.time() else None
        except OSError:
            return None

    def _sweep(self) -> None:
        oldest = time.time() - self.seconds
        for entry in os.scandir(self.folder):
            with suppress(OSError):  # another replica may sweep the same folder
                if entry.stat().st_mtime < oldest:
                    os.unlink(entry.path)
