"""Runs a batch, from its file of prompts to its folder of pictures, on either backend.

The prompts are read as a stream three times: to validate them and find the shards that are pending, to draw these, and
to merge the manifests of all shards. Memory does not grow with the number of prompts, except for a number per pending
shard and a digest per custom_id of OpenAI's format.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from dalle.checkpoint import ModelFacts, load_facts
from dalle.command_line import DONE, INCOMPLETE, INTERRUPTED, STOPPED
from dalle.device import choose_device
from dalle.errors import DalleError, DataError
from dalle.hub.pull import model_folder
from dalle.images import chosen_background
from dalle.model import NUM_SLOTS
from dalle.receipt import printable
from dalle.steps import CompiledModel, StepKind
from dalle.transformer.linear import Weights
from serving.batch import estimate, pages
from serving.batch.description import check_description, chosen_by, read_description, write_description
from serving.batch.items import Shard
from serving.batch.log import Log, run_facts
from serving.batch.manifest import has_only_other_pictures, is_done
from serving.batch.merge import REFUSED_FILE, Counts, merge
from serving.batch.plan import FIELDS, Planner, PlanSettings
from serving.batch.progress import Progress, follow
from serving.batch.prompts import read_prompts
from serving.batch.storage import WORK, Storage, StorageError, open_storage
from serving.batch.survey import Survey, print_invalid_lines, print_kept_words, survey_shards
from serving.batch.worker import Worker, WorkerSettings
from serving.batch.writer import ShardDone
from serving.safety.errors import CheckUnavailableError
from serving.safety.moderation import check_safety, identity_of
from serving.safety.settings import SafetySettings

__all__ = ["Batch", "run_batch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """The options of a run; `python -m serving.batch --help` explains each."""

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
    step: StepKind = "auto"
    weights: Weights | None = None
    certificate: str | None = None
    certificate_key: str | None = None
    strict: bool = False
    retry_failed: bool = False
    dry_run: bool = False
    contact_sheet: bool = False
    gallery: bool = False
    safety: SafetySettings = dataclasses.field(default_factory=SafetySettings)


def run_batch(batch: Batch) -> int:
    """Run a batch and return the exit code. Raises `DalleError` for a mistake found before anything is drawn."""
    check_safety(batch.safety)
    folder = model_folder(batch.model).absolute()
    facts = load_facts(folder)
    plan = dataclasses.replace(batch.plan, safety=identity_of(batch.safety))
    # a background that no item could have is reported once, and not for every line
    chosen_background(plan.background, mode=facts.image_mode, model=facts.name, format=plan.image_format)
    planner = Planner(facts, Path(batch.model).name, plan)
    storage = open_storage(batch.out)

    def shards() -> Iterator[Shard]:
        return planner.shards(read_prompts(batch.prompts, FIELDS))

    description = read_description(storage)
    check_description(storage, description, planner)
    settings = _worker_settings(batch, str(folder), facts, description)

    def is_committed(shard: Shard) -> bool:
        return settings.resumed and is_done(storage, shard, facts, layout=plan.layout, retry_failed=batch.retry_failed)

    doing = "checking existing pictures" if settings.resumed else "reading the prompts"
    survey = survey_shards(follow(shards(), doing), is_committed)
    clip = chosen_by(storage, description, survey.judged_by_clip)
    if survey.judged_by_clip is not None:
        digest = survey.judged_by_clip.clip_digest
        settings = dataclasses.replace(settings, clip=str(planner.choices.clip_folder), clip_digest=digest)
    if not survey.num_lines:
        raise DalleError(f"there are no prompts in {batch.prompts}")
    if description is not None and has_only_other_pictures(storage, shards(), facts):
        raise DalleError(
            f"none of the pictures in {storage} belongs to these prompts: choose another folder (an item without an "
            "id is identified by its line number, which changes when lines are inserted before it)"
        )
    print_invalid_lines(survey)
    print_kept_words(survey)
    if batch.strict and survey.num_invalid:
        raise DalleError(f"{survey.num_invalid} of {survey.num_lines} lines are invalid; nothing was drawn (--strict)")
    if batch.dry_run:
        print(
            estimate.estimate_text(
                settings,
                shards(),
                num_prompts=survey.num_lines - survey.num_invalid,
                num_pictures=survey.num_pictures,
                num_left=survey.num_pending_pictures,
                num_candidates=survey.num_pending_candidates,
                num_rows=survey.num_pending_rows,
            )
        )
        return INCOMPLETE if survey.num_invalid else DONE
    storage.prepare()
    num_drawn = 0
    with storage.lock(), Log(storage) as log:
        if read_description(storage) != description:
            raise StorageError(f"another run has begun a batch in {storage} meanwhile: choose another folder")
        write_description(storage, planner, settings, clip)
        try:
            if survey.pending:
                _warn_of_space(storage, planner, survey.num_pending_pictures)
                num_pictures = survey.num_pending_pictures
                log.write(event="start", num_pictures=num_pictures, backend=batch.backend, **run_facts(settings))
                pending = (shard for shard in shards() if shard.number in survey.pending)
                for done in _draw_shards(batch, settings, pending, survey, facts):
                    num_drawn += done.num_drawn
                    log.write(event="shard", **dataclasses.asdict(done))
                log.write(event="end", num_drawn=num_drawn)
            merging = follow(shards(), "merging the manifests", survey.num_lines)
            counts = merge(storage, merging, candidates=survey.has_candidates)
            names = _write_pages(batch, storage)
            log.close()
            storage.flush()
            storage.remove(WORK)
        # the folder, the prompts, which are read again, or the process that checks pictures
        except (StorageError, DataError, CheckUnavailableError) as error:
            _print_stopped(str(error), num_drawn, survey.num_pending_pictures)
            return STOPPED
        except KeyboardInterrupt:
            _print_stopped("interrupted", num_drawn, survey.num_pending_pictures)
            return INTERRUPTED
    _print_summary(storage, counts, num_drawn, names)
    return INCOMPLETE if counts.num_refused else DONE


def _worker_settings(
    batch: Batch, folder: str, facts: ModelFacts, description: dict[str, Any] | None
) -> WorkerSettings:
    """Slots, threads, kind of step and weights decide how logits are rounded, so a resumed run keeps those of the
    folder by default."""
    before = (description or {}).get("computed", {})
    options = {
        "num_slots": batch.num_slots,
        "threads": batch.threads,
        "step": None if batch.step == "auto" else batch.step,
        "weights": batch.weights,
    }
    for name, value in options.items():
        if before and value not in (None, before[name]):
            print(
                f"warning: this folder was started with {name} {before[name]}, and this run has {value}: logits may be "
                "rounded differently, so pictures drawn now may differ from those of an unbroken run",
                file=sys.stderr,
            )
    threads = 1 if batch.backend == "ray" else torch.get_num_threads()
    num_slots = batch.num_slots or before.get("num_slots") or NUM_SLOTS
    step: StepKind = batch.step if batch.step != "auto" else before.get("step", "auto")
    weights: Weights = batch.weights or before.get("weights") or "float32"
    if step == "auto" and batch.backend == "ray":
        step = "eager"  # the machines of a cluster may have compiled steps or not
    if step == "auto" and choose_device(batch.device).type == "cuda":
        step = "cuda_graph"
    if step == "auto":
        compiled = CompiledModel.find(facts.digest, num_slots, weights)
        step = "compiled" if compiled is not None and compiled.is_faster else "eager"
    return WorkerSettings(
        model=folder,
        model_digest=facts.digest,
        device=batch.device,
        threads=batch.threads or before.get("threads") or threads,
        num_slots=num_slots,
        step=step,
        weights=weights,
        out=str(open_storage(batch.out)),
        layout=batch.plan.layout,
        certificate=_absolute(batch.certificate),
        certificate_key=_absolute(batch.certificate_key),
        resumed=description is not None,
        safety=batch.safety.absolute(),
    )


def _absolute(path: str | None) -> str | None:
    """An absolute path: actors of Ray have working directories of their own."""
    return None if path is None else str(Path(path).absolute())


def _draw_shards(
    batch: Batch, settings: WorkerSettings, shards: Iterator[Shard], survey: Survey, facts: ModelFacts
) -> Iterator[ShardDone]:
    num_codes = facts.grid[0] * facts.grid[1]
    progress = Progress(num_pictures=survey.num_pending_pictures, num_rows=survey.num_pending_rows, num_codes=num_codes)
    drawing: Generator[ShardDone]
    if batch.backend == "local":
        drawing = _draw_in_this_process(settings, shards, progress)
    else:
        from serving.batch import ray_data

        drawing = ray_data.draw_shards(
            settings, shards, progress, len(survey.pending), workers=batch.workers, gpus=batch.gpus
        )
    with progress, contextlib.closing(drawing):
        yield from drawing


def _draw_in_this_process(
    settings: WorkerSettings, shards: Iterator[Shard], progress: Progress
) -> Generator[ShardDone]:
    with contextlib.closing(Worker(settings)) as worker:
        for done in worker.run(shards, progress.step):
            progress.skip(done.num_rows - done.num_rows_drawn)
            yield done


def _write_pages(batch: Batch, storage: Storage) -> list[str]:
    """Write the contact sheet and the gallery, if wanted. Returns the names of their files."""
    names = []
    if batch.contact_sheet and (sheet := pages.write_contact_sheet(storage)) is not None:
        names.append(sheet)
    if batch.gallery:
        names.append(pages.write_gallery(storage))
    return names


def _warn_of_space(storage: Storage, planner: Planner, num_pictures: int) -> None:
    needed = num_pictures * estimate.picture_bytes(planner.facts, planner.settings)
    free = storage.free_bytes()
    if free is not None and free < needed:
        print(
            f"warning: about {estimate.size_text(needed)} will be written, and {storage} has "
            f"{estimate.size_text(free)} free; if it runs full, the batch stops and can be resumed",
            file=sys.stderr,
        )


def _print_stopped(reason: str, num_drawn: int, num_pictures: int) -> None:
    print(
        f"stopped: {printable(reason)}\n{num_drawn} of {num_pictures} pictures were finished in this run; the same "
        "command resumes the batch",
        file=sys.stderr,
    )


def _print_summary(storage: Storage, counts: Counts, num_drawn: int, names: list[str]) -> None:
    print(
        f"{counts.num_drawn} pictures are in {storage}, {num_drawn} of them drawn in this run; "
        "manifest.jsonl lists them"
    )
    if counts.num_refused:
        blocked = f", blocked pictures: {counts.num_blocked}" if counts.num_blocked else ""
        print(
            f"invalid lines: {counts.num_invalid}, failed pictures: {counts.num_failed}{blocked}; "
            f"see {storage}/{REFUSED_FILE}"
            + ("; --retry-failed draws failed pictures again" if counts.num_failed else "")
        )
    for name in [*names, *counts.openai_files]:
        print(f"{storage}/{name}")
