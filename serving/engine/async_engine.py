"""An engine with its thread: jobs in, events out, and between them the schedule.

One thread touches the engine, the schedule and every tensor; the event loop only passes jobs in and events out, and
never waits for a step. Before each step the thread looks at what was asked of it since the last one, so that a
cancelled job leaves its slots within one step. Codes become pixels on the same thread, right after the step that drew
the last of them: on a CPU a second pool of threads would fight the first one for the cores, and on a GPU the work is
queued in order anyway. Prompts become text ids before the thread sees them, and pixels become PNGs after (`delivery`),
on others.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator

import torch

from dalle.decoder.engine import Engine, StepResult
from dalle.errors import DalleError
from dalle.pipeline import DALLE
from serving.engine.delivery import Delivery
from serving.engine.open_jobs import OpenJob, OpenPicture, pictures_of, refusal_of, request_of
from serving.engine.reproducibility import fingerprint, self_test
from serving.engine.schedule import Schedule
from serving.jobs import FAILED, Accepted, Drawn, EngineFailedError, Event, Job, ModelInfo, Refused
from serving.metrics import EngineMetrics
from serving.settings import ModelSettings

__all__ = ["AsyncEngine"]

logger = logging.getLogger(__name__)

ARRIVALS_PER_STEP = 4
"""Jobs that are looked at between two steps, and"""
ADMISSIONS_PER_STEP = 2
"""pictures that get slots, and run their prompts first: more of them would hold up those that are being drawn."""
CHECK_SECONDS = 5.0
"""How often somebody who waits for events looks whether the engine is still there."""
STUCK_SECONDS = 60.0
"""A step that takes longer is a fault."""
CLOSING = Refused(status=503, code="shutting_down", message="the service is shutting down")
CANCELLED = Refused(status=409, code="request_cancelled", message="the request was cancelled")
LATE = Refused(status=408, code="deadline_exceeded", message="the deadline has passed before all pictures were drawn")


class AsyncEngine:
    """Draws jobs of one model. Start it with `start`; the first call of everything else waits for nothing."""

    def __init__(self, model: DALLE, settings: ModelSettings) -> None:
        self.model = model
        self.settings = settings
        self.metrics = EngineMetrics(settings.id)
        self.threads = settings.threads or max(1, int(settings.num_cpus))
        self.created = int(time.time())
        self.fingerprint = fingerprint(model, settings, self.threads)
        self.num_rows = 0
        """Rows that have slots or wait for them."""
        buckets = [2**i for i in range(10) if 2**i < settings.num_slots] if settings.mode == "fast" else []
        self._engine = Engine(model.decoder, num_slots=settings.num_slots, buckets=buckets)
        self._schedule: Schedule[OpenPicture] = Schedule(num_slots=settings.num_slots, max_queue=settings.max_queue)
        self._known: set[OpenJob] = set()
        """Jobs whose events somebody waits for."""
        self._jobs: set[OpenJob] = set()
        """Jobs that were accepted; of the engine's thread alone."""
        self._arrivals: queue.SimpleQueue[OpenJob | None] = queue.SimpleQueue()
        """None wakes the thread."""
        self._delivery = Delivery(model, self._schedule, self.metrics)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._closing = False
        self._failure: BaseException | None = None
        self._last_sign = time.monotonic()
        self._ready = threading.Event()

    # -- called from anywhere

    def start(self) -> "AsyncEngine":
        """Start the thread and wait until it has drawn its self-test. Raises `EngineFailedError` if it could not."""
        self._thread.start()
        self._ready.wait()
        self.check()
        return self

    async def draw(self, job: Job) -> AsyncGenerator[Event]:
        """Draw a job. The first event is `Accepted` or `Refused`; then previews and pictures as they come, until all
        are drawn or the job is `Refused` on the way. Leaving the iterator early cancels the job.

        Raises `EngineFailedError` as `check` does, also if the engine fails meanwhile.
        """
        assert job.indices, "a job without pictures"
        if self._closing:
            yield CLOSING
            return
        self.check()
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event | None] = asyncio.Queue()

        def post(event: Event | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and so is whoever asked
                loop.call_soon_threadsafe(events.put_nowait, event)

        one = OpenJob(job, post, time.monotonic(), num_open=len(job.indices))
        try:
            one.request = await asyncio.to_thread(request_of, self.model, job)
        except DalleError as error:
            yield self._refused(refusal_of(error))
            return
        num_open = len(job.indices)
        self._known.add(one)
        self._arrivals.put(one)
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
            self._known.discard(one)
            if num_open:
                self._cancel(one)

    def cancel(self, job_id: str, owner: str) -> bool:
        """Stop somebody's job; its slots are free before the next step. False if it is done or unknown."""
        found = [one for one in list(self._known) if (one.job.id, one.job.owner) == (job_id, owner)]
        for one in found:
            self._cancel(one)
        return bool(found)

    def _cancel(self, one: OpenJob) -> None:
        one.cancelled_at = self._engine.num_steps
        self._arrivals.put(None)

    @property
    def max_queue(self) -> int:
        """Pictures that may wait. May be set while the engine runs."""
        return self._schedule.max_queue

    @max_queue.setter
    def max_queue(self, number: int) -> None:
        self._schedule.max_queue = number

    def check(self) -> None:
        """Raise `EngineFailedError` if the thread is gone, or a step takes longer than a step can."""
        if self._failure is not None:
            raise EngineFailedError(f"the engine's thread has failed: {self._failure!r}")
        if self._ready.is_set() and not self._thread.is_alive():
            raise EngineFailedError("the engine's thread has ended")
        if self._ready.is_set() and time.monotonic() - self._last_sign > STUCK_SECONDS:
            raise EngineFailedError(f"the engine has not finished a step for {STUCK_SECONDS:.0f} seconds")

    def close(self) -> None:
        """Finish what was accepted, take nothing more, and end the threads."""
        self._closing = True
        self._arrivals.put(None)
        self._thread.join()
        self._delivery.close()

    def info(self) -> ModelInfo:
        """What others must know of the model. Raises `EngineFailedError` as `check` does."""
        self.check()
        model, text, (height, width) = self.model, self.model.text_tokenizer, self.model.image_size
        return ModelInfo(
            id=self.settings.id,
            digest=model.digest,
            height=height,
            width=width,
            rows=model.decoder.layout.grid_height,
            num_codes=model.num_codes,
            max_prompt_tokens=text.max_tokens if text is not None else 0,
            image_mode=model.image_mode,
            sampling=model.sampling.to_dict(),
            created=self.created,
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
                self._stop_unwanted()
                self._admit()
                if self._schedule.active:
                    self._step()
        except BaseException as error:
            self._failure = error
            logger.exception("the engine's thread has failed")
            for one in list(self._known):
                one.post(None)
            self._ready.set()

    def _take_arrivals(self) -> None:
        """Look at a few jobs that have come; with nothing to draw, wait for one."""
        idle = not self._schedule.active and not len(self._schedule.queue) and not self._closing
        num_taken = 0
        with contextlib.suppress(queue.Empty):
            while num_taken < ARRIVALS_PER_STEP:
                one = self._arrivals.get(timeout=1.0) if idle else self._arrivals.get_nowait()
                idle = False
                if one is not None:
                    num_taken += 1
                    self._accept(one)

    def _accept(self, one: OpenJob) -> None:
        """Put a job's pictures into the queue, or refuse it."""
        try:
            outcome = self._consider(one)
        except Exception:  # a mistake of ours, which must not take the pictures of others with it
            logger.exception("the job %s could not be prepared", one.job.id)
            outcome = FAILED
        one.post(self._refused(outcome) if isinstance(outcome, Refused) else outcome)
        self._count()

    def _refused(self, refusal: Refused) -> Refused:
        self.metrics.refused(refusal.code)
        return refusal

    def _consider(self, one: OpenJob) -> Accepted | Refused:
        if self._closing:
            return CLOSING
        if one.cancelled_at is not None:
            return CANCELLED
        pictures = pictures_of(self.model, one)
        outcome = self._schedule.consider(pictures, time.time())
        if isinstance(outcome, Refused):
            return outcome
        self._jobs.add(one)
        for picture in pictures:
            self._schedule.queue.push(one.job.caller, picture)
        position, estimate = outcome
        request = pictures[0].request
        return Accepted(
            position=position,
            estimate=estimate,
            num_text_tokens=request.num_text_tokens,
            num_kept_codes=0 if request.kept is None else int((request.kept >= 0).sum()),
            fingerprint=self.fingerprint,
        )

    def _stop_unwanted(self) -> None:
        """Stop the jobs that were cancelled, and those whose deadline has passed."""
        now = time.time()
        for one in list(self._jobs):
            if one.cancelled_at is not None:
                self._stop(one, CANCELLED)
            elif one.job.deadline < now:
                self._stop(one, LATE)

    def _stop(self, one: OpenJob, refusal: Refused) -> None:
        """Take a job out of queue and slots."""
        self._jobs.discard(one)
        self._schedule.queue.remove(lambda picture: picture.owner is one)
        mine = {key: picture for key, picture in self._schedule.active.items() if picture.owner is one}
        for key, picture in mine.items():
            self._engine.cancel(key)
            del self._schedule.active[key]
            self.metrics.discarded_steps.inc(picture.num_codes - picture.num_kept)
        if mine and one.cancelled_at is not None:
            self.metrics.wasted_steps.inc(self._engine.num_steps - one.cancelled_at)
        self.metrics.cancellations.inc()
        self._count()
        one.post(refusal)

    def _count(self) -> None:
        self.metrics.queue_length.set(len(self._schedule.queue))
        self.metrics.slots_used.set(self._schedule.num_slots - self._schedule.num_free_slots)
        self.num_rows = self._schedule.num_rows

    def _admit(self) -> None:
        waiting = self._schedule.queue
        for _ in range(ADMISSIONS_PER_STEP):
            if not len(waiting) or waiting.peek().rows > self._schedule.num_free_slots:
                break
            picture = waiting.pop()
            picture.started = time.monotonic()
            self.metrics.queue_seconds.observe(picture.started - picture.owner.arrived)
            self._schedule.active[self._engine.add(picture.request)] = picture

    def _step(self) -> None:
        start = time.monotonic()
        result = self._engine.step()
        seconds = time.monotonic() - start
        self._schedule.step_seconds += 0.05 * (seconds - self._schedule.step_seconds)
        self.metrics.steps.inc()
        self.metrics.step_seconds.observe(seconds)
        self.metrics.codes.inc(len(result.drawn))
        self._deliver(result)
        self._count()

    def _deliver(self, result: StepResult) -> None:
        for key, num_codes in result.drawn.items():
            picture = self._schedule.active.get(key)
            if picture is None:
                continue  # stopped, because another picture of its job could not be made
            picture.num_codes = num_codes
            try:
                if key in result.finished:
                    del self._schedule.active[key]
                    self._delivery.drawn(picture, result.finished[key])
                    picture.owner.num_open -= 1
                    if not picture.owner.num_open:
                        self._jobs.discard(picture.owner)
                elif picture.previews and num_codes >= picture.previews[0]:
                    picture.previews.pop(0)
                    self._delivery.preview(picture, self._engine.codes_so_far(key))
            except Exception:  # one picture's fault is not everybody's
                logger.exception("a picture of the job %s could not be made", picture.owner.job.id)
                self._stop(picture.owner, self._refused(FAILED))
