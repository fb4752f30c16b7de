"""The thread that encodes pictures into files and writes them, beside the thread that draws.

There is one thread, so tasks run in the order in which they are submitted: when a shard's commit runs, all of its
pictures are written.
"""

import dataclasses
import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from PIL import Image

from dalle.checkpoint import ModelFacts
from dalle.errors import DalleError
from dalle.images import encode_image
from serving.batch.credentials import Credentials
from serving.batch.items import Layout
from serving.batch.manifest import Record, archive, picture_file, write_manifest
from serving.batch.open_shard import OpenShard, Picture, journal_name, receipt_in_png
from serving.batch.storage import Storage, StorageError
from serving.safety.errors import CheckUnavailableError, ModerationError
from serving.safety.moderation import Moderation

__all__ = ["ShardDone", "Writer"]

MAX_UNWRITTEN = 64
"""Limit on pictures that wait to be written; `Writer.put` blocks beyond it."""
NOTED = ("key", "codes", "codes_sha256")
"""Fields of a line of a journal."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardDone:
    """A committed shard. The log has these fields as they are."""

    number: int
    num_pictures: int
    num_drawn: int
    """Number of these pictures whose codes were drawn in this run. All others were drawn before, or failed."""
    num_rows: int
    """Number of rows (token sequences) of these pictures: two for a guided picture, one for any other."""
    num_rows_drawn: int
    """Number of these rows that were drawn in this run."""
    times: dict[str, float]
    """Time at which each picture was finished, in seconds since the epoch, by key."""


class Writer:
    """Encodes and writes pictures on a thread of its own; a context manager, whose end waits for all writes."""

    def __init__(
        self,
        storage: Storage,
        layout: Layout,
        facts: ModelFacts,
        credentials: Credentials | None,
        moderation: Moderation | None = None,
    ) -> None:
        self.storage = storage
        self.layout = layout
        self.facts = facts
        self.credentials = credentials
        self.moderation = moderation
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="files")
        self._failure: BaseException | None = None
        self._commits: deque[Future[ShardDone]] = deque()
        self._unwritten = threading.BoundedSemaphore(MAX_UNWRITTEN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()

    # -- called by the thread that draws

    def put(self, picture: Picture, image: Image.Image | None, text: dict[str, str], *, note: bool) -> None:
        """Queue a picture to be checked, encoded and written. Blocks while `MAX_UNWRITTEN` pictures are queued.

        image: None writes no file, and so does the layout `codes`. text: text chunks of a PNG. note: whether to append
        the codes to the journal first.
        """
        noted = {name: picture.record[name] for name in NOTED} if note else None
        self._unwritten.acquire()
        self._thread.submit(self._run_task, lambda: self._write(picture, noted, image, text))

    def note(self, opened: OpenShard, noted: Record) -> None:
        """Queue the codes of a candidate (the fields `NOTED`) to be appended to the shard's journal. Blocks as `put`
        does."""
        self._unwritten.acquire()
        self._thread.submit(self._run_task, lambda: self._note(opened, noted))

    def commit(self, opened: OpenShard) -> None:
        """Queue a shard to be committed. All of its pictures must have been put before."""
        self._commits.append(self._thread.submit(self._commit, opened))

    def done(self, *, wait: bool) -> Iterator[ShardDone]:
        """Yield the shards that have been committed since the last call; with `wait`, all that are queued, too.

        Raises the error that stopped the writing thread.
        """
        while self._commits and (wait or self._commits[0].done()):
            yield self._commits.popleft().result()
        if self._failure is not None:
            raise self._failure

    # -- run on the thread that writes

    def _run_task(self, task: Callable[[], None]) -> None:
        try:
            if self._failure is None:
                task()
        except BaseException as error:
            self._failure = error
        finally:
            self._unwritten.release()

    def _write(self, picture: Picture, noted: Record | None, image: Image.Image | None, text: dict[str, str]) -> None:
        item, record, opened = picture.item, picture.record, picture.shard
        if self.moderation is not None and self.moderation.has_pictures:
            if image is None:  # it could not be decoded, so it was not judged
                picture.withhold()
                return
            try:
                self.moderation.check_picture(image)
            except CheckUnavailableError:
                raise  # the batch stops, and is resumed by the same command
            except ModerationError as error:
                picture.refuse(error)
                return
        if noted is not None:
            self._note(opened, noted)
        if image is None or self.layout == "codes":
            return
        try:
            picture.content = encode_image(
                image, format=item.image_format, quality=item.quality, text=text if item.image_format == "png" else None
            )
            if self.credentials is not None and item.image_format == "png":
                picture.content = self._signed(self.credentials, picture)
        except StorageError:
            raise
        except DalleError as error:
            picture.fail(error)
            return
        record["file"] = picture_file(opened.shard, item, record["key"], self.layout)
        record["sha256"] = hashlib.sha256(picture.content).hexdigest()
        if self.layout == "files":
            self.storage.write(record["file"], picture.content)
            picture.content = b""

    def _note(self, opened: OpenShard, noted: Record) -> None:
        # the leading line feed ends a line that a kill may have cut off
        self.storage.append(journal_name(opened.shard), b"\n" + json.dumps(noted).encode() + b"\n")

    def _signed(self, credentials: Credentials, picture: Picture) -> bytes:
        """The picture's file with a signature. A valid signed file is kept: every new signature has other bytes."""
        name = picture_file(picture.shard.shard, picture.item, picture.record["key"], self.layout)
        existing = self.storage.read(name) if name is not None and self.layout == "files" else None
        if (
            existing is not None
            and credentials.has_signed(existing)
            and receipt_in_png(self.storage, picture, self.facts, self.layout) is not None
        ):
            return existing
        return credentials.sign(picture.content)

    def _commit(self, opened: OpenShard) -> ShardDone:
        """Write the shard's archive, if any, and its manifest. Earlier tasks have written all of its pictures."""
        if self._failure is not None:
            raise self._failure
        for picture in opened.pictures.values():
            for record in picture.duplicates:
                record.update({name: value for name, value in picture.record.items() if record[name] is None})
        if self.layout == "tar":
            good = [one for one in opened.pictures.values() if one.record["error"] is None]
            packed = archive((one.item, one.record, one.content) for one in good)
            self.storage.write(f"pictures/{opened.shard.name}.tar", packed)
        self.storage.flush()
        write_manifest(self.storage, opened.shard, opened.records)
        self.storage.flush()
        self.storage.remove(journal_name(opened.shard))
        return ShardDone(
            number=opened.shard.number,
            num_pictures=opened.shard.num_pictures,
            num_drawn=opened.num_drawn,
            num_rows=opened.shard.num_rows,
            num_rows_drawn=opened.num_rows_drawn,
            times=opened.times,
        )
