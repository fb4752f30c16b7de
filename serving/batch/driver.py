"""A batch from its file of prompts to its folder, on either backend.

The prompts are read three times, as a stream each time: to count and check them and see what is already there, to draw
what is missing, and to merge what was drawn. Nothing that grows with their number is held in memory, but a number for
each shard that is pending, and a digest of each custom_id of OpenAI's.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from dalle.checkpoint import ModelFacts, load_facts
from dalle.checkpoint.store import find_model
from dalle.errors import DalleError, DataError
from dalle.images import chosen_background
from dalle.receipt import printable
from serving.batch import estimate, local, pages
from serving.batch.description import (
    Log,
    check_description,
    circumstances,
    read_description,
    write_description,
)
from serving.batch.manifest import is_done, shares_none
from serving.batch.plan import FIELDS, Planner, PlanSettings, Refusal, Shard
from serving.batch.progress import Progress, follow
from serving.batch.prompts import read_prompts
from serving.batch.results import REFUSED, Counts, merge
from serving.batch.storage import WORK, Storage, StorageError, open_storage
from serving.batch.worker import WorkerSettings
from serving.batch.writer import ShardDone

__all__ = ["DONE", "INTERRUPTED", "REFUSED_SOME", "STOPPED", "Batch", "run_batch"]

DONE, REFUSED_SOME, STOPPED, INTERRUPTED = 0, 3, 4, 130
"""Exit codes."""
SHOWN = 5
"""Refused lines that are printed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """What to do."""

    prompts: str
    out: str
    model: str
    plan: PlanSettings
    device: str = "auto"
    backend: Literal["local", "ray"] = "local"
    workers: int | None = None
    threads: int | None = None
    gpus: float = 0
    num_slots: int | None = None
    certificate: str | None = None
    certificate_key: str | None = None
    strict: bool = False
    retry_failed: bool = False
    dry_run: bool = False
    contact_sheet: bool = False
    gallery: bool = False


@dataclasses.dataclass(kw_only=True)
class _Count:
    """Of the first reading."""

    num_lines: int = 0
    num_refused: int = 0
    num_pictures: int = 0
    num_left: int = 0
    """Pictures in shards that are pending."""
    num_rows_left: int = 0
    pending: set[int] = dataclasses.field(default_factory=set)
    refused: list[Refusal] = dataclasses.field(default_factory=list)
    """The first few."""


def run_batch(batch: Batch) -> int:
    """Do it, and return the exit code. Raises `DalleError` for a mistake that is seen before anything is drawn."""
    folder = find_model(batch.model).absolute()
    facts = load_facts(folder)
    plan = batch.plan
    # an option that no line could follow is one mistake, and not one of every line
    chosen_background(plan.background, mode=facts.image_mode, model=facts.name, format=plan.image_format)
    planner = Planner(facts, Path(batch.model).name, plan)
    storage = open_storage(batch.out)

    def shards() -> Iterator[Shard]:
        return planner.shards(read_prompts(batch.prompts, FIELDS))

    described = read_description(storage)
    check_description(storage, described, planner)
    settings = _worker_settings(batch, str(folder), facts, described)
    doing = "checking what is there" if settings.resumed else "reading the prompts"
    count = _count(
        follow(shards(), doing), lambda shard: _is_done(storage, shard, batch, facts, resumed=settings.resumed)
    )
    if not count.num_lines:
        raise DalleError(f"there are no prompts in {batch.prompts}")
    if described is not None and shares_none(storage, shards(), facts):
        raise DalleError(
            f"none of the pictures in {storage} is of these prompts: choose another folder (a row without an id is "
            "known by its number, which a line that is inserted changes)"
        )
    _print_refused(count)
    if batch.strict and count.num_refused:
        raise DalleError(f"{count.num_refused} of {count.num_lines} lines are refused; nothing was drawn (--strict)")
    if batch.dry_run:
        print(
            estimate.text(
                settings,
                shards(),
                num_prompts=count.num_lines - count.num_refused,
                num_pictures=count.num_pictures,
                num_left=count.num_left,
                num_rows=count.num_rows_left,
            )
        )
        return REFUSED_SOME if count.num_refused else DONE
    storage.prepare()
    num_drawn = 0
    with storage.lock(), Log(storage) as log:
        write_description(storage, planner, settings)
        try:
            if count.pending:
                _warn_of_space(storage, planner, count)
                log.write(event="start", num_pictures=count.num_left, backend=batch.backend, **circumstances(settings))
                pending = (shard for shard in shards() if shard.number in count.pending)
                for done in _draw(batch, settings, pending, count, facts):
                    num_drawn += done.num_drawn
                    log.write(event="shard", **dataclasses.asdict(done))
                log.write(event="end", num_drawn=num_drawn)
            counts = merge(storage, follow(shards(), "merging the manifests", count.num_lines))
            shown = _pages(batch, storage)
            log.close()
            storage.flush()
            storage.remove(WORK)
        except (StorageError, DataError) as error:  # of the folder; of the prompts, which are read again
            return _stopped(str(error), count, num_drawn)
        except KeyboardInterrupt:
            _stopped("interrupted", count, num_drawn)
            return INTERRUPTED
    _print_summary(storage, counts, num_drawn, shown)
    return REFUSED_SOME if counts.num_refused + counts.num_failed else DONE


def _worker_settings(batch: Batch, folder: str, facts: ModelFacts, described: dict[str, Any] | None) -> WorkerSettings:
    """What decides the last bit of a picture stays as it was when the folder was begun, unless it is asked for."""
    before = (described or {}).get("computed", {})
    asked = {"num_slots": batch.num_slots, "threads": batch.threads}
    for name, value in asked.items():
        if before and value not in (None, before[name]):
            print(
                f"warning: {name} was {before[name]} when this folder was begun, and is {value} now: pictures that are "
                "drawn from here on may differ in their last bits",
                file=sys.stderr,
            )
    threads = 1 if batch.backend == "ray" else torch.get_num_threads()
    return WorkerSettings(
        model=folder,
        model_digest=facts.digest,
        device=batch.device,
        threads=batch.threads or before.get("threads") or threads,
        num_slots=batch.num_slots or before.get("num_slots") or estimate.DEFAULT_SLOTS,
        out=str(open_storage(batch.out)),
        layout=batch.plan.layout,
        certificate=_absolute(batch.certificate),
        certificate_key=_absolute(batch.certificate_key),
        resumed=described is not None,
    )


def _absolute(path: str | None) -> str | None:
    """Actors have working directories of their own."""
    return None if path is None else str(Path(path).absolute())


def _is_done(storage: Storage, shard: Shard, batch: Batch, facts: ModelFacts, *, resumed: bool) -> bool:
    return resumed and is_done(storage, shard, facts, layout=batch.plan.layout, retry_failed=batch.retry_failed)


def _count(shards: Iterator[Shard], done: Callable[[Shard], bool]) -> _Count:
    count = _Count()
    for shard in shards:
        count.num_lines += len(shard.entries)
        count.num_refused += shard.num_refused
        count.num_pictures += shard.num_pictures
        refused = (entry for entry in shard.entries if isinstance(entry, Refusal))
        count.refused += [*refused][: SHOWN - len(count.refused)]
        if not done(shard):
            count.pending.add(shard.number)
            count.num_left += shard.num_pictures
            count.num_rows_left += shard.num_rows
    return count


def _draw(
    batch: Batch, settings: WorkerSettings, shards: Iterator[Shard], count: _Count, facts: ModelFacts
) -> Iterator[ShardDone]:
    num_codes = facts.grid[0] * facts.grid[1]
    progress = Progress(num_pictures=count.num_left, num_rows=count.num_rows_left, num_codes=num_codes)
    drawing: Generator[ShardDone]
    if batch.backend == "local":
        drawing = local.draw(settings, shards, progress)
    else:
        from serving.batch import ray_data

        drawing = ray_data.draw(settings, shards, progress, len(count.pending), workers=batch.workers, gpus=batch.gpus)
    with progress, contextlib.closing(drawing):
        yield from drawing


def _pages(batch: Batch, storage: Storage) -> list[str]:
    """What a person looks at; names of files."""
    shown = []
    if batch.contact_sheet and (sheet := pages.write_contact_sheet(storage)) is not None:
        shown.append(sheet)
    if batch.gallery:
        shown.append(pages.write_gallery(storage))
    return shown


def _warn_of_space(storage: Storage, planner: Planner, count: _Count) -> None:
    needed = count.num_left * estimate.picture_bytes(planner.facts, planner.settings)
    free = storage.free_bytes()
    if free is not None and free < needed:
        print(
            f"warning: some {estimate.size_text(needed)} will be written, and {storage} has {estimate.size_text(free)} "
            "free; if it gets full, the batch stops and can be resumed",
            file=sys.stderr,
        )


def _print_refused(count: _Count) -> None:
    for refusal in count.refused:
        print(printable(f"line {refusal.line} is refused: {refusal.message}").replace("\n", " "), file=sys.stderr)
    if count.num_refused > len(count.refused):
        print(f"... and {count.num_refused - len(count.refused)} more lines", file=sys.stderr)


def _stopped(reason: str, count: _Count, num_drawn: int) -> int:
    print(
        f"stopped: {printable(reason)}\n{num_drawn} of {count.num_left} pictures were finished in this run; the same "
        "command goes on from here",
        file=sys.stderr,
    )
    return STOPPED


def _print_summary(storage: Storage, counts: Counts, num_drawn: int, shown: list[str]) -> None:
    print(f"{counts.num_drawn} pictures are in {storage}, {num_drawn} of them drawn now; manifest.jsonl lists them")
    if counts.num_refused + counts.num_failed:
        print(
            f"refused lines: {counts.num_refused}, failed pictures: {counts.num_failed}; see {storage}/{REFUSED}"
            + ("; --retry-failed tries those that failed again" if counts.num_failed else "")
        )
    for name in [*shown, *counts.openai_files]:
        print(f"{storage}/{name}")
