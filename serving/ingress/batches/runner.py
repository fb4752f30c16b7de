"""`BatchRunner`: draws the batches that nobody else draws, a bounded number of requests at a time, in spare slots.

Every ingress looks for unfinished batches, and the one that gets a batch's lock draws it. So a batch whose ingress dies
is taken up by another one, or by the same one after its start; requests that have a result are not drawn again. A
request without a seed has one that follows from the batch, so that it draws the same pictures every time.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import random
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from uuid import uuid4

from fastapi import FastAPI

from serving.errors import ApiError, internal_error
from serving.ingress.batches.lines import BatchLine, error_at, in_body, read_lines
from serving.ingress.batches.schemas import BatchError
from serving.ingress.batches.shelf import Shelf
from serving.ingress.batches.stored import StoredBatch
from serving.ingress.deferred import seed_of
from serving.ingress.drawing import Asked, Drawing, draw_whole, prepare_drawing

__all__ = ["BatchRunner"]

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Time between two looks for batches to draw, or to stop."""
PAUSE_SECONDS = 10.0
"""Pause after a failure, such as a full disk, before the batch is tried again."""
BUSY = frozenset({429, 503})
"""Status of refusals after which a request is sent again, for as long as the batch lasts."""
ATTEMPTS = 3
"""Times that a request may end with status 500."""
BACKOFF_SECONDS = (0.5, 30.0)
"""Shortest and longest time between two attempts."""
GRACE_SECONDS = 60.0
"""Time after the end of a batch at which an engine drops its requests, if their ingress has not cancelled them then."""
MAX_ERRORS = 100
"""Most invalid lines that a batch reports."""

T = TypeVar("T")


class BatchRunner:
    """The batches that one ingress draws.

    at_once: requests of one caller that are sent at a time.
    """

    def __init__(self, app: FastAPI, shelf: Shelf, at_once: int) -> None:
        self._app = app
        self.shelf = shelf
        self._news = asyncio.Event()
        self._disk: ThreadPoolExecutor
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._places: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(at_once))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Draw batches within a `with` block; others go on with batches that are not finished at its end."""
        # one thread for all that is written of a batch: one thing after the other, also if a task is cancelled
        with ThreadPoolExecutor(1, "batches") as self._disk:
            watch = asyncio.create_task(self._watch())
            try:
                yield
            finally:
                tasks = [watch, *self._tasks.values()]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def look(self) -> None:
        """Look for batches now."""
        self._news.set()

    async def _watch(self) -> None:
        while True:
            self._news.clear()
            try:
                await self._on_disk(self.shelf.sweep)
                for caller, batch_id in await self._on_disk(lambda: list(self.shelf.open_batches())):
                    if batch_id not in self._tasks:
                        batch = StoredBatch(self.shelf, caller, self.shelf.of(caller) / batch_id)
                        self._tasks[batch_id] = asyncio.create_task(self._hold(batch))
            except Exception:
                logger.exception("the folder of batches cannot be read; it is tried again")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), LOOK_SECONDS)

    async def _hold(self, batch: StoredBatch) -> None:
        """Draw a batch until it is finished, cancelled or expired, if nobody else does."""
        try:
            if await self._on_disk(batch.acquire):
                ending = await self._draw_until_ending(batch)
                if ending is not None:
                    await self._on_disk(batch.finish, ending)
        except Exception:
            logger.exception("the batch %s is interrupted; it is tried again in %g s", batch.id, PAUSE_SECONDS)
            await asyncio.sleep(PAUSE_SECONDS)
        finally:
            await self._on_disk(batch.release)
            del self._tasks[batch.id]

    async def _draw_until_ending(self, batch: StoredBatch) -> str | None:
        """Draw a batch, but stop when it has to end. Returns the state in which it has to; None if it is finished."""
        work = asyncio.create_task(self._draw(batch))
        try:
            while (ending := await self._on_disk(lambda: batch.ending)) is None:
                if work.done():
                    work.result()
                    break
                await asyncio.wait((work,), timeout=LOOK_SECONDS)
            return ending
        finally:
            work.cancel()
            await asyncio.wait((work,))

    async def _draw(self, batch: StoredBatch) -> None:
        state = await self._on_disk(lambda: batch.state)
        if state.in_progress_at is None:
            total, errors = await self._validate(batch)
            if errors:
                await self._on_disk(batch.fail, errors)
                return
            await self._on_disk(batch.begin, total)
        if state.finalizing_at is None:
            places = self._places[batch.caller]
            async with asyncio.TaskGroup() as group:
                async for line in self._each(batch.lines()):
                    if line.custom_id in batch.done:
                        continue
                    await places.acquire()
                    group.create_task(self._draw_line(batch, line)).add_done_callback(lambda _: places.release())
                    if self.shelf.is_overfull(batch.caller):
                        break
        await self._on_disk(batch.finish, "completed")

    async def _validate(self, batch: StoredBatch) -> tuple[int, list[BatchError]]:
        """Validate the file of a batch. Returns the number of its lines, and its errors."""
        limit, total = self._app.state.callers.limits.max_batch_lines, 0
        errors: list[BatchError] = []
        async for line in self._each(read_lines(batch.input)):
            total += 1
            if total > limit:
                message = f"the file has more than {limit} lines, which is the limit"
                return total, [BatchError(code="too_many_lines", line=None, message=message, param="input_file_id")]
            if isinstance(line, BatchLine):
                try:
                    await self._prepare(batch, line)
                except ApiError as error:
                    errors.append(error_at(line.number, in_body(error)))
            else:
                errors.append(line)
            if len(errors) == MAX_ERRORS:
                break
        if not total:
            message = "the file has no lines"
            errors.append(BatchError(code="empty_file", line=None, message=message, param="input_file_id"))
        return total, errors

    async def _draw_line(self, batch: StoredBatch, line: BatchLine) -> None:
        """Draw a request, and record its result."""
        status, request_id, body, num_failures = 500, "", internal_error().body, 0
        for attempt in itertools.count(1):
            request_id = f"job_{uuid4().hex}"
            try:
                drawing = await self._prepare(batch, line, request_id)
                found = await draw_whole(drawing, drawing.events())
                assert found is not None, "the events of a job end early only if somebody leaves them"
                status, body = 200, found
                break
            except ApiError as error:
                status, body = error.status, error.body
                wait = float(error.headers.get("Retry-After", 0)) if error.headers else 0.0
            except Exception:
                logger.exception("a request of the batch %s has failed", batch.id)
                status, body, wait = 500, internal_error().body, 0.0
            num_failures += status == 500
            if status not in BUSY and (status != 500 or num_failures == ATTEMPTS):
                break
            shortest, longest = BACKOFF_SECONDS
            wait = min(longest, max(wait, shortest * 2 ** min(attempt, 10)))
            await asyncio.sleep(wait * random.uniform(0.5, 1))
        response = {"status_code": status, "request_id": request_id, "body": body}
        await self._on_disk(batch.record, line.custom_id, response)

    async def _prepare(self, batch: StoredBatch, line: BatchLine, job_id: str | None = None) -> Drawing:
        """A request that is ready to be drawn in spare slots. Raises `ApiError`; waits for a model that is not loaded
        yet."""
        seed = seed_of(batch.id, line.custom_id) if line.fields.seed is None else line.fields.seed
        asked = Asked(
            fields=line.fields.model_copy(update={"seed": seed}),
            upload=None,
            kind="image_generation",
            caller=batch.caller,
            user=None,
            base_url="",
        )
        while True:
            try:
                drawing = await prepare_drawing(self._app, asked, job_id=job_id)
            except ApiError as error:
                if error.status not in BUSY:
                    raise
                await asyncio.sleep(LOOK_SECONDS)
                continue
            job = dataclasses.replace(drawing.job, spare=True, deadline=batch.expires_at + GRACE_SECONDS)
            return dataclasses.replace(drawing, job=job)

    async def _on_disk(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *arguments)

    async def _each(self, lines: Iterator[T]) -> AsyncGenerator[T]:
        """The lines of a file, which is read on the disk's thread: millions of them may be blank."""
        while (line := await self._on_disk(next, lines, None)) is not None:
            yield line
