"""Requests that outlast their connection: asynchronous ones (`Prefer: respond-async`), and those with an
`Idempotency-Key`, which can be sent again.

Each is drawn by a task of its own, whether or not a client waits for it, and its answer is kept in `Records`. If the
ingress that draws it dies, the next ingress that is asked for it draws it again, with the same seed.
"""

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import logging
import re
import secrets
import time
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, Request

from serving.errors import ApiError, internal_error
from serving.ingress.drawing import Asked, draw_whole, prepare_drawing
from serving.ingress.records import FINAL, Record, Records, State
from serving.jobs import Accepted, Drawn, Event, Preview

__all__ = ["Deferred", "is_asynchronous", "key_of", "seed_of"]

logger = logging.getLogger(__name__)

KEY = re.compile(r"[\x21-\x7e]{1,255}")
CAN_COME_BACK = (429, 503)
"""Status of refusals after which an interrupted request is tried again."""
NUM_PREVIEWS = 3
"""Previews of each picture of an asynchronous request."""
POLL_SECONDS = 0.1


def key_of(request: Request) -> str | None:
    """The `Idempotency-Key` of a request, if it has one. Raises `ApiError` for one of another form."""
    key = request.headers.get("idempotency-key")
    if key is not None and KEY.fullmatch(key) is None:
        message = "Idempotency-Key must have 1 to 255 ASCII characters without spaces"
        raise ApiError(400, message, code="invalid_value", param="Idempotency-Key")
    return key


def is_asynchronous(request: Request) -> bool:
    """Whether a request asks for an answer at once, by RFC 7240's `Prefer: respond-async`."""
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    return any(one.partition(";")[0].strip().lower() == "respond-async" for one in preferences)


def seed_of(caller: str, key: str) -> int:
    """The seed of a stream with this `Idempotency-Key`, below 2^31: sent again, it draws the same pictures."""
    return int(_digest(caller, key)[:8], 16) % 2**31


def _digest(caller: str, key: str) -> str:
    return hashlib.sha256(f"{caller}\0{key}".encode()).hexdigest()[:32]


class Deferred:
    """The deferred requests of one ingress."""

    def __init__(self, app: FastAPI, records: Records) -> None:
        self._app = app
        self._records = records
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, asked: Asked, key: str | None, *, asynchronous: bool) -> tuple[Record, bool]:
        """The record of a request, which is being drawn; and whether it was there before.

        Raises `ApiError` if the key belongs to another request (422), and if the request is refused.
        """
        name = uuid4().hex if key is None else _digest(asked.caller, key)
        record, new = await asyncio.to_thread(self._records.open, f"job_{name}")
        state = None if new else await asyncio.to_thread(lambda: record.state)
        if state is not None and state.status in ("failed", "cancelled"):  # the next attempt starts afresh
            await asyncio.to_thread(record.remove)
            record, new = await asyncio.to_thread(self._records.open, f"job_{name}")
        if new:
            seed = secrets.randbelow(2**31) if asked.fields.seed is None else asked.fields.seed
            asked = dataclasses.replace(asked, fields=asked.fields.model_copy(update={"seed": seed}))
            await asyncio.to_thread(record.write_request, asked)
        else:
            await self._check_is_same(record, asked)
        await self._ensure(record, asynchronous=asynchronous)
        return record, not new

    async def find(self, record_id: str, caller: str) -> Record | None:
        """The record of a caller's request. One that nobody draws any more is drawn again."""
        record = await asyncio.to_thread(self._records.find, record_id, caller)
        if record is not None:
            with contextlib.suppress(ApiError):  # its state says so, or it is tried again with the next call
                await self._ensure(record, asynchronous=True)
        return record

    async def job_of(self, record_id: str, caller: str) -> str | None:
        """Id of the job that draws a caller's request now."""
        record = await asyncio.to_thread(self._records.find, record_id, caller)
        state = None if record is None else await asyncio.to_thread(lambda: record.state)
        return None if state is None else state.job

    async def wait(self, record: Record) -> dict[str, Any]:
        """The body of a request's response, once it is there. Raises `ApiError` if the request fails."""
        while True:
            state = await asyncio.to_thread(lambda: record.state)
            if state is not None and state.status in FINAL:
                body = await asyncio.to_thread(lambda: record.answer) or internal_error().body
                if state.status != "completed":
                    error = body["error"]
                    raise ApiError(
                        error["status"],
                        error["message"],
                        code=error["code"],
                        param=error["param"],
                        moderation_details=error.get("moderation_details"),
                    )
                return body
            task = self._tasks.get(record.id)
            if task is None:
                await asyncio.sleep(POLL_SECONDS)
                await self._ensure(record, asynchronous=False)
            else:
                await asyncio.wait((task,))

    async def describe(self, record: Record) -> dict[str, Any]:
        """A request's state, and its result or error, as `GET /v1/requests/ID` returns it."""

        def read() -> dict[str, Any]:
            state, asked = record.state, record.asked
            assert state is not None
            body: dict[str, Any] = {
                "id": record.id,
                "object": "request",
                "status": state.status,
                "created_at": state.created,
                "expires_at": int(record.folder.stat().st_mtime + self._records.seconds),
                "model": state.model,
                "seed": asked.fields.seed,
                "pictures": asked.fields.n,
                "pictures_done": state.num_drawn,
                "position": state.position if state.status == "queued" else None,
                "estimate": None if state.status in FINAL else round(max(0.0, (state.due or 0) - time.time()), 3),
                "preview": None,
                "result": record.answer if state.status == "completed" else None,
                "error": None,
            }
            if state.status in ("failed", "cancelled"):
                error = (record.answer or internal_error().body)["error"]
                body["error"] = {name: value for name, value in error.items() if name != "status"}
            elif state.status == "in_progress" and (preview := record.preview) is not None:
                body["preview"] = base64.b64encode(preview).decode()
            return body

        return await asyncio.to_thread(read)

    async def _check_is_same(self, record: Record, asked: Asked) -> None:
        for _ in range(50):
            try:
                if await asyncio.to_thread(record.is_of, asked):
                    return
            except FileNotFoundError:  # it is being written by another request at this moment
                await asyncio.sleep(POLL_SECONDS)
                continue
            raise ApiError(
                422,
                "the Idempotency-Key was used for another request: use a new key for each request",
                code="idempotency_key_reused",
                param="Idempotency-Key",
            )
        await asyncio.to_thread(record.remove)
        raise ApiError(409, "the first request with this Idempotency-Key was interrupted; try again", code="conflict")

    async def _ensure(self, record: Record, *, asynchronous: bool) -> None:
        """Have a request drawn that is not finished and that nobody draws. Returns when it is accepted; raises
        `ApiError` if it is refused."""
        state = await asyncio.to_thread(lambda: record.state)
        if record.id in self._tasks or (state is not None and state.status in FINAL):
            return
        if not await asyncio.to_thread(record.acquire):
            return
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._hold(record, state, accepted, asynchronous=asynchronous))
        self._tasks[record.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(record.id, None))
        await asyncio.shield(accepted)

    async def _hold(
        self, record: Record, before: State | None, accepted: "asyncio.Future[None]", *, asynchronous: bool
    ) -> None:
        """Draw a request whose lock is held, and release the lock. Sets `accepted`, or the error that it is refused
        with. A request that was never accepted is forgotten then, and one that was can be tried again later."""
        try:
            await self._draw(record, before, accepted, asynchronous=asynchronous)
        except Exception as error:
            if not isinstance(error, ApiError):
                logger.exception("the request %s has failed", record.id)
            refused = error if isinstance(error, ApiError) else internal_error()
            if accepted.done() or (before is not None and refused.status not in CAN_COME_BACK):
                await asyncio.to_thread(record.fail, refused)
            elif before is None:
                await asyncio.to_thread(record.remove)
            if not accepted.done():
                accepted.set_exception(refused)
        finally:
            await asyncio.to_thread(record.release)

    async def _draw(
        self, record: Record, before: State | None, accepted: "asyncio.Future[None]", *, asynchronous: bool
    ) -> None:
        asked = await asyncio.to_thread(lambda: record.asked)
        # a second attempt has another id: the first may still be drawn for an ingress that has just died
        job = record.id if before is None else f"{record.id}-{uuid4().hex[:8]}"
        drawing = await prepare_drawing(self._app, asked, job_id=job)
        if asynchronous:
            previews = min(NUM_PREVIEWS, drawing.info.grid_rows - 1)
            drawing = dataclasses.replace(drawing, job=dataclasses.replace(drawing.job, num_previews=previews))
        created = int(time.time()) if before is None else before.created
        state = State(created=created, job=job, model=drawing.info.id)

        async def on_event(event: Event) -> None:
            nonlocal state
            if isinstance(event, Accepted):
                state = dataclasses.replace(state, position=event.position, due=time.time() + event.estimate)
            elif isinstance(event, Preview | Drawn):
                await asyncio.to_thread(setattr, record, "preview", event.image)
                num_drawn = state.num_drawn + isinstance(event, Drawn)
                state = dataclasses.replace(state, status="in_progress", num_drawn=num_drawn)
            else:
                return
            await asyncio.to_thread(setattr, record, "state", state)
            if not accepted.done():
                accepted.set_result(None)

        with self._app.state.callers.running(asked.caller) if asynchronous else contextlib.nullcontext():
            body = await draw_whole(drawing, drawing.events(), on_event)
        assert body is not None, "the events of a job end early only if somebody leaves them"
        body["id"] = record.id
        await asyncio.to_thread(setattr, record, "answer", body)
        state = dataclasses.replace(state, status="completed")
        await asyncio.to_thread(setattr, record, "state", state)
