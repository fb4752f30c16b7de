"""`Shelf`: the files and batches of all callers, in a folder that several ingresses can share.

    CALLER/file-ID.json, CALLER/file-ID.jsonl    a file and its content; CALLER is a digest
    CALLER/batch_ID/                             a batch (`stored`)
    open/batch_ID                                the caller of a batch that is not finished

An id begins with the time at which it was made, so that names in order are in order of time. All methods block on the
file system: call them in a thread.
"""

import hashlib
import os
import re
import secrets
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from dalle.errors import ConfigError
from dalle.files import CannotWriteError, atomic_write, prepare_folder
from serving.ingress.batches.schemas import FileObject, Purpose

__all__ = ["Shelf", "new_id"]

FILE = re.compile(r"file-[0-9a-f]{32}")
BATCH = re.compile(r"batch_[0-9a-f]{32}")
SWEEP_SECONDS = 60.0
BLOCK = 4096
"""Bytes that even the smallest file counts as taking."""

T = TypeVar("T")


def new_id(prefix: str) -> str:
    """A new id: the prefix, the time, and 64 random bits."""
    return f"{prefix}{time.time_ns():016x}{secrets.token_hex(8)}"


class Shelf:
    """Files and finished batches are kept for `seconds`. They take about `max_bytes` at most: the oldest files of the
    caller who takes most are removed first. Raises `ConfigError` for a folder that cannot be written to."""

    def __init__(self, folder: Path, seconds: float, max_bytes: int) -> None:
        self.folder = folder
        self.seconds = seconds
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._room = 0
        """Bytes that can still be written before the next sweep."""
        self._swept = 0.0
        self._overfull: Path | None = None
        """The caller whose batches' results alone are too many, if one's are."""
        try:
            (folder / "open").mkdir(parents=True, exist_ok=True, mode=0o700)
            prepare_folder(folder)
        except (OSError, CannotWriteError) as error:
            raise ConfigError(f"the folder of batches {folder} cannot be written to: {error}") from error

    def of(self, caller: str) -> Path:
        """The folder of a caller."""
        return self.folder / hashlib.sha256(caller.encode()).hexdigest()[:32]

    def is_overfull(self, caller: str) -> bool:
        """Whether a caller's batches have to end, since there is no room for more results."""
        return self._overfull == self.of(caller)

    # -- files

    def upload(self, caller: str, filename: str, content: BinaryIO) -> FileObject:
        """Keep a copy of an uploaded file."""
        file_id = new_id("file-")
        self.of(caller).mkdir(exist_ok=True, mode=0o700)
        part = self.of(caller) / f"{file_id}.part"
        try:
            with part.open("wb") as copy:
                shutil.copyfileobj(content, copy)
            return self.add(caller, file_id, filename, "batch", part)
        finally:
            part.unlink(missing_ok=True)

    def add(self, caller: str, file_id: str, filename: str, purpose: Purpose, source: Path) -> FileObject:
        """Move a file onto the shelf. Repeated after an interruption, it does what is left to do."""
        content = self.of(caller) / f"{file_id}.jsonl"
        with suppress(FileNotFoundError):  # it was moved already
            source.replace(content)
            os.utime(content)  # its time on the shelf begins
        num_bytes, now = content.stat().st_size, int(time.time())
        self.sweep(num_bytes)
        added = FileObject(
            id=file_id,
            bytes=num_bytes,
            created_at=now,
            expires_at=int(now + self.seconds),
            filename=filename,
            purpose=purpose,
        )
        atomic_write(content.with_suffix(".json"), added.model_dump_json())
        return added

    def file(self, caller: str, file_id: str) -> FileObject | None:
        """A file of a caller; None if it is unknown, somebody else's, deleted or expired."""
        if FILE.fullmatch(file_id) is None:
            return None
        with suppress(FileNotFoundError):
            found = FileObject.model_validate_json((self.of(caller) / f"{file_id}.json").read_bytes())
            return found if found.expires_at > time.time() else None
        return None

    def content(self, caller: str, file_id: str) -> Path:
        """Path of the content of a file that is there."""
        return self.of(caller) / f"{file_id}.jsonl"

    def delete(self, caller: str, file_id: str) -> bool:
        """Delete a file of a caller. False if there is none. A batch that reads it has a copy."""
        if self.file(caller, file_id) is None:
            return False
        _remove(self.of(caller) / f"{file_id}.json")
        return True

    def files(self, caller: str) -> list[str]:
        """Ids of a caller's files, the oldest first."""
        return sorted(path.stem for path in self.of(caller).glob("file-*.json"))

    # -- batches

    def batches(self, caller: str) -> list[str]:
        """Ids of a caller's batches, the oldest first."""
        return sorted(path.name for path in self.of(caller).glob("batch_*") if BATCH.fullmatch(path.name))

    def batch_folder(self, caller: str, batch_id: str) -> Path | None:
        """The folder of a caller's batch; None if it is unknown, somebody else's or removed."""
        if BATCH.fullmatch(batch_id) is None:
            return None
        folder = self.of(caller) / batch_id
        return folder if (folder / "batch.json").exists() else None

    def set_open(self, caller: str, batch_id: str, is_open: bool) -> None:
        """Note that a batch is to be drawn, or is finished."""
        path = self.folder / "open" / batch_id
        if is_open:
            atomic_write(path, caller)
        else:
            path.unlink(missing_ok=True)

    def open_batches(self) -> Iterator[tuple[str, str]]:
        """(caller, id) of all batches that are not finished, the oldest first."""
        for path in sorted((self.folder / "open").glob("batch_*")):
            if BATCH.fullmatch(path.name):
                with suppress(FileNotFoundError):
                    caller = path.read_text(encoding="utf-8")
                    if self.batch_folder(caller, path.name) is not None:
                        yield caller, path.name
                    elif path.stat().st_mtime < time.time() - SWEEP_SECONDS:  # its ingress died while it made it
                        path.unlink()

    # -- both

    @staticmethod
    def page(
        ids: list[str], after: str | None, limit: int, *, newest_first: bool, read: Callable[[str], T | None]
    ) -> tuple[list[T], bool]:
        """Up to `limit` of the things with these ids that come after one, which may be gone; and whether there are
        more. Things that `read` returns None for are left out."""
        found: list[T] = []
        for one in reversed(ids) if newest_first else ids:
            if after is not None and (one >= after if newest_first else one <= after):
                continue
            if (thing := read(one)) is not None:
                if len(found) == limit:
                    return found, True
                found.append(thing)
        return found, False

    def sweep(self, num_bytes: int = 0) -> None:
        """Count `num_bytes` that are written. Now and then, or if they are too many, remove what has expired, and the
        oldest files until there is room."""
        with self._lock:
            self._room -= num_bytes
            if self._room < 0 or time.monotonic() > self._swept + SWEEP_SECONDS:
                self._sweep(num_bytes)

    def _sweep(self, num_bytes: int) -> None:
        self._swept, old = time.monotonic(), time.time() - self.seconds
        unfinished = {batch_id for _, batch_id in self.open_batches()}
        sizes: Counter[Path] = Counter()
        files: defaultdict[Path, list[tuple[int, Path]]] = defaultdict(list)
        for path in sorted(self.folder.glob("*/*")):
            with suppress(OSError):
                status = path.stat()
                if path.parent.name == "open" or (path.suffix == ".jsonl" and path.with_suffix(".json").exists()):
                    continue
                if status.st_mtime < old and path.name not in unfinished:
                    _remove(path)
                elif path.suffix == ".json":
                    size = max(BLOCK, path.with_suffix(".jsonl").stat().st_size)
                    sizes[path.parent] += size
                    files[path.parent].append((size, path))
                elif path.is_dir():
                    sizes[path.parent] += sum(result.stat().st_size for result in path.glob("*.jsonl"))
        self._overfull = None
        while sizes and sizes.total() + num_bytes > self.max_bytes and self._overfull is None:
            ((largest, _),) = sizes.most_common(1)
            if files[largest]:
                size, path = files[largest].pop(0)
                sizes[largest] -= size
                with suppress(OSError):
                    _remove(path)
            else:
                self._overfull = largest
        self._room = max(0, self.max_bytes - sizes.total() - num_bytes)


def _remove(path: Path) -> None:
    """Remove a batch, or a file with its content."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
        path.with_suffix(".jsonl").unlink(missing_ok=True)
