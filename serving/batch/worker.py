"""The worker of both backends: shards in, committed shards out.

Pictures of the next shard enter the engine as soon as slots are free, so all slots stay busy across shards. One thread
draws codes and decodes them to pixels, so that a single torch thread pool is busy; a second one encodes and writes
files.

A picture's codes are drawn once. They are appended to the shard's journal before the picture's file is written, and the
same file can be made again from the codes in a journal, in a manifest, or in the receipt of a PNG.

Candidates of an item are noted in the journal too. When the last one is finished they are compared, all together and in
the order of their indices, so that a resumed run makes the same choice. If pictures are checked for safety, candidates
are not noted, since only the chosen ones are checked: a resumed run draws them again.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from dalle import DALLE
from dalle.best_of import choose
from dalle.checkpoint import load_facts
from dalle.checkpoint.store import find_model
from dalle.device import keep_memory
from dalle.errors import DalleError
from dalle.pipeline import PromptRequest
from dalle.ranking import Ranking
from dalle.receipt import pack_codes, unpack_codes
from dalle.steps import StepKind, new_engine
from dalle.transformer.linear import Weights
from dalle.version import __version__
from serving.batch.choices import load_judges
from serving.batch.credentials import Credentials
from serving.batch.items import Item, Layout, Shard
from serving.batch.manifest import blank_records, codes_digest
from serving.batch.open_shard import (
    Candidate,
    Chosen,
    Contest,
    OpenShard,
    Picture,
    open_contest,
    recover_chosen,
    recover_codes,
)
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
    clip: str | None = None
    """Directory of the CLIP model that judges candidates; None if no item needs one."""
    clip_digest: str | None = None


class Worker:
    """Draws shards with one model and one engine, and writes them to one folder."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Load the model, and the CLIP model if there is one. Raises `DalleError` if this machine does not have them,
        or has them with another digest."""
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
        self._judges = load_judges(self.model, settings.clip, settings.clip_digest)
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
            wanted: dict[str, list[Picture | Candidate]] = {}
            feed = self._feed(shards, writer)
            more = True
            try:
                while more or drawing:
                    while more and self.engine.num_waiting < self.engine.num_slots:
                        try:
                            one = next(feed)
                        except StopIteration:
                            more = False
                            break
                        if one is None:
                            break
                        if one.key not in wanted:
                            drawing[self.engine.add(one.request)] = one.key
                        wanted.setdefault(one.key, []).append(one)
                    if drawing:
                        result = self.engine.step()
                        on_step(sum(wanted[drawing[request_id]][0].num_rows for request_id in result.drawn))
                        for request_id, codes in result.finished.items():
                            grid = self.model.decoder.layout.grid(codes[None])[0]
                            for i, one in enumerate(wanted.pop(drawing.pop(request_id))):
                                self._take(one, grid, writer, drawn=i == 0)
                    yield from writer.done(wait=False)
                yield from writer.done(wait=True)
            finally:
                # after an early exit the engine must be empty for the next call
                for request_id in drawing:
                    self.engine.cancel(request_id)

    def _feed(self, shards: Iterable[Shard], writer: Writer) -> Iterator[Picture | Candidate | None]:
        """Yield the pictures and candidates that have to be drawn, and None after each shard."""
        for shard in shards:
            opened = self._open(shard)
            known: dict[str, str] = {}
            chosen: dict[str, Chosen] = {}
            if self.settings.resumed or isinstance(self.storage, LocalStorage):
                known = recover_codes(self.storage, opened, self._facts, self.settings.layout)
                chosen = recover_chosen(self.storage, opened, self._facts, self.settings.layout)
            for one in self._to_draw(opened, chosen, writer):
                if one.key in known:
                    self._take(one, torch.tensor(unpack_codes(known[one.key])), writer, drawn=False)
                else:
                    yield one
            if not opened.pictures:
                writer.commit(opened)
            yield None

    def _to_draw(
        self, opened: OpenShard, chosen: Mapping[str, Chosen], writer: Writer
    ) -> Iterator[Picture | Candidate]:
        """Yield a shard's pictures without candidates, and the candidates of all others, in the order of the items. A
        contest whose pictures all were chosen before is finished at once."""
        for picture in opened.pictures.values():
            contest = picture.contest
            if contest is None:
                yield picture
            elif picture is not contest.pictures[0]:
                continue
            elif all(one.key in chosen for one in contest.pictures):
                for one in contest.pictures:
                    before = chosen[one.key]
                    codes = torch.tensor(unpack_codes(before.codes))
                    self._place(one, before.index, before.ranking)
                    self._finish(one, codes, writer, drawn=False, ranking=before.ranking)
            else:
                yield from contest.candidates

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
            picture = Picture(opened, item, record, requests[item.line])
            opened.pictures[record["key"]] = picture
            if item.choice is None:
                picture.request = dataclasses.replace(picture.request, index=record["index"])
            else:
                open_contest(opened, picture, self.model.digest)
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

    def _take(self, one: Picture | Candidate, grid: Tensor, writer: Writer, *, drawn: bool) -> None:
        """Take the codes (H, W) of a picture or a candidate: make a file of it, or compare all candidates if it was the
        last one."""
        opened = one.shard if isinstance(one, Picture) else one.contest.shard
        opened.num_rows_drawn += one.num_rows * drawn
        if isinstance(one, Picture):
            self._finish(one, grid, writer, drawn=drawn)
            return
        contest, index = one.contest, one.request.index
        contest.codes[index] = grid.flatten()
        if drawn:
            contest.drawn.add(index)
        if drawn and (self._moderation is None or not self._moderation.has_pictures):
            codes = grid.tolist()
            writer.note(opened, {"key": one.key, "codes": pack_codes(codes), "codes_sha256": codes_digest(codes)})
        if contest.is_complete:
            self._choose(contest, writer)

    def _choose(self, contest: Contest, writer: Writer) -> None:
        """Compare all candidates, and make files of the best."""
        candidates = [(one.request, contest.codes[one.request.index]) for one in contest.candidates]
        judge = self._judges[contest.choice.rerank]
        try:
            best = choose(judge, candidates[0][0].prompt, candidates, len(contest.pictures))
        except DalleError as error:
            for picture in contest.pictures:
                picture.fail(error)
            self._settle(contest.shard, len(contest.pictures), writer)
            return
        for picture, (request, codes, ranking) in zip(contest.pictures, best, strict=True):
            self._place(picture, request.index, ranking)
            grid = self.model.decoder.layout.grid(codes[None])[0]
            self._finish(picture, grid, writer, drawn=request.index in contest.drawn, ranking=ranking)
        contest.codes.clear()

    @staticmethod
    def _place(picture: Picture, index: int, ranking: Ranking) -> None:
        """Enter the index of a chosen picture, and its place among the candidates."""
        picture.request = dataclasses.replace(picture.request, index=index)
        picture.record.update(index=index, ranking=ranking.to_dict())

    def _finish(
        self, picture: Picture, grid: Tensor, writer: Writer, *, drawn: bool, ranking: Ranking | None = None
    ) -> None:
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
        opened.num_drawn += drawn
        opened.times[record["key"]] = time.time()
        image, text = None, {}
        if self.settings.layout != "codes" or (self._moderation is not None and self._moderation.has_pictures):
            try:
                made = self.model.picture(
                    picture.request,
                    grid.flatten(),
                    background=picture.item.background,
                    step=self.engine.step_kind,
                    ranking=ranking,
                ).enlarged(picture.item.enlargement)
                image, text = made.image, made.receipt.to_text()
            except DalleError as error:
                picture.fail(error)
        writer.put(picture, image, text, note=drawn and ranking is None)
        self._settle(opened, 1, writer)

    @staticmethod
    def _settle(opened: OpenShard, num_pictures: int, writer: Writer) -> None:
        """Count pictures that are put or failed, and commit their shard after the last one."""
        opened.num_left -= num_pictures
        if opened.num_left == 0:
            writer.commit(opened)
