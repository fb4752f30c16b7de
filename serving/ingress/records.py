"""`Records`: requests whose answers are kept for a while, as folders that several ingresses can share.

The process that draws a request holds the lock of its folder. The system releases the lock when the process dies,
however it dies, so that another ingress can tell that the request has to be drawn again. All methods block on the file
system: call them in a thread.
"""

import dataclasses
import json
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from dalle.errors import ConfigError
from dalle.files import atomic_write, prepare_folder
from serving.errors import ApiError
from serving.ingress.drawing import Asked
from serving.ingress.uploads import Upload

__all__ = ["FINAL", "Record", "Records", "State"]

NAME = re.compile(r"job_[0-9a-f]{32}")
SWEEP_SECONDS = 60.0
FINAL = ("completed", "failed", "cancelled")
"""States that do not change any more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """How far a request is."""

    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"] = "queued"
    created: int
    """When it was first accepted, in seconds since the epoch."""
    job: str
    """Id of the job that draws it."""
    model: str | None = None
    position: int | None = None
    """Pictures of others that were to get slots before its first one, when it was accepted."""
    due: float | None = None
    """Predicted time of its last picture, in seconds since the epoch."""
    num_drawn: int = 0


class Record:
    """One request: what it asked for, how far it is, and its answer. Files that are read are always whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name
        self._lock = FileLock(folder / "lock", thread_local=False)

    def acquire(self) -> bool:
        """Take the lock, to draw it. False if another process, or another task of this one, has it."""
        try:
            self._lock.acquire(blocking=False)
        except (Timeout, OSError):
            return False
        return True

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    @property
    def is_drawn(self) -> bool:
        """Whether a living process draws it now."""
        if not self.acquire():
            return True
        self.release()
        return False

    @property
    def asked(self) -> Asked:
        files = {name: self._read(name) for name in ("image", "mask")}
        upload = None if files["image"] is None else Upload(files["image"], files["mask"])
        return Asked.from_json((self.folder / "request.json").read_text(encoding="utf-8"), upload)

    @property
    def state(self) -> State | None:
        """How far it is; None before it is accepted for the first time."""
        content = self._read("state.json")
        return None if content is None else State(**json.loads(content))

    @state.setter
    def state(self, state: State) -> None:
        atomic_write(self.folder / "state.json", json.dumps(dataclasses.asdict(state)))

    @property
    def answer(self) -> dict[str, Any] | None:
        """Body of the response, or of the error if it failed."""
        content = self._read("answer.json")
        return None if content is None else dict(json.loads(content))

    @answer.setter
    def answer(self, body: dict[str, Any]) -> None:
        atomic_write(self.folder / "answer.json", json.dumps(body))

    @property
    def preview(self) -> bytes | None:
        """The last preview or picture."""
        return self._read("preview")

    @preview.setter
    def preview(self, image: bytes) -> None:
        atomic_write(self.folder / "preview", image)

    def write_request(self, asked: Asked) -> None:
        """Write what was asked for. The request itself comes last: a record without it is unfinished."""
        if asked.upload is not None:
            for name, content in (("image", asked.upload.image), ("mask", asked.upload.mask)):
                if content is not None:
                    atomic_write(self.folder / name, content)
        atomic_write(self.folder / "request.json", asked.to_json())

    def is_of(self, asked: Asked) -> bool:
        """Whether this is a record of the same request, whatever its seed if it names none."""
        own = self.asked
        seed = {"seed": own.fields.seed} if asked.fields.seed is None else {}
        same = dataclasses.replace(asked, fields=asked.fields.model_copy(update=seed), base_url=own.base_url)
        return same.to_json() == own.to_json() and same.upload == own.upload

    def fail(self, error: ApiError) -> None:
        """Write an error as the answer of an accepted request."""
        state = self.state
        assert state is not None
        self.answer = {"error": error.body["error"] | {"status": error.status}}
        status: Literal["cancelled", "failed"] = "cancelled" if error.code == "request_cancelled" else "failed"
        self.state = dataclasses.replace(state, status=status)

    def remove(self) -> None:
        """Remove it, so that the same request can be made again."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None


class Records:
    """A folder of records, kept for `seconds` after their last change and taking about `max_bytes` at most; the oldest
    that are finished are removed first. Raises `ConfigError` for a folder that cannot be written to."""

    def __init__(self, folder: Path, seconds: float, max_bytes: int) -> None:
        self.folder = folder
        self.seconds = seconds
        self.max_bytes = max_bytes
        self._swept = 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            prepare_folder(folder)
        except OSError as error:
            raise ConfigError(f"the folder of requests {folder} cannot be written to: {error}") from error

    def open(self, record_id: str) -> tuple[Record, bool]:
        """The record with an id, made if it is new; and whether this call made it."""
        if time.monotonic() > self._swept + SWEEP_SECONDS:
            self._sweep()
        record = Record(self.folder / record_id)
        try:
            record.folder.mkdir(mode=0o700)
        except FileExistsError:
            return record, False
        return record, True

    def find(self, record_id: str, owner: str) -> Record | None:
        """The accepted request of a caller with this id; None if it is unknown, somebody else's or expired."""
        if NAME.fullmatch(record_id) is None:
            return None
        record = Record(self.folder / record_id)
        try:
            if record.state is None or record.asked.caller != owner:
                return None
            return record if record.folder.stat().st_mtime + self.seconds > time.time() else None
        except (OSError, ValueError):
            return None

    def _sweep(self) -> None:
        """Remove expired records, and the oldest finished ones above the size."""
        self._swept, now, size = time.monotonic(), time.time(), 0
        found: list[tuple[float, int, Path]] = []
        for folder in self.folder.iterdir():
            if NAME.fullmatch(folder.name):
                with suppress(OSError):
                    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
                    found.append((folder.stat().st_mtime, num_bytes, folder))
        for changed, num_bytes, folder in sorted(found, reverse=True):
            size += num_bytes
            if (changed + self.seconds < now or size > self.max_bytes) and not Record(folder).is_drawn:
                shutil.rmtree(folder, ignore_errors=True)
                size -= num_bytes
