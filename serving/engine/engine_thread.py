"""`EngineThread`: the thread that draws. It alone touches the engine, the schedule and every tensor.

Before each step it reads arrivals and cancellations, so a cancelled job leaves its slots within one step, and gives
slots to queued pictures. It also decodes codes to pixels, right after the step that drew the last of them: on a CPU a
second pool of threads would compete for the same cores, and on a GPU the work is queued in order anyway. Outcomes,
previews and pictures are posted to the callers of the jobs, through `OpenJob.post`.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable

import torch

from dalle.decoder.engine import StepResult
from dalle.pipeline import DALLE
from dalle.steps import new_engine
from serving.attributes import CODES, PREFILL, STEPS, WAIT
from serving.engine.candidates import Candidates
from serving.engine.chooser import CANCELLED, Chooser
from serving.engine.delivery import Delivery
from serving.engine.open_jobs import OpenJob, OpenPicture, pictures_of
from serving.engine.reproducibility import fingerprint, self_test
from serving.engine.schedule import Schedule
from serving.jobs import FAILED, Accepted, EngineFailedError, Refused
from serving.metrics import EngineMetrics
from serving.model_settings import ModelSettings
from serving.safety.moderation import Moderation

__all__ = ["CLOSING", "LATE", "EngineThread"]

logger = logging.getLogger(__name__)

ARRIVALS_PER_STEP = 4
"""Most jobs that are considered between two steps."""
ADMISSIONS_PER_STEP = 2
"""Most pictures that get slots between two steps. Each runs its prefill first, which delays the others."""
STUCK_SECONDS = 60.0
"""Duration of a step after which the engine counts as stuck."""
CLOSING = Refused(status=503, code="shutting_down", message="the service is shutting down")
EVICTED = "evicted"
"""Error type of the steps of a spare picture that gave its slots up."""
LATE = Refused(status=408, code="deadline_exceeded", message="the deadline has passed before all pictures were drawn")


class EngineThread:
    """Draws the pictures of one model's jobs. `submit`, `cancel`, `check` and `max_queue` may be used from any thread,
    once `start` has returned."""

    def __init__(
        self,
        model: DALLE,
        settings: ModelSettings,
        metrics: EngineMetrics,
        moderation: Moderation | None,
        translator_digest: str | None,
        *,
        failed: Callable[[], None],
    ) -> None:
        """failed: called on this thread when it ends by an error."""
        self.model = model
        self.settings = settings
        self.metrics = metrics
        self.threads = settings.threads or max(1, int(settings.num_cpus))
        self.num_slots_wanted = 0
        """Slots that pictures hold or are queued for, without those of batches."""
        buckets = [2**i for i in range(10) if 2**i < settings.num_slots] if settings.mode == "fast" else []
        self.engine = new_engine(
            model,
            num_slots=settings.num_slots,
            step=settings.step,
            weights=settings.weights,
            buckets=buckets,
            parallel=settings.parallel,
        )
        self.fingerprint = fingerprint(model, settings, self.threads, self.engine.step_kind, translator_digest)
        self.schedule: Schedule[OpenPicture] = Schedule(num_slots=settings.num_slots, max_queue=settings.max_queue)
        self.jobs: set[OpenJob] = set()
        """Jobs that were accepted and are not finished."""
        self.arrivals: queue.SimpleQueue[OpenJob | None] = queue.SimpleQueue()
        """New jobs; None only wakes the thread."""
        step_kind = self.engine.step_kind
        self._delivery = Delivery(model, step_kind, self.schedule, metrics, moderation)
        self.chooser = Chooser(model, step_kind, settings.clip, metrics, self._delivery.send)
        self._candidates = Candidates(self.engine, self.schedule, self.chooser, metrics, self.jobs.discard)
        self._failed = failed
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.closing = False
        self._last_sign = time.monotonic()
        self._ready = threading.Event()

    # -- called from anywhere

    def start(self) -> None:
        """Start, and wait until the self-test has passed. Raises `EngineFailedError` if it fails."""
        self._thread.start()
        self._ready.wait()
        self.check()

    def submit(self, open_job: OpenJob) -> None:
        """Pass a job in. `Accepted` or `Refused` is posted to it, then previews and pictures."""
        self.arrivals.put(open_job)

    def cancel(self, open_job: OpenJob) -> None:
        """Stop a job. Its slots are free before the next step."""
        open_job.cancelled_at = self.engine.num_steps
        self.arrivals.put(None)

    def check(self) -> None:
        """Raise `EngineFailedError` if the thread has ended, or has been in one step for `STUCK_SECONDS`."""
        if self._failure is not None:
            raise EngineFailedError(f"the engine's thread has failed: {self._failure!r}")
        if self._ready.is_set() and not self._thread.is_alive():
            raise EngineFailedError("the engine's thread has ended")
        if self._ready.is_set() and time.monotonic() - self._last_sign > STUCK_SECONDS:
            raise EngineFailedError(f"the engine has not finished a step for {STUCK_SECONDS:.0f} seconds")

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def close(self) -> None:
        """Refuse new jobs, finish those that were accepted, and end the thread."""
        self.closing = True
        self.arrivals.put(None)
        self.join()
        self.chooser.close()
        self._delivery.close()

    # -- on the thread

    def _run(self) -> None:
        try:
            torch.set_num_threads(self.threads)
            self.schedule.step_seconds, self.schedule.decode_seconds = self_test(self.engine, self.model, self.settings)
            self.metrics.slots.set(self.settings.num_slots)
            self._ready.set()
            while not (self.closing and not self.jobs and self.arrivals.empty()):
                self._last_sign = time.monotonic()
                self._take_arrivals()
                self._stop_cancelled_and_late()
                since = time.monotonic()
                self._admit()
                if self.schedule.active:
                    self._step(since)
        except BaseException as error:
            self._failure = error
            logger.exception("the engine's thread has failed")
            self._failed()
            self._ready.set()

    def _take_arrivals(self) -> None:
        """Consider a few of the jobs that have arrived. With nothing to draw, wait for one for up to a second."""
        schedule = self.schedule
        idle = schedule.is_idle and not self.closing
        num_taken = 0
        with contextlib.suppress(queue.Empty):
            while num_taken < ARRIVALS_PER_STEP:
                open_job = self.arrivals.get(timeout=1.0) if idle else self.arrivals.get_nowait()
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
        if self.closing:
            return CLOSING
        if open_job.cancelled_at is not None:
            return CANCELLED
        pictures, now = pictures_of(self.model, open_job), time.time()
        outcome = self.schedule.consider(
            [picture for picture in pictures if not picture.candidate],
            now,
            promised=open_job.job.accepted,
            judging=self._candidates.judging_seconds(open_job),
        )
        if isinstance(outcome, Refused):
            return outcome
        self.jobs.add(open_job)
        for picture in pictures:
            self.schedule.push(picture)
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
        self._candidates.give_up_late(self.jobs, closing=self.closing)
        now = time.time()
        for open_job in list(self.jobs):
            if open_job.cancelled_at is not None:
                self._stop(open_job, CANCELLED)
            elif open_job.job.deadline < now:
                self._stop(open_job, LATE)
            elif open_job.job.spare and self.closing:
                self._stop(open_job, CLOSING)

    def _stop(self, open_job: OpenJob, refusal: Refused) -> None:
        """Remove a job from the queue and its slots, and post why."""
        self.jobs.discard(open_job)
        now = time.monotonic()
        for picture in self.schedule.remove(lambda picture: picture.open_job is open_job):
            picture.add_span(WAIT, picture.queued, now, error=refusal.code)
        mine = {key: picture for key, picture in self.schedule.active.items() if picture.open_job is open_job}
        for key, picture in mine.items():
            self.engine.cancel(key)
            del self.schedule.active[key]
            num_drawn = picture.num_codes - picture.num_kept
            picture.add_span(STEPS, picture.prefilled, now, {CODES: num_drawn}, refusal.code)
            self.metrics.discarded_steps.inc(num_drawn)
        if mine and open_job.cancelled_at is not None:
            self.metrics.wasted_steps.inc(self.engine.num_steps - open_job.cancelled_at)
        self.metrics.cancellations.inc()
        self._count()
        open_job.post(refusal)

    def _count(self) -> None:
        self.metrics.queue_length.set(len(self.schedule.queue))
        self.metrics.slots_used.set(self.schedule.num_slots - self.schedule.num_free_slots)
        self.num_slots_wanted = self.schedule.num_slots_wanted

    def _admit(self) -> None:
        served: set[OpenJob] = set()
        for _ in range(ADMISSIONS_PER_STEP):
            for key in self.schedule.evicted():
                self._evict(key)
            picture = self.schedule.pop()
            if picture is None:
                break
            picture.started = time.monotonic()
            if not picture.spare:
                served.add(picture.open_job)
                self.metrics.queue_seconds.observe(picture.started - picture.open_job.arrived)
            self.schedule.active[self.engine.add(picture.request)] = picture
            self.engine.admit()
            picture.prefilled = time.monotonic()
            picture.add_span(WAIT, picture.queued, picture.started)
            picture.add_span(PREFILL, picture.started, picture.prefilled)
        self._candidates.give_way(served)

    def _evict(self, key: int) -> None:
        """Take the slots of a spare picture: a candidate is given up, and a picture of a batch is queued again, to be
        drawn anew with the same codes."""
        if self.schedule.active[key].candidate:
            self._candidates.evict(key)
            return
        picture = self.schedule.active.pop(key)
        self.engine.cancel(key)
        num_drawn = picture.num_codes - picture.num_kept
        picture.queued = time.monotonic()
        picture.add_span(STEPS, picture.prefilled, picture.queued, {CODES: num_drawn}, EVICTED)
        self.metrics.discarded_steps.inc(num_drawn)
        self.metrics.evictions.inc()
        picture.num_codes = picture.num_kept
        self.schedule.push(picture)

    def _step(self, since: float) -> None:
        """Run a step that began with the prefill of new pictures at `since`, and deliver what is finished."""
        result = self.engine.step()
        seconds = time.monotonic() - since
        self.schedule.step_seconds += 0.05 * (seconds - self.schedule.step_seconds)
        self.metrics.steps.inc()
        self.metrics.step_seconds.observe(seconds)
        self.metrics.codes.inc(result.num_codes)
        self._deliver(result)
        self._count()

    def _deliver(self, result: StepResult) -> None:
        for key, num_codes in result.drawn.items():
            picture = self.schedule.active.get(key)
            if picture is None:
                continue  # stopped in this loop, because another picture of its job failed
            picture.num_codes = num_codes
            try:
                if key in result.finished:
                    del self.schedule.active[key]
                    num_drawn = num_codes - picture.num_kept
                    picture.add_span(STEPS, picture.prefilled, time.monotonic(), {CODES: num_drawn})
                    if picture.judged:
                        self._candidates.finish(picture, result.finished[key])
                        continue
                    self._delivery.post_picture(picture, result.finished[key])
                    picture.open_job.num_open -= 1
                    if not picture.open_job.num_open:
                        self.jobs.discard(picture.open_job)
                elif picture.previews and num_codes >= picture.previews[0]:
                    picture.previews.pop(0)
                    self._delivery.post_preview(picture, self.engine.codes_so_far(key))
            except Exception:  # a bug in one job must not stop the others
                logger.exception("a picture of the job %s could not be made", picture.open_job.job.id)
                self.metrics.count_refusal(FAILED.code)
                self._stop(picture.open_job, FAILED)
