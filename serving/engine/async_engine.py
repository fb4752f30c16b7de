"""`AsyncEngine`: an engine on a thread of its own, which takes jobs and sends events.

One thread touches the engine, the schedule and every tensor. The event loop only passes jobs in and events out, and
never waits for a step. The thread reads arrivals and cancellations before each step, so a cancelled job leaves its
slots within one step. It also decodes codes to pixels, right after the step that drew the last of them: on a CPU a
second pool of threads would compete for the same cores, and on a GPU the work is queued in order anyway. Prompts are
tokenized before a job reaches the thread, and pixels are encoded as files after it (`delivery`), on other threads.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator

import torch

from dalle.decoder.engine import StepResult
from dalle.errors import DalleError
from dalle.pipeline import DALLE
from dalle.steps import new_engine
from serving.attributes import CODES, PREFILL, STEPS, TRANSLATE, WAIT
from serving.engine.candidates import Candidates
from serving.engine.chooser import CANCELLED, Chooser
from serving.engine.delivery import Delivery
from serving.engine.explainer import Explainer
from serving.engine.open_jobs import OpenJob, OpenPicture, pictures_of, request_of
from serving.engine.reproducibility import fingerprint, self_test
from serving.engine.schedule import Schedule
from serving.engine.translating import Translating
from serving.jobs import FAILED, Accepted, Drawn, EngineFailedError, Event, Explain, Explained, Job, ModelInfo, Refused
from serving.metrics import EngineMetrics
from serving.model_settings import ModelSettings
from serving.refusals import refusal_from
from serving.safety.errors import BlockedError
from serving.safety.moderation import Moderation
from serving.tracing import JobSpan, Tracing

__all__ = ["AsyncEngine"]

logger = logging.getLogger(__name__)

ARRIVALS_PER_STEP = 4
"""Most jobs that are considered between two steps."""
ADMISSIONS_PER_STEP = 2
"""Most pictures that get slots between two steps. Each runs its prefill first, which delays the others."""
CHECK_SECONDS = 5.0
"""Interval at which a caller that waits for events checks that the engine is alive."""
STUCK_SECONDS = 60.0
"""Duration of a step after which the engine counts as stuck."""
CLOSING = Refused(status=503, code="shutting_down", message="the service is shutting down")
EVICTED = "evicted"
"""Error type of the steps of a spare picture that gave its slots up."""
LATE = Refused(status=408, code="deadline_exceeded", message="the deadline has passed before all pictures were drawn")


class AsyncEngine:
    """Draws the jobs of one model, with spans if there is `tracing`, and checked by `moderation` if there is one, which
    its maker closes later than the engine. Call `start` first; it returns when the engine is ready."""

    def __init__(
        self,
        model: DALLE,
        settings: ModelSettings,
        tracing: Tracing | None = None,
        moderation: Moderation | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.metrics = EngineMetrics(settings.id)
        self._tracing = tracing
        self._moderation = moderation
        self.threads = settings.threads or max(1, int(settings.num_cpus))
        self.created = int(time.time())
        self.num_slots_wanted = 0
        """Slots that pictures hold or are queued for, without those of batches."""
        buckets = [2**i for i in range(10) if 2**i < settings.num_slots] if settings.mode == "fast" else []
        self._engine = new_engine(
            model,
            num_slots=settings.num_slots,
            step=settings.step,
            weights=settings.weights,
            buckets=buckets,
            parallel=settings.parallel,
        )
        self._translating = Translating(model, settings.translator, self.metrics)
        self.fingerprint = fingerprint(model, settings, self.threads, self._engine.step_kind, self._translating.digest)
        self._schedule: Schedule[OpenPicture] = Schedule(num_slots=settings.num_slots, max_queue=settings.max_queue)
        self._known: set[OpenJob] = set()
        """Jobs whose callers are waiting for events; changed by the event loop alone."""
        self._jobs: set[OpenJob] = set()
        """Jobs that were accepted; used by the engine's thread alone."""
        self._arrivals: queue.SimpleQueue[OpenJob | None] = queue.SimpleQueue()
        """New jobs; None only wakes the thread."""
        self._delivery = Delivery(model, self._engine.step_kind, self._schedule, self.metrics, moderation)
        step_kind = self._engine.step_kind
        self._chooser = Chooser(model, step_kind, settings.clip, self.metrics, self._delivery.send)
        self._candidates = Candidates(self._engine, self._schedule, self._chooser, self.metrics, self._jobs.discard)
        self._tokenizing = concurrent.futures.ThreadPoolExecutor(1, "tokenizing")
        """Tokenizes prompts in the order in which jobs arrive: several threads would change their order."""
        self._explainer = Explainer(model)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._closing = False
        self._failure: BaseException | None = None
        self._last_sign = self._last_use = time.monotonic()
        self._ready = threading.Event()

    # -- called from anywhere

    def start(self) -> "AsyncEngine":
        """Start the thread and wait until its self-test has passed. Raises `EngineFailedError` if it fails."""
        self._thread.start()
        self._ready.wait()
        self.check()
        return self

    def draw(self, job: Job) -> AsyncGenerator[Event]:
        """Draw a job. The first event is `Accepted` or `Refused`; then previews and pictures follow, until all are
        drawn or the job is `Refused`. Leaving the iterator early cancels the job.

        Raises `EngineFailedError` as `check` does, also if the engine fails while it draws.
        """
        if self._tracing is None:
            return self._draw(job)
        span = JobSpan(self._tracing, job, self.settings.id)
        return span.follow(job, self._draw(job, span))

    async def _draw(self, job: Job, span: JobSpan | None = None) -> AsyncGenerator[Event]:
        assert job.indices, "a job without pictures"
        self._last_use = time.monotonic()
        if self._closing:
            yield CLOSING
            return
        self.check()
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event | None] = asyncio.Queue()

        def post(event: Event | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the caller is gone
                loop.call_soon_threadsafe(events.put_nowait, event)

        arrived = time.monotonic()
        try:
            if self._moderation is not None:
                await self._moderation.check_prompt_by(job.prompt, job.deadline)
            start = time.monotonic()
            translated = await self._translating.translated(job)
            if translated.translation is not None:
                if span is not None:
                    span.add(TRANSLATE, start, time.monotonic(), {})
                if self._moderation is not None and translated.prompt != job.prompt:
                    await self._moderation.check_prompt_by(translated.prompt, job.deadline)
            request = await loop.run_in_executor(self._tokenizing, request_of, self.model, job, translated)
        except (DalleError, TimeoutError) as error:
            refusal = refusal_from(error) if isinstance(error, DalleError) else LATE
            self.metrics.count_refusal(refusal.code)
            if isinstance(error, BlockedError):
                self.metrics.count_blocked(error.check)
            yield refusal
            return
        num_open = len(job.indices)
        open_job = OpenJob(
            job=job,
            request=request,
            post=post,
            arrived=arrived,
            num_open=num_open + (job.num_candidates or 0),
            translated=translated if translated.translation is not None else None,
            span=span,
        )
        self._known.add(open_job)
        self._arrivals.put(open_job)
        try:
            while num_open:
                try:
                    event = await asyncio.wait_for(events.get(), CHECK_SECONDS)
                except TimeoutError:
                    event = None
                if event is None:
                    self.check()
                    continue
                num_open -= isinstance(event, Drawn)
                yield event
                if isinstance(event, Refused):
                    return
        finally:
            self._known.discard(open_job)
            self._last_use = time.monotonic()
            if num_open:
                self._cancel(open_job)

    async def explain(self, asked: Explain) -> Explained | Refused:
        """Explain a finished picture, beside the engine's thread: see `Explainer`."""
        if self._closing:
            return CLOSING
        try:
            return await self._explainer.explain(asked)
        finally:
            self._last_use = time.monotonic()

    def cancel(self, job_id: str, owner: str) -> bool:
        """Stop a job of this owner. Its slots are free before the next step. False if it is finished or unknown."""
        found = [open_job for open_job in list(self._known) if (open_job.job.id, open_job.job.owner) == (job_id, owner)]
        for open_job in found:
            self._cancel(open_job)
        return bool(found)

    def _cancel(self, open_job: OpenJob) -> None:
        open_job.cancelled_at = self._engine.num_steps
        self._arrivals.put(None)

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last job or explanation has ended; 0 while there is one."""
        return 0.0 if self._known or self._explainer.num_open else time.monotonic() - self._last_use

    @property
    def max_queue(self) -> int:
        """Largest number of queued pictures. It can be set while the engine runs."""
        return self._schedule.max_queue

    @max_queue.setter
    def max_queue(self, number: int) -> None:
        self._schedule.max_queue = number

    def check(self) -> None:
        """Raise `EngineFailedError` if the thread has ended, or has been in one step for `STUCK_SECONDS`."""
        if self._failure is not None:
            raise EngineFailedError(f"the engine's thread has failed: {self._failure!r}")
        if self._ready.is_set() and not self._thread.is_alive():
            raise EngineFailedError("the engine's thread has ended")
        if self._ready.is_set() and time.monotonic() - self._last_sign > STUCK_SECONDS:
            raise EngineFailedError(f"the engine has not finished a step for {STUCK_SECONDS:.0f} seconds")

    def close(self) -> None:
        """Refuse new jobs, finish those that were accepted, and end the threads."""
        self._closing = True
        self._arrivals.put(None)
        self._thread.join()
        self._translating.close()
        self._tokenizing.shutdown(wait=False)
        self._explainer.close()
        self._chooser.close()
        self._delivery.close()

    def info(self) -> ModelInfo:
        """Facts about the model. Raises `EngineFailedError` as `check` does."""
        self.check()
        model, text, (height, width) = self.model, self.model.text_tokenizer, self.model.image_size
        return ModelInfo(
            id=self.settings.id,
            digest=model.digest,
            height=height,
            width=width,
            grid_rows=model.decoder.layout.grid_height,
            num_codes=model.num_codes,
            max_prompt_tokens=text.max_tokens if text is not None else 0,
            image_mode=model.image_mode,
            sampling=model.sampling.to_dict(),
            rerank=self._chooser.judges,
            translates=self._translating.languages,
            translation_fault=self._translating.fault,
            translate=self.settings.translate,
            created=self.created,
            vocabulary=model.vocabulary,
        )

    # -- on the engine's thread

    def _run(self) -> None:
        try:
            torch.set_num_threads(self.threads)
            self._schedule.step_seconds, self._schedule.decode_seconds = self_test(
                self._engine, self.model, self.settings
            )
            self.metrics.slots.set(self.settings.num_slots)
            self._ready.set()
            while not (self._closing and not self._jobs and self._arrivals.empty()):
                self._last_sign = time.monotonic()
                self._take_arrivals()
                self._stop_cancelled_and_late()
                since = time.monotonic()
                self._admit()
                if self._schedule.active:
                    self._step(since)
        except BaseException as error:
            self._failure = error
            logger.exception("the engine's thread has failed")
            for open_job in list(self._known):
                open_job.post(None)
            self._ready.set()

    def _take_arrivals(self) -> None:
        """Consider a few of the jobs that have arrived. With nothing to draw, wait for one for up to a second."""
        schedule = self._schedule
        idle = schedule.is_idle and not self._closing
        num_taken = 0
        with contextlib.suppress(queue.Empty):
            while num_taken < ARRIVALS_PER_STEP:
                open_job = self._arrivals.get(timeout=1.0) if idle else self._arrivals.get_nowait()
                idle = False
                if open_job is not None:
                    num_taken += 1
                    self._accept(open_job)

    def _accept(self, open_job: OpenJob) -> None:
        """Queue a job's pictures, or refuse it, and post the outcome."""
        try:
            outcome = self._consider(open_job)
        except Exception:  # a bug in one job must not stop the others
            logger.exception("the job %s could not be prepared", open_job.job.id)
            outcome = FAILED
        if isinstance(outcome, Refused):
            self.metrics.count_refusal(outcome.code)
        open_job.post(outcome)
        self._count()

    def _consider(self, open_job: OpenJob) -> Accepted | Refused:
        if self._closing:
            return CLOSING
        if open_job.cancelled_at is not None:
            return CANCELLED
        pictures, now = pictures_of(self.model, open_job), time.time()
        outcome = self._schedule.consider(
            [picture for picture in pictures if not picture.candidate],
            now,
            promised=open_job.job.accepted,
            judging=self._candidates.judging_seconds(open_job),
        )
        if isinstance(outcome, Refused):
            return outcome
        self._jobs.add(open_job)
        for picture in pictures:
            self._schedule.push(picture)
        self._candidates.expect(open_job)
        position, estimate = outcome
        request = pictures[0].request
        return Accepted(
            position=position,
            estimate=self._candidates.estimate(open_job, estimate, now),
            num_text_tokens=request.num_text_tokens,
            num_kept_codes=0 if request.kept is None else int((request.kept >= 0).sum()),
            fingerprint=self.fingerprint,
            translated=open_job.translated,
        )

    def _stop_cancelled_and_late(self) -> None:
        """Stop the jobs that were cancelled or whose deadline has passed, and spare ones if the engine closes."""
        self._candidates.give_up_late(self._jobs, closing=self._closing)
        now = time.time()
        for open_job in list(self._jobs):
            if open_job.cancelled_at is not None:
                self._stop(open_job, CANCELLED)
            elif open_job.job.deadline < now:
                self._stop(open_job, LATE)
            elif open_job.job.spare and self._closing:
                self._stop(open_job, CLOSING)

    def _stop(self, open_job: OpenJob, refusal: Refused) -> None:
        """Remove a job from the queue and its slots, and post why."""
        self._jobs.discard(open_job)
        now = time.monotonic()
        for picture in self._schedule.remove(lambda picture: picture.open_job is open_job):
            picture.add_span(WAIT, picture.queued, now, error=refusal.code)
        mine = {key: picture for key, picture in self._schedule.active.items() if picture.open_job is open_job}
        for key, picture in mine.items():
            self._engine.cancel(key)
            del self._schedule.active[key]
            num_drawn = picture.num_codes - picture.num_kept
            picture.add_span(STEPS, picture.prefilled, now, {CODES: num_drawn}, refusal.code)
            self.metrics.discarded_steps.inc(num_drawn)
        if mine and open_job.cancelled_at is not None:
            self.metrics.wasted_steps.inc(self._engine.num_steps - open_job.cancelled_at)
        self.metrics.cancellations.inc()
        self._count()
        open_job.post(refusal)

    def _count(self) -> None:
        self.metrics.queue_length.set(len(self._schedule.queue))
        self.metrics.slots_used.set(self._schedule.num_slots - self._schedule.num_free_slots)
        self.num_slots_wanted = self._schedule.num_slots_wanted

    def _admit(self) -> None:
        served: set[OpenJob] = set()
        for _ in range(ADMISSIONS_PER_STEP):
            for key in self._schedule.evicted():
                self._evict(key)
            picture = self._schedule.pop()
            if picture is None:
                break
            picture.started = time.monotonic()
            if not picture.spare:
                served.add(picture.open_job)
                self.metrics.queue_seconds.observe(picture.started - picture.open_job.arrived)
            self._schedule.active[self._engine.add(picture.request)] = picture
            self._engine.admit()
            picture.prefilled = time.monotonic()
            picture.add_span(WAIT, picture.queued, picture.started)
            picture.add_span(PREFILL, picture.started, picture.prefilled)
        self._candidates.give_way(served)

    def _evict(self, key: int) -> None:
        """Take the slots of a spare picture: a candidate is given up, and a picture of a batch is queued again, to be
        drawn anew with the same codes."""
        if self._schedule.active[key].candidate:
            self._candidates.evict(key)
            return
        picture = self._schedule.active.pop(key)
        self._engine.cancel(key)
        num_drawn = picture.num_codes - picture.num_kept
        picture.queued = time.monotonic()
        picture.add_span(STEPS, picture.prefilled, picture.queued, {CODES: num_drawn}, EVICTED)
        self.metrics.discarded_steps.inc(num_drawn)
        self.metrics.evictions.inc()
        picture.num_codes = picture.num_kept
        self._schedule.push(picture)

    def _step(self, since: float) -> None:
        """Run a step that began with the prefill of new pictures at `since`, and deliver what is finished."""
        result = self._engine.step()
        seconds = time.monotonic() - since
        self._schedule.step_seconds += 0.05 * (seconds - self._schedule.step_seconds)
        self.metrics.steps.inc()
        self.metrics.step_seconds.observe(seconds)
        self.metrics.codes.inc(result.num_codes)
        self._deliver(result)
        self._count()

    def _deliver(self, result: StepResult) -> None:
        for key, num_codes in result.drawn.items():
            picture = self._schedule.active.get(key)
            if picture is None:
                continue  # stopped in this loop, because another picture of its job failed
            picture.num_codes = num_codes
            try:
                if key in result.finished:
                    del self._schedule.active[key]
                    num_drawn = num_codes - picture.num_kept
                    picture.add_span(STEPS, picture.prefilled, time.monotonic(), {CODES: num_drawn})
                    if picture.judged:
                        self._candidates.finish(picture, result.finished[key])
                        continue
                    self._delivery.post_picture(picture, result.finished[key])
                    picture.open_job.num_open -= 1
                    if not picture.open_job.num_open:
                        self._jobs.discard(picture.open_job)
                elif picture.previews and num_codes >= picture.previews[0]:
                    picture.previews.pop(0)
                    self._delivery.post_preview(picture, self._engine.codes_so_far(key))
            except Exception:  # a bug in one job must not stop the others
                logger.exception("a picture of the job %s could not be made", picture.open_job.job.id)
                self.metrics.count_refusal(FAILED.code)
                self._stop(picture.open_job, FAILED)
