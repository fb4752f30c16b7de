"""`log.jsonl`: when each run, shard and picture was finished. It is the only file of a batch with times in it.

Lines of JSON are appended and never compared, and no later run depends on them.
"""

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
from serving.batch.storage import Storage, StorageError
from serving.batch.worker import WorkerSettings

__all__ = ["Log", "run_facts"]

LOG = "log.jsonl"


class Log:
    """Appends to `log.jsonl`; a context manager.

    On a storage that cannot append, lines are kept in a temporary file until `close`, or the end of the `with`.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._kept = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `__exit__`)
        """Lines that the storage could not append."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._kept, contextlib.suppress(StorageError):
            self.close()

    def write(self, **values: Any) -> None:
        """Append a line with the time and these values. Raises `StorageError`."""
        line = json.dumps({"time": time.time(), **values}).encode() + b"\n"
        if self.storage.append(LOG, line):
            return
        try:
            self._kept.write(line)
        except OSError as error:
            raise StorageError(f"cannot write {LOG} to {tempfile.gettempdir()}: {error.strerror or error}") from error

    def close(self) -> None:
        """Write the lines that the storage could not append, after those of earlier runs. Raises `StorageError`."""
        if not self._kept.tell():
            return
        with self.storage.replace(LOG) as file:
            if LOG in self.storage.list(""):
                file.writelines(self.storage.lines(LOG))
            self._kept.seek(0)
            shutil.copyfileobj(self._kept, file)
        self._kept.seek(0)
        self._kept.truncate()


def run_facts(settings: WorkerSettings) -> dict[str, Any]:
    """Facts about a run that decide rounding and speed: slots, threads, device, CPU features and software."""
    return {
        "num_slots": settings.num_slots,
        "threads": settings.threads,
        "step": settings.step,
        "weights": settings.weights,
        "device": settings.device,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "software": f"dalle {__version__}",
        "process": os.getpid(),
    }
