"""The worker of both backends: shards in, committed shards out.

Pictures of the next shard enter the engine as soon as slots are free, so all slots stay busy across shards. One thread
draws codes and decodes them to pixels, so that a single torch thread pool is busy; a second one encodes and writes
files.

A picture's codes are drawn once. They are appended to the shard's journal before the picture's file is written, and the
same file can be made again from the codes in a journal, in a manifest, or in the receipt of a PNG.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from dalle import DALLE
from dalle.checkpoint import load_facts
from dalle.checkpoint.store import find_model
from dalle.device import keep_memory
from dalle.errors import DalleError
from dalle.pipeline import PromptRequest
from dalle.receipt import pack_codes, unpack_codes
from dalle.steps import StepKind, new_engine
from dalle.transformer.linear import Weights
from dalle.version import __version__
from serving.batch.credentials import Credentials
from serving.batch.items import Item, Layout, Shard
from serving.batch.manifest import blank_records, codes_digest
from serving.batch.open_shard import OpenShard, Picture, recover_codes
from serving.batch.storage import LocalStorage, open_storage
from serving.batch.writer import ShardDone, Writer
from serving.safety.errors import ModerationError
from serving.safety.moderation import Moderation
from serving.safety.settings import SafetySettings

__all__ = ["Worker", "WorkerSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Settings of a worker, the same on every machine."""

    model: str
    """Name or directory of the model."""
    model_digest: str
    device: str
    threads: int
    """Number of torch threads on the CPU."""
    num_slots: int
    step: StepKind
    """Kind of step, the same for the whole batch, since it decides how logits are rounded."""
    weights: Weights
    out: str
    layout: Layout
    certificate: str | None
    """PEM file with a chain of certificates to sign PNGs with. None leaves PNGs unsigned."""
    certificate_key: str | None
    resumed: bool
    """Whether the folder may have pictures of an earlier run. A folder on a disk is searched for them in any case."""
    safety: SafetySettings = dataclasses.field(default_factory=SafetySettings)


class Worker:
    """Draws shards with one model and one engine, and writes them to one folder."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Load the model. Raises `DalleError` if this machine does not have it, or has it with another digest."""
        self.settings = settings
        keep_memory()
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
        self.engine = new_engine(
            self.model, num_slots=settings.num_slots, step=settings.step, weights=settings.weights, parallel=1
        )
        self.storage = open_storage(settings.out)
        self._moderation = Moderation(settings.safety) if settings.safety.stages else None

    def close(self) -> None:
        """End the process that checks pictures, if there is one."""
        if self._moderation is not None:
            self._moderation.close()

    def run(
        self, shards: Iterable[Shard], on_step: Callable[[int], None] = lambda num_rows: None
    ) -> Iterator[ShardDone]:
        """Draw shards, and yield each when it is committed. `on_step` gets the number of rows that a step has drawn.

        The loop is not `Engine.stream`, which reads all requests before its first step: here shards are read while
        others are drawn, and are committed and reported between steps even if none of their pictures has to be drawn.

        Raises `StorageError` when something cannot be written; everything committed or noted until then is kept.
        """
        torch.set_num_threads(self.settings.threads)  # applies to this thread only
        with Writer(self.storage, self.settings.layout, self._facts, self._credentials, self._moderation) as writer:
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
                # after an early exit the engine must be empty for the next call
                for request_id in drawing:
                    self.engine.cancel(request_id)

    def _feed(self, shards: Iterable[Shard], writer: Writer) -> Iterator[Picture | None]:
        """Yield the pictures that have to be drawn, and None after each shard."""
        for shard in shards:
            opened = self._open(shard)
            known = {}
            if self.settings.resumed or isinstance(self.storage, LocalStorage):
                known = recover_codes(self.storage, opened, self._facts, self.settings.layout)
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
        requests: dict[int, PromptRequest] = {}
        refusals: dict[int, ModerationError | None] = {}
        for item, record in blank_records(shard, self.model.name, self.model.digest):
            opened.records.append(record)
            if item is None:
                continue
            if item.line not in refusals:
                refusals[item.line] = self._refusal(item)
            if (error := refusals[item.line]) is not None:
                record.update(error_code=error.refused.code, error=str(error))
                continue
            if record["key"] in opened.pictures:
                opened.pictures[record["key"]].duplicates.append(record)
                continue
            if item.line not in requests:
                requests[item.line] = self.model.request(
                    item.prompt,
                    item.sampling,
                    seed=item.seed,
                    negative_prompt=item.negative_prompt,
                    translation=item.translated.translation,
                )
            request = dataclasses.replace(requests[item.line], index=record["index"])
            opened.pictures[record["key"]] = Picture(opened, item, record, request)
        opened.num_left = len(opened.pictures)
        return opened

    def _refusal(self, item: Item) -> ModerationError | None:
        """Why an item's prompt may not be drawn; None if it may."""
        try:
            if self._moderation is not None:
                given = item.translated.translation
                if given is not None:
                    self._moderation.check_prompt(given.prompt)
                self._moderation.check_prompt(item.prompt)
        except ModerationError as error:
            return error
        return None

    def _finish(self, picture: Picture, grid: Tensor, writer: Writer, *, drawn: bool) -> None:
        """Decode codes (H, W) to pixels, and queue the file for the writing thread."""
        record, opened = picture.record, picture.shard
        codes = grid.tolist()
        packed = pack_codes(codes)
        record.update(
            codes=packed,
            codes_sha256=codes_digest(codes),
            step=self.engine.step_kind,
            software=f"dalle {__version__}",
        )
        opened.num_left -= 1
        opened.num_drawn += drawn
        opened.num_rows_drawn += picture.num_rows * drawn
        opened.times[record["key"]] = time.time()
        image, text = None, {}
        if self.settings.layout != "codes" or (self._moderation is not None and self._moderation.has_pictures):
            try:
                made = self.model.picture(
                    picture.request,
                    grid.flatten(),
                    background=picture.item.background,
                    step=self.engine.step_kind,
                ).enlarged(picture.item.enlargement)
                image, text = made.image, made.receipt.to_text()
            except DalleError as error:
                picture.fail(error)
        writer.put(picture, image, text, note=drawn)
        if opened.num_left == 0:
            writer.commit(opened)
