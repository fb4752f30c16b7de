"""`AsyncEngine`: an engine for an event loop, which takes jobs and sends events.

The event loop only passes jobs in and events out, and never waits for a step: an `EngineThread` draws. Prompts are
moderated, translated and tokenized before a job reaches it, and pixels are encoded as files after it (`delivery`), on
other threads.
"""

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import AsyncGenerator

from dalle.defaults import Translate
from dalle.errors import DalleError
from dalle.pipeline import DALLE
from serving.attributes import TRANSLATE
from serving.engine.engine_thread import CLOSING, LATE, EngineThread
from serving.engine.explainer import Explainer
from serving.engine.open_jobs import OpenJob, request_of
from serving.engine.translating import Translating
from serving.jobs import Drawn, Event, Explain, Explained, Job, ModelInfo, Refused
from serving.metrics import EngineMetrics
from serving.model_settings import ModelSettings
from serving.refusals import refusal_from
from serving.safety.errors import BlockedError
from serving.safety.moderation import Moderation
from serving.tracing import JobSpan, Tracing

__all__ = ["AsyncEngine"]

CHECK_SECONDS = 5.0
"""Interval at which a caller that waits for events checks that the engine is alive."""


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
        self.created = int(time.time())
        self._translating = Translating(model, settings.translator, self.metrics)
        self.thread = EngineThread(
            model, settings, self.metrics, moderation, self._translating.digest, failed=self._wake_callers
        )
        self._known: set[OpenJob] = set()
        """Jobs whose callers are waiting for events; changed by the event loop alone."""
        self._tokenizing = concurrent.futures.ThreadPoolExecutor(1, "tokenizing")
        """Tokenizes prompts in the order in which jobs arrive: several threads would change their order."""
        self._explainer = Explainer(model)
        self._last_use = time.monotonic()

    def start(self) -> "AsyncEngine":
        """Start the thread and wait until its self-test has passed. Raises `EngineFailedError` if it fails."""
        self.thread.start()
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
        if self.thread.closing:
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
        self.thread.submit(open_job)
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
                self.thread.cancel(open_job)

    async def explain(self, asked: Explain) -> Explained | Refused:
        """Explain a finished picture, beside the engine's thread: see `Explainer`."""
        if self.thread.closing:
            return CLOSING
        try:
            return await self._explainer.explain(asked)
        finally:
            self._last_use = time.monotonic()

    def cancel(self, job_id: str, owner: str) -> bool:
        """Stop a job of this owner. Its slots are free before the next step. False if it is finished or unknown."""
        found = [open_job for open_job in list(self._known) if (open_job.job.id, open_job.job.owner) == (job_id, owner)]
        for open_job in found:
            self.thread.cancel(open_job)
        return bool(found)

    def _wake_callers(self) -> None:
        """Have all callers check the engine, whose thread has failed."""
        for open_job in list(self._known):
            open_job.post(None)

    @property
    def num_slots_wanted(self) -> int:
        """Slots that pictures hold or are queued for, without those of batches."""
        return self.thread.num_slots_wanted

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last job or explanation has ended; 0 while there is one."""
        return 0.0 if self._known or self._explainer.num_open else time.monotonic() - self._last_use

    @property
    def max_queue(self) -> int:
        """Largest number of queued pictures. It can be set while the engine runs."""
        return self.thread.schedule.max_queue

    @max_queue.setter
    def max_queue(self, number: int) -> None:
        self.thread.schedule.max_queue = number

    def check(self) -> None:
        """Raise `EngineFailedError` if the engine's thread has ended, or is stuck in a step."""
        self.thread.check()

    def close(self) -> None:
        """Refuse new jobs, finish those that were accepted, and end the threads."""
        self.thread.close()
        self._translating.close()
        self._tokenizing.shutdown(wait=False)
        self._explainer.close()

    def _default_translate(self) -> Translate:
        """What is done with prompts of requests that do not say."""
        if self.settings.translate is not None:
            return self.settings.translate
        return "off" if self._translating.fault is not None else self.model.translate

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
            rerank=self.thread.chooser.judges,
            translates=self._translating.languages,
            translation_fault=self._translating.fault,
            translate=self._default_translate(),
            created=self.created,
            vocabulary=model.vocabulary,
        )
