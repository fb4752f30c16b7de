"""The one thread that turns pixels into files and writes them, beside the one that draws.

It does things in the order that they are asked for: so when it comes to commit a shard, all files of it are written.
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
from serving.batch.manifest import Record, archive, picture_file, write_manifest
from serving.batch.opened import OpenShard, Picture, codes_in_file, journal_name
from serving.batch.plan import Layout
from serving.batch.storage import Storage, StorageError

__all__ = ["ShardDone", "Writer"]

MAX_UNWRITTEN = 64
"""Pictures that may wait to be written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardDone:
    """A shard that is committed."""

    number: int
    num_pictures: int
    num_drawn: int
    """Of these pictures, those whose codes were drawn now; the others' were there, or failed."""
    num_rows: int
    """Rows of the engine that these pictures take, drawn now or before."""
    num_rows_drawn: int
    """Of these rows, those that were drawn now."""
    times: dict[str, float]
    """When each picture was finished, in seconds since the epoch, by key."""


class Writer:
    """Used in a `with`, whose end waits until everything is written."""

    def __init__(self, storage: Storage, layout: Layout, facts: ModelFacts, credentials: Credentials | None) -> None:
        self.storage = storage
        self.layout = layout
        self.facts = facts
        self.credentials = credentials
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

    # -- on the thread that draws

    def put(self, picture: Picture, image: Image.Image | None, text: dict[str, str], *, note: bool) -> None:
        """Have a picture written, and its codes noted; waits while too many others wait. text: of a PNG."""
        names = ("key", "codes", "codes_sha256")
        noted = {name: picture.record[name] for name in names} if note else None
        self._unwritten.acquire()
        self._thread.submit(self._in_turn, lambda: self._write(picture, noted, image, text))

    def commit(self, opened: OpenShard) -> None:
        """Have a shard committed, after all pictures of it have been put."""
        self._commits.append(self._thread.submit(self._commit, opened))

    def done(self, *, wait: bool) -> Iterator[ShardDone]:
        """The shards that were committed since, or all that will be. Raises what kept the thread from writing."""
        while self._commits and (wait or self._commits[0].done()):
            yield self._commits.popleft().result()
        if self._failure is not None:
            raise self._failure

    # -- on the thread that writes

    def _in_turn(self, task: Callable[[], None]) -> None:
        try:
            if self._failure is None:
                task()
        except BaseException as error:
            self._failure = error
        finally:
            self._unwritten.release()

    def _write(self, picture: Picture, noted: Record | None, image: Image.Image | None, text: dict[str, str]) -> None:
        item, record, shard = picture.item, picture.record, picture.shard.shard
        if noted is not None:
            # a line feed in front: the line before may have been cut by a kill
            self.storage.append(journal_name(shard), b"\n" + json.dumps(noted).encode() + b"\n")
        if image is None:
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
        record["file"] = picture_file(shard, item, record["key"], self.layout)
        record["sha256"] = hashlib.sha256(picture.content).hexdigest()
        if self.layout == "files":
            self.storage.write(record["file"], picture.content)
            picture.content = b""

    def _signed(self, credentials: Credentials, picture: Picture) -> bytes:
        """The picture's file with a signature; the one that is there, if it is good: a new one would be another."""
        name = picture_file(picture.shard.shard, picture.item, picture.record["key"], self.layout)
        there = self.storage.read(name) if name is not None and self.layout == "files" else None
        if (
            there is not None
            and credentials.has_signed(there)
            and codes_in_file(self.storage, picture, self.facts, self.layout)
        ):
            return there
        return credentials.sign(picture.content)

    def _commit(self, opened: OpenShard) -> ShardDone:
        """Write what makes a shard done. All its pictures have been written before: there is one thread."""
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
