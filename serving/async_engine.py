"""An engine with its thread: jobs in, events out, and between them a bounded, fair queue that keeps deadlines.

One thread touches the engine, the queue and every tensor; the event loop only passes jobs in and events out, and never
waits for a step. Before each step the thread takes what was asked of it since the last one, so that a cancelled job
leaves its slots within one step. Codes become pixels on the same thread, right after the step that drew the last of
them: on a CPU a second pool of threads would fight the first one for the cores, and on a GPU the work is queued in
order anyway. Pixels become PNGs on another thread.

Since every picture takes a known number of steps, when a job will be done is known when it comes. A job that cannot be
done by its deadline is refused at once, and told when it is worth trying again.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
import math
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image

from dalle import __version__
from dalle.engine import Engine, Request, StepResult, finish_steps
from dalle.errors import DalleError, ImageError, ParameterError, PromptError
from dalle.images import encode_image
from dalle.pipeline import DALLE, Picture
from dalle.sampling import SamplingParams
from serving.fair_queue import FairQueue
from serving.jobs import Accepted, Drawn, Event, Job, ModelInfo, Preview, Refused
from serving.metrics import EngineMetrics
from serving.pictures import kept_codes, preview
from serving.settings import ModelSettings

__all__ = ["AsyncEngine"]

logger = logging.getLogger(__name__)

ADMISSIONS_PER_STEP = 2
"""A picture that gets slots runs its prompt first; more of them at once would hold up those being drawn."""
CHECK_SECONDS = 5.0
"""How often somebody who waits for events looks whether the engine is still there."""
STUCK_SECONDS = 60.0
"""A step that takes longer is a fault."""
FAILED = Refused(status=500, code="engine_failed", message="the engine has failed; try again")
CLOSING = Refused(status=503, code="shutting_down", message="the service is shutting down")


@dataclasses.dataclass(eq=False)
class _Job:
    """A job that was accepted."""

    job: Job
    post: Callable[[Event], None]
    arrived: float
    num_open: int
    """Pictures still to be drawn."""
    previewed: bool = False


@dataclasses.dataclass(eq=False)
class _Picture:
    """One picture of a job."""

    owner: _Job
    request: Request
    num_kept: int
    """Codes given in front, which cost no step."""
    previews: list[int]
    """Numbers of codes at which a preview is due, in rising order."""
    num_previews: int = 0
    started: float = 0.0
    num_codes: int = 0

    @property
    def rows(self) -> int:
        return 2 if self.request.params.guided else 1


class AsyncEngine:
    """Draws jobs of one model. Start it with `start`; the first call of everything else waits for nothing."""

    def __init__(self, model: DALLE, settings: ModelSettings) -> None:
        self.model = model
        self.settings = settings
        self.metrics = EngineMetrics(settings.id)
        self.max_queue = settings.max_queue
        self.threads = settings.threads or max(1, int(settings.num_cpus))
        buckets = [2**i for i in range(10) if 2**i < settings.num_slots] if settings.mode == "fast" else []
        self._engine = Engine(model.decoder, num_slots=settings.num_slots, buckets=buckets)
        self._queue: FairQueue[_Picture] = FairQueue()
        self._jobs: dict[str, _Job] = {}
        self._active: dict[int, _Picture] = {}
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._closing = False
        self._failure: BaseException | None = None
        self._step_seconds = 0.0
        self._last_sign = time.monotonic()
        self._ready = threading.Event()

    # -- called from anywhere

    def start(self) -> "AsyncEngine":
        """Start the thread and wait until it has drawn its self-test. Raises what made it fail."""
        self._thread.start()
        self._ready.wait()
        self.check()
        return self

    async def draw(self, job: Job) -> AsyncGenerator[Event]:
        """Draw a job. The first event is `Accepted` or `Refused`; then previews and pictures as they come, until all
        are drawn or the job is `Refused` on the way. Leaving the iterator early cancels the job.

        Raises `RuntimeError` as `check` does, if the engine fails meanwhile.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def post(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and so is whoever asked
                loop.call_soon_threadsafe(events.put_nowait, event)

        if self._closing:
            yield CLOSING
            return
        arrived = time.monotonic()
        self._commands.put(lambda: self._accept(job, post, arrived))
        num_open = len(job.indices)
        try:
            while num_open:
                try:
                    event = await asyncio.wait_for(events.get(), CHECK_SECONDS)
                except TimeoutError:
                    self.check()
                    continue
                num_open -= isinstance(event, Drawn)
                yield event
                if isinstance(event, Refused):
                    return
        finally:
            if num_open:
                self.cancel(job.id)

    def cancel(self, job_id: str) -> None:
        """Stop a job; its slots are free before the next step. Nothing happens if it is done or unknown."""
        asked_at = self._engine.num_steps
        refusal = Refused(status=409, code="request_cancelled", message="the request was cancelled")
        self._commands.put(lambda: self._stop(job_id, refusal, asked_at))

    def has(self, job_id: str) -> bool:
        """Whether a job is waiting or being drawn."""
        return job_id in self._jobs

    def check(self) -> None:
        """Raise `RuntimeError` if the thread is gone, or a step takes longer than a step can."""
        if self._failure is not None:
            raise RuntimeError("the engine's thread has failed") from self._failure
        if self._ready.is_set() and not self._thread.is_alive():
            raise RuntimeError("the engine's thread has ended")
        if self._active and time.monotonic() - self._last_sign > STUCK_SECONDS:
            raise RuntimeError(f"the engine has not finished a step for {STUCK_SECONDS:.0f} seconds")

    def close(self) -> None:
        """Finish what was accepted, take nothing more, and end the threads."""
        self._closing = True
        self._commands.put(lambda: None)
        self._thread.join()
        self._encoder.shutdown()

    def info(self) -> ModelInfo:
        """What others must know of the model."""
        model, text, (height, width) = self.model, self.model.text_tokenizer, self.model.image_size
        weight = model.decoder.embedding.weight
        place = torch.cuda.get_device_name(weight.device) if weight.is_cuda else torch.backends.cpu.get_cpu_capability()
        decides = (
            model.digest,
            __version__,
            torch.__version__,
            weight.device.type,
            place,
            str(weight.dtype),
            self.settings.num_slots,
            self.settings.mode,
            self.threads,
        )
        return ModelInfo(
            id=self.settings.id,
            digest=model.digest,
            height=height,
            width=width,
            rows=model.decoder.layout.grid_height,
            num_codes=model.num_codes,
            max_prompt_tokens=text.max_tokens if text is not None else 0,
            sampling=model.sampling.to_dict(),
            fingerprint="fp_" + hashlib.sha256(repr(decides).encode()).hexdigest()[:12],
            created=int(time.time()),
        )

    # -- on the engine's thread

    def _run(self) -> None:
        try:
            torch.set_num_threads(self.threads)
            self._test_itself()
            self._ready.set()
            while not (self._closing and not self._jobs and self._commands.empty()):
                self._take_commands()
                self._expire()
                self._admit()
                if self._active:
                    self._step()
        except BaseException as error:
            self._failure = error
            for one in list(self._jobs.values()):
                one.post(FAILED)
            self._ready.set()
            logger.exception("the engine's thread has failed")

    def _test_itself(self) -> None:
        """Draw the same picture alone and in company, and see that it is the same."""
        request = self.model.request(None, self.model.sampling, seed=0)
        start = time.perf_counter()
        (alone,) = self._engine.run([request])
        self._step_seconds = (time.perf_counter() - start) / self.model.num_codes
        others = [dataclasses.replace(request, seed=seed) for seed in range(1, self.settings.num_slots + 1)]
        in_company = self._engine.run([*others, request])[-1]
        if self.settings.mode == "strict" and not torch.equal(alone, in_company):
            raise RuntimeError("self-test: a picture depends on what is drawn beside it; this device needs mode fast")
        self._render(request, alone, None, None)
        self.metrics.slots.set(self.settings.num_slots)

    def _take_commands(self) -> None:
        """Do what was asked for; with nothing to draw, wait for it."""
        idle = not self._active and not len(self._queue) and not self._closing
        with contextlib.suppress(queue.Empty):
            if idle:
                self._commands.get(timeout=1.0)()
            while True:
                self._commands.get_nowait()()

    def _accept(self, job: Job, post: Callable[[Event], None], arrived: float) -> None:
        """Put a job's pictures into the queue, or refuse it."""
        try:
            pictures = self._pictures(job, _Job(job, post, arrived, len(job.indices)))
        except DalleError as error:
            self._refuse(post, _refusal(error))
            return
        except Exception:  # a mistake of ours, which must not take the pictures of others with it
            logger.exception("the job %s could not be prepared", job.id)
            self._refuse(post, FAILED)
            return
        num_waiting = self._num_waiting(pictures)
        estimate, left = self._finish_seconds(pictures), job.deadline - time.time()
        if self._closing:
            self._refuse(post, CLOSING)
        elif num_waiting > self.max_queue:
            retry = max(1.0, self._queue_seconds(num_waiting - self.max_queue))
            message = f"{len(self._queue)} pictures wait, and the limit is {self.max_queue}; try again in {retry:.0f} s"
            self._refuse(post, Refused(status=429, code="queue_full", message=message, retry_after=retry))
        elif estimate > left:
            retry = max(1.0, estimate - left)
            message = (
                f"it would take {estimate:.1f} s from now, and the deadline is in {left:.1f} s; "
                f"try again in {retry:.0f} s, or ask for fewer pictures or a later deadline"
            )
            self._refuse(post, Refused(status=429, code="deadline_unreachable", message=message, retry_after=retry))
        else:
            self._jobs[job.id] = pictures[0].owner
            for picture in pictures:
                self._queue.push(job.caller, picture)
            order = list(self._queue)
            text = self.model.text_tokenizer
            tokens = text.tokenize(job.prompt) if text is not None and job.prompt is not None else []
            kept = pictures[0].request.kept
            post(
                Accepted(
                    position=order.index(pictures[0]),
                    estimate=estimate,
                    num_text_tokens=len(tokens),
                    num_kept_codes=0 if kept is None else int((kept >= 0).sum()),
                )
            )
        self.metrics.queue_length.set(len(self._queue))

    def _refuse(self, post: Callable[[Event], None], refusal: Refused) -> None:
        self.metrics.refused(refusal.code)
        post(refusal)

    def _pictures(self, job: Job, owner: _Job) -> list[_Picture]:
        params = SamplingParams.from_dict(self.model.sampling.to_dict() | job.params)
        kept = None if job.given is None else kept_codes(self.model, job.given)
        first = self.model.request(job.prompt, params, seed=job.seed, negative_prompt=job.negative_prompt, kept=kept)
        num_codes = self.model.num_codes
        num_kept = 0 if kept is None else int((kept < 0).int().argmax())
        span, parts = num_codes - num_kept, 2 * job.num_previews + 1
        # between the start and the end, with half a distance before the first: it comes before the middle
        due = {num_kept + span * (2 * k + 1) // parts for k in range(job.num_previews)} - {num_kept}
        return [
            _Picture(owner, dataclasses.replace(first, index=index), num_kept, sorted(due)) for index in job.indices
        ]

    def _num_waiting(self, new: list[_Picture]) -> int:
        """How many pictures would wait, of those in the queue and these."""
        free = self._engine.num_free_slots
        pictures = [*self._queue, *new]
        for i, picture in enumerate(pictures):
            if picture.rows > free:
                return len(pictures) - i
            free -= picture.rows
        return 0

    def _finish_seconds(self, new: list[_Picture]) -> float:
        """In how many seconds the last of these pictures would be done."""
        trial: FairQueue[_Picture] = FairQueue()
        for picture in [*self._queue, *new]:
            trial.push(picture.owner.job.caller, picture)
        order = list(trial)
        active = [(self._num_left(picture), picture.rows) for picture in self._active.values()]
        steps = finish_steps(active, [(self._num_left(p), p.rows) for p in order], self._engine.num_free_slots)
        return self._step_seconds * max(step for picture, step in zip(order, steps, strict=True) if picture in new)

    def _queue_seconds(self, num_pictures: int) -> float:
        """How long it takes until this many waiting pictures have got slots, at least."""
        at_once = max(1, self.settings.num_slots // 2)
        return math.ceil(num_pictures / at_once) * self.model.num_codes * self._step_seconds

    def _num_left(self, picture: _Picture) -> int:
        return self.model.num_codes - max(picture.num_codes, picture.num_kept)

    def _expire(self) -> None:
        now = time.time()
        for one in [one for one in self._jobs.values() if one.job.deadline < now]:
            message = "the deadline has passed before all pictures were drawn"
            self._stop(one.job.id, Refused(status=408, code="deadline_exceeded", message=message), None)

    def _stop(self, job_id: str, refusal: Refused, asked_at: int | None) -> None:
        """Take a job out of queue and slots. `asked_at` is the number of steps when that was asked for."""
        one = self._jobs.pop(job_id, None)
        if one is None:
            return
        self._queue.remove(lambda picture: picture.owner is one)
        mine = {key: picture for key, picture in self._active.items() if picture.owner is one}
        for key, picture in mine.items():
            self._engine.cancel(key)
            del self._active[key]
            self.metrics.discarded_steps.inc(max(0, picture.num_codes - picture.num_kept))
        if mine and asked_at is not None:
            self.metrics.wasted_steps.inc(self._engine.num_steps - asked_at)
        self.metrics.cancellations.inc()
        self._count()
        one.post(refusal)

    def _count(self) -> None:
        self.metrics.queue_length.set(len(self._queue))
        self.metrics.slots_used.set(sum(picture.rows for picture in self._active.values()))

    def _admit(self) -> None:
        free = self._engine.num_free_slots
        for _ in range(ADMISSIONS_PER_STEP):
            if not len(self._queue) or self._queue.peek().rows > free:
                break
            picture = self._queue.pop()
            free -= picture.rows
            picture.started = time.monotonic()
            self.metrics.queue_seconds.observe(picture.started - picture.owner.arrived)
            self._active[self._engine.add(picture.request)] = picture

    def _step(self) -> None:
        start = time.monotonic()
        result = self._engine.step()
        self._last_sign = time.monotonic()
        seconds = self._last_sign - start
        self._step_seconds += 0.05 * (seconds - self._step_seconds)
        self.metrics.steps.inc()
        self.metrics.step_seconds.observe(seconds)
        self.metrics.codes.inc(len(result.drawn))
        self._deliver(result)
        self._count()

    def _deliver(self, result: StepResult) -> None:
        for key, num_codes in result.drawn.items():
            picture = self._active[key]
            picture.num_codes = num_codes
            if key in result.finished:
                del self._active[key]
                self._finish(picture, result.finished[key])
            elif picture.previews and num_codes >= picture.previews[0]:
                picture.previews.pop(0)
                self._preview(picture, self._engine.codes_so_far(key))

    def _render(
        self, request: Request, codes: torch.Tensor, prompt: str | None, negative_prompt: str | None
    ) -> Picture:
        start = time.monotonic()
        picture = self.model.picture(prompt, negative_prompt, request, codes)
        self.metrics.decode_seconds.observe(time.monotonic() - start)
        return picture

    def _finish(self, picture: _Picture, codes: torch.Tensor) -> None:
        one, job = picture.owner, picture.owner.job
        drawn = self._render(picture.request, codes, job.prompt, job.negative_prompt)
        text = drawn.receipt.to_text() if job.output_format == "png" else None
        queue_seconds = picture.started - one.arrived
        grid = [list(row) for row in drawn.receipt.codes]
        self._encode(
            one,
            drawn.image,
            text,
            lambda image: Drawn(index=drawn.index, image=image, codes=grid, queue_seconds=queue_seconds),
        )
        self.metrics.pictures.inc()
        one.num_open -= 1
        if not one.num_open:
            self._jobs.pop(job.id, None)

    def _encode(
        self, one: _Job, image: Image.Image, text: dict[str, str] | None, event: Callable[[bytes], Event]
    ) -> None:
        """Make the file of a picture beside the engine's thread, and post its event."""

        def encode() -> None:
            try:
                job = one.job
                one.post(event(encode_image(image, format=job.output_format, quality=job.quality, text=text)))
            except Exception:
                one.post(FAILED)
                logger.exception("a picture could not be encoded")

        self._encoder.submit(encode)

    def _preview(self, picture: _Picture, codes: torch.Tensor) -> None:
        one, number, index, num_codes = picture.owner, picture.num_previews, picture.request.index, len(codes)
        picture.num_previews += 1
        if not one.previewed:
            one.previewed = True
            self.metrics.first_preview_seconds.observe(time.monotonic() - one.arrived)
        self._encode(
            one,
            preview(self.model, codes),
            None,
            lambda image: Preview(index=index, number=number, num_codes=num_codes, image=image),
        )


def _refusal(error: DalleError) -> Refused:
    code, param = {
        PromptError: ("invalid_prompt", "prompt"),
        ParameterError: ("invalid_value", None),
        ImageError: ("invalid_image", "image"),
    }.get(type(error), ("invalid_request", None))
    return Refused(status=400, code=code, message=str(error), param=param)
