"""The one worker of both backends: shards in, committed shards out, with the engine's slots full all the while.

Pictures of the next shard enter the engine as soon as slots are free, whatever shard they are of. One thread draws and
decodes, in the order in which codes are finished; one more turns pixels into files and writes them, so that one torch
thread pool is busy and no other.

A picture is drawn at most once: its codes are noted in the shard's journal before its file is written, and from codes,
be they of the journal, of a manifest or of the receipt in a PNG, the same file can be made at any time.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from dalle import DALLE
from dalle.checkpoint import load_facts
from dalle.checkpoint.store import find_model
from dalle.decoder.engine import Engine
from dalle.errors import DalleError
from dalle.receipt import pack_codes, unpack_codes
from dalle.version import __version__
from serving.batch.credentials import Credentials
from serving.batch.manifest import blank_records, codes_digest
from serving.batch.opened import OpenShard, Picture, codes_of_before
from serving.batch.plan import Layout, Shard
from serving.batch.storage import LocalStorage, open_storage
from serving.batch.writer import ShardDone, Writer

__all__ = ["Worker", "WorkerSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a worker must know; the same on every machine."""

    model: str
    """Name or directory."""
    model_digest: str
    device: str
    threads: int
    """Of torch, on the CPU."""
    num_slots: int
    out: str
    layout: Layout
    certificate: str | None
    """PEM file of a chain of certificates, with which PNGs are signed; None does not sign."""
    certificate_key: str | None
    resumed: bool
    """Whether the folder may have pictures of an earlier run. On a disk it costs nothing to look in any case."""


class Worker:
    """A model and an engine, and the folder that pictures go to."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Raises `DalleError` if the model is not here, or is not the one that was asked for."""
        self.settings = settings
        self.model = DALLE.load(settings.model, device=settings.device)
        if self.model.digest != settings.model_digest:
            raise DalleError(
                f"the model {settings.model} has the digest {self.model.digest[:12]}... on this machine, and "
                f"{settings.model_digest[:12]}... where the batch was started"
            )
        self._facts = load_facts(find_model(settings.model))
        self._credentials: Credentials | None = None
        if settings.certificate is not None and settings.certificate_key is not None:
            self._credentials = Credentials(settings.certificate, settings.certificate_key)
        self.engine = Engine(self.model.decoder, num_slots=settings.num_slots)
        self.storage = open_storage(settings.out)

    def run(
        self, shards: Iterable[Shard], on_step: Callable[[int], None] = lambda num_rows: None
    ) -> Iterator[ShardDone]:
        """Draw shards, and yield each when it is committed. `on_step` is told how many rows a step has drawn.

        Raises `StorageError` when something cannot be written; what was committed and noted until then stays.
        """
        torch.set_num_threads(self.settings.threads)  # of this thread
        with Writer(self.storage, self.settings.layout, self._facts, self._credentials) as writer:
            drawing: dict[int, str] = {}
            wanted: dict[str, list[Picture]] = {}
            feed = self._feed(shards, writer)
            more = True
            try:
                while more or drawing:
                    while more and self.engine.num_waiting < self.engine.num_slots:
                        try:
                            picture = next(feed)
                        except StopIteration:
                            more = False
                            break
                        if picture is None:
                            break
                        key = picture.record["key"]
                        if key not in wanted:
                            drawing[self.engine.add(picture.request)] = key
                        wanted.setdefault(key, []).append(picture)
                    if drawing:
                        result = self.engine.step()
                        on_step(sum(wanted[drawing[request_id]][0].num_rows for request_id in result.drawn))
                        for request_id, codes in result.finished.items():
                            grid = self.model.decoder.layout.grid(codes[None])[0]
                            for i, picture in enumerate(wanted.pop(drawing.pop(request_id))):
                                self._finish(picture, grid, writer, drawn=i == 0)
                    yield from writer.done(wait=False)
                yield from writer.done(wait=True)
            finally:
                # left early: what is in the engine is of no use to the next call
                for request_id in drawing:
                    self.engine.cancel(request_id)

    def _feed(self, shards: Iterable[Shard], writer: Writer) -> Iterator[Picture | None]:
        """The pictures that have to be drawn, one by one; None after each shard."""
        for shard in shards:
            opened = self._open(shard)
            known = {}
            if self.settings.resumed or isinstance(self.storage, LocalStorage):
                known = codes_of_before(self.storage, opened, self._facts, self.settings.layout)
            for key, picture in opened.pictures.items():
                if key in known:
                    codes = torch.tensor(unpack_codes(known[key]))
                    self._finish(picture, codes, writer, drawn=False)
                else:
                    yield picture
            if not opened.pictures:
                writer.commit(opened)
            yield None

    def _open(self, shard: Shard) -> OpenShard:
        opened = OpenShard(shard, [], {}, 0)
        for row, record in blank_records(shard, self.model.name, self.model.digest):
            opened.records.append(record)
            if row is None:
                continue
            if record["key"] in opened.pictures:
                opened.pictures[record["key"]].same.append(record)
                continue
            request = self.model.request(
                row.prompt,
                row.sampling,
                seed=row.seed,
                index=record["index"],
                negative_prompt=row.negative_prompt,
            )
            opened.pictures[record["key"]] = Picture(opened, row, record, request)
        opened.num_left = len(opened.pictures)
        return opened

    def _finish(self, picture: Picture, grid: Tensor, writer: Writer, *, drawn: bool) -> None:
        """Pixels of codes (H, W), then the file, by the other thread."""
        record, opened = picture.record, picture.shard
        codes = grid.tolist()
        packed = pack_codes(codes)
        record.update(codes=packed, codes_sha256=codes_digest(codes), software=f"dalle {__version__}")
        opened.num_left -= 1
        opened.num_drawn += drawn
        opened.num_rows_drawn += picture.num_rows * drawn
        opened.times[record["key"]] = time.time()
        image, text = None, {}
        if self.settings.layout != "codes":
            try:
                made = self.model.picture(picture.request, grid.flatten(), background=picture.row.background)
                image, text = made.image, made.receipt.to_text()
            except DalleError as error:
                picture.fail(error)
        writer.put(picture, image, text, note=drawn)
        if opened.num_left == 0:
            writer.commit(opened)
