"""What a folder says of itself: `batch.json`, of which model and settings it is, and `log.jsonl`, with the times."""

import contextlib
import json
import os
import shutil
import tempfile
import time
from types import TracebackType
from typing import Any, Self

import torch

from dalle.version import __version__
from serving.batch.plan import Planner
from serving.batch.storage import Storage, StorageError
from serving.batch.worker import WorkerSettings

__all__ = ["Log", "check_description", "circumstances", "read_description", "write_description"]

DESCRIPTION = "batch.json"
LOG = "log.jsonl"


def write_description(storage: Storage, planner: Planner, settings: WorkerSettings) -> None:
    """Say what the folder is of. Raises `StorageError`."""
    computed = {"num_slots": settings.num_slots, "threads": settings.threads}
    described = {"format_version": 1, "of": _identity(planner), "computed": computed}
    storage.write(DESCRIPTION, json.dumps(described, indent=2).encode() + b"\n")


def _identity(planner: Planner) -> dict[str, Any]:
    return {"model_digest": planner.facts.digest, **planner.settings.to_dict()}


def read_description(storage: Storage) -> dict[str, Any] | None:
    """What the folder is of, None if nothing was begun in it. Raises `StorageError` for what cannot be read."""
    content = storage.read(DESCRIPTION)
    if content is None:
        return None
    try:
        described: dict[str, Any] = json.loads(content)
        known = described["computed"].keys() == {"num_slots", "threads"} and isinstance(described["of"], dict)
        if described["format_version"] == 1 and known:
            return described
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise StorageError(f"{DESCRIPTION} in {storage} is damaged, or not of this release: choose another folder")


def check_description(storage: Storage, described: dict[str, Any] | None, planner: Planner) -> None:
    """Raise `StorageError` if the folder has a batch of another model or with other settings."""
    if described is None:
        return
    asked, begun = ({"background": "auto"} | of for of in (_identity(planner), described["of"]))
    for name, value in asked.items():
        before = begun.get(name)
        if before != value:
            raise StorageError(
                f"{storage} has a batch with {name} {before}, and this one has {value}: choose another folder"
            )


class Log:
    """When what was done: lines of JSON that are added, never compared, and of no use to the next run. Used in a
    `with`, after which it is whole also where nothing can be added to a file."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._kept = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `__exit__`)
        """What could not be added at once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._kept, contextlib.suppress(StorageError):
            self.close()

    def write(self, **values: Any) -> None:
        line = json.dumps({"time": time.time(), **values}).encode() + b"\n"
        if self.storage.append(LOG, line):
            return
        try:
            self._kept.write(line)
        except OSError as error:
            raise StorageError(f"cannot write {LOG} to {tempfile.gettempdir()}: {error.strerror or error}") from error

    def close(self) -> None:
        """Write what could not be added at once. Raises `StorageError`."""
        if not self._kept.tell():
            return
        with self.storage.replace(LOG) as file:
            if LOG in self.storage.list(""):
                file.writelines(self.storage.lines(LOG))
            self._kept.seek(0)
            shutil.copyfileobj(self._kept, file)
        self._kept.seek(0)
        self._kept.truncate()


def circumstances(settings: WorkerSettings) -> dict[str, Any]:
    """What else decides how, and how fast, pictures are drawn; for the log."""
    return {
        "num_slots": settings.num_slots,
        "threads": settings.threads,
        "device": settings.device,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "software": f"dalle {__version__}",
        "process": os.getpid(),
    }
