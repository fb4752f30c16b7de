"""`StoredBatch`: one batch in its folder, and how far it is.

    input.jsonl                   the file's content, until the batch is finished
    batch.json                    the batch as the API describes it
    output.jsonl, errors.jsonl    a result for each request so far; finished, they are files of the caller
    cancel                        is there if the caller wants it to end
    lock                          held by the process that draws it

The process that holds the lock is the only one that writes, but for `cancel`. The system releases the lock when the
process dies, however it dies. All methods block on the file system: call them in a thread.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from dalle.files import atomic_write, flush_file
from serving.ingress.batches.lines import BatchLine, read_lines
from serving.ingress.batches.schemas import Batch, BatchError, BatchErrors, BatchRequest, Counts
from serving.ingress.batches.shelf import Shelf, new_id

__all__ = ["FINAL", "StoredBatch"]

FINAL = frozenset({"failed", "completed", "expired", "cancelled"})
"""States that do not change any more."""
WINDOW_SECONDS = 24 * 3600
SAVE_SECONDS = 1.0
"""Least time between two notes of how far a batch is."""
REST = {
    "cancelled": ("batch_cancelled", "the batch was cancelled before this request was drawn"),
    "expired": ("batch_expired", "the request could not be drawn before the completion window expired"),
    "completed": ("batch_too_large", "the results before this request have filled the store"),
}
"""Code and message for the requests of a batch that ended without them, by its last state."""


class StoredBatch:
    """A batch of a caller."""

    def __init__(self, shelf: Shelf, caller: str, folder: Path) -> None:
        self.id = folder.name
        self.caller = caller
        self.folder = folder
        self.done: set[str] = set()
        """The custom_id of each request that has a result, once `acquire` has returned True."""
        self.expires_at = 0.0
        """When what is not drawn expires, in seconds since the epoch; also known once the lock is held."""
        self._shelf = shelf
        self._lock = FileLock(folder / "lock", thread_local=False)
        self._files: dict[str, FileIO] = {}
        self._counts = Counts()
        self._saved = 0.0

    @classmethod
    def create(cls, shelf: Shelf, caller: str, asked: BatchRequest) -> Self:
        """A new batch. Raises `FileNotFoundError` if the content of its file has just been removed."""
        batch = cls(shelf, caller, shelf.of(caller) / new_id("batch_"))
        batch.folder.mkdir(mode=0o700)
        content, now = shelf.content(caller, asked.input_file_id), int(time.time())
        try:
            os.link(content, batch.input)
        except OSError:  # a file system without links, or the content is gone
            shutil.copyfile(content, batch.input)
        shelf.set_open(caller, batch.id, True)
        batch._save(Batch(id=batch.id, created_at=now, expires_at=now + WINDOW_SECONDS, **asked.model_dump()))
        return batch

    @property
    def input(self) -> Path:
        return self.folder / "input.jsonl"

    @property
    def state(self) -> Batch:
        """The batch as it is, for its caller."""
        state = self._stored
        with suppress(FileNotFoundError):
            asked_at = int((self.folder / "cancel").stat().st_mtime)
            if state.status not in FINAL:
                return state.model_copy(update={"status": "cancelling", "cancelling_at": asked_at})
        return state

    def cancel(self) -> None:
        """Ask the process that draws it to stop."""
        (self.folder / "cancel").touch()

    # -- for the process that draws it

    def acquire(self) -> bool:
        """Take the lock, and read the results so far. False if another process, or this one, draws the batch, or if it
        is finished. Call `release` in any case."""
        try:
            self._lock.acquire(blocking=False)
        except (Timeout, OSError):
            return False
        state = self.state
        if state.status in FINAL:  # the process died, or another one finished it just now
            self._shelf.set_open(self.caller, self.id, False)
            return False
        self.expires_at = state.expires_at
        self._counts = state.request_counts
        if state.finalizing_at is None:
            completed, failed = (self._open(name) for name in ("output", "errors"))
            self._counts = Counts(total=self._counts.total, completed=completed, failed=failed)
        return True

    def release(self) -> None:
        """Close the results, and release the lock, if this process has it."""
        for file in self._files.values():
            file.close()
        self._lock.release()

    @property
    def ending(self) -> str | None:
        """The state in which a batch has to end now, drawn or not; None if it can be drawn."""
        state = self.state
        if state.status == "cancelling":
            return "cancelled"
        return "expired" if state.expires_at < time.time() and state.status not in FINAL else None

    def lines(self) -> Iterator[BatchLine]:
        """The requests of a file that was validated."""
        return (line for line in read_lines(self.input) if isinstance(line, BatchLine))

    def fail(self, errors: list[BatchError]) -> None:
        """End a batch whose file is invalid."""
        self._end(status="failed", failed_at=int(time.time()), errors=BatchErrors(data=errors))

    def begin(self, total: int) -> None:
        """Note that the file is valid."""
        self._counts = Counts(total=total)
        self._update(status="in_progress", in_progress_at=int(time.time()))

    def record(self, custom_id: str, response: dict[str, Any]) -> None:
        """Append the response to a request."""
        self._shelf.sweep(self._append(custom_id, response, None))
        if time.monotonic() > self._saved + SAVE_SECONDS:
            self._update()

    def _append(self, custom_id: str, response: dict[str, Any] | None, error: dict[str, Any] | None) -> int:
        """Append a result. Returns its size in bytes."""
        ok = response is not None and response["status_code"] == 200
        entry = {"id": new_id("batch_req_"), "custom_id": custom_id, "response": response, "error": error}
        text = json.dumps(entry).encode() + b"\n"
        if self._files["output" if ok else "errors"].write(text) < len(text):
            raise OSError(f"a result of the batch {self.id} could not be written whole")
        self.done.add(custom_id)
        changed = {"completed": self._counts.completed + 1} if ok else {"failed": self._counts.failed + 1}
        self._counts = self._counts.model_copy(update=changed)
        return len(text)

    def finish(self, status: str) -> None:
        """End it in this state, unless it has ended: requests without a result get an error, and the results become
        files. Called again after an interruption, it does what is left to do."""
        state = self.state
        if state.status in FINAL:
            return
        if state.finalizing_at is None:
            if state.in_progress_at is not None:
                code, message = REST[status]
                for line in self.lines():
                    if line.custom_id not in self.done:
                        self._append(line.custom_id, None, {"code": code, "message": message})
            ids = {}
            for name, field in (("output", "output_file_id"), ("errors", "error_file_id")):
                if self._files[name].tell():
                    flush_file(self.folder / f"{name}.jsonl")
                    ids[field] = new_id("file-")
            now = int(time.time())
            asked = {"cancelling_at": state.cancelling_at} if status == "cancelled" else {}
            expired = {"expired_at": now} if status == "expired" else {}
            state = self._update(status="finalizing", finalizing_at=now, **ids, **asked, **expired)
        for name, file_id in (("output", state.output_file_id), ("errors", state.error_file_id)):
            if file_id is not None:
                source = self.folder / f"{name}.jsonl"
                self._shelf.add(self.caller, file_id, f"{self.id}_{source.name}", "batch_output", source)
        if state.cancelling_at is not None:
            self._end(status="cancelled", cancelled_at=int(time.time()))
        elif state.expired_at is not None:
            self._end(status="expired")
        else:
            self._end(status="completed", completed_at=int(time.time()))

    def _open(self, name: str) -> int:
        """Open results to append to. Returns their number; a last one that was not written whole is cut off."""
        path = self.folder / f"{name}.jsonl"
        path.touch()
        num_results, end = 0, 0
        with path.open("rb") as file, suppress(ValueError):
            for text in file:
                if not text.endswith(b"\n"):
                    break
                self.done.add(json.loads(text)["custom_id"])
                num_results, end = num_results + 1, end + len(text)
        os.truncate(path, end)
        self._files[name] = path.open("ab", buffering=0)
        return num_results

    def _end(self, **changes: Any) -> None:
        self._update(**changes)
        self.input.unlink(missing_ok=True)
        self._shelf.set_open(self.caller, self.id, False)

    def _update(self, **changes: Any) -> Batch:
        """Change the batch, and note how far it is."""
        state = self._stored.model_copy(update=changes | {"request_counts": self._counts})
        self._save(state)
        return state

    @property
    def _stored(self) -> Batch:
        return Batch.model_validate_json((self.folder / "batch.json").read_bytes())

    def _save(self, state: Batch) -> None:
        atomic_write(self.folder / "batch.json", state.model_dump_json())
        self._saved = time.monotonic()
