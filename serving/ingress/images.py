"""The endpoints that draw pictures: validate a request, send it to its model as a job, and return the job's events."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from serving.errors import ApiError, to_http
from serving.ingress.deferred import Deferred, is_asynchronous, key_of, seed_of
from serving.ingress.drawing import Asked, Kind, draw_whole, prepare_drawing
from serving.ingress.middleware import CLIENT_GONE
from serving.ingress.store import ImageStore
from serving.ingress.uploads import Upload, form_of, read_form
from serving.jobs import Accepted, Event, Refused
from serving.responses import ImagesResponse, RequestState
from serving.schemas import EditFields, Fields, GenerationRequest, VariationFields

__all__ = ["router"]

STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
"""Second content type of the response in the OpenAPI document, for requests with `stream`."""

FORWARDED_USER = "X-OpenWebUI-User-Id"
"""Header by which Open WebUI names its user."""

router = APIRouter(tags=["images"])


@router.post("/v1/images/generations", response_model=ImagesResponse, responses=STREAM)
async def generations(request: Request, body: Annotated[GenerationRequest, Body()]) -> Response:
    """Draw pictures of a prompt."""
    return await _answer_with_pictures(request, body, None, "image_generation")


@router.post("/v1/images/edits", response_model=ImagesResponse, responses=STREAM, openapi_extra=form_of(EditFields))
async def edits(request: Request) -> Response:
    """Keep a part of a picture, and draw the rest from a prompt: everything below the first `keep_rows` grid rows (rows
    of codes), or the transparent part of the mask; without both, the transparent part of the picture, or its lower half
    if nothing in it is transparent. Codes are drawn in reading order, and each depends only on the codes before it, so
    the new part matches what is above and to the left of it, but not what is kept below."""
    fields, upload = await read_form(request, EditFields)
    return await _answer_with_pictures(request, fields, upload, "image_edit")


@router.post(
    "/v1/images/variations", response_model=ImagesResponse, responses=STREAM, openapi_extra=form_of(VariationFields)
)
async def variations(request: Request) -> Response:
    """Keep the upper grid rows (rows of codes) of a picture, and draw the rest with another seed."""
    fields, upload = await read_form(request, VariationFields)
    return await _answer_with_pictures(request, fields, upload, "image_edit")


@router.get("/v1/requests/{request_id}", response_model=RequestState)
async def show_request(request: Request, request_id: str) -> Response:
    """The state of an asynchronous request of yours, or of one with an `Idempotency-Key`, and at last its result."""
    deferred: Deferred = request.app.state.deferred
    record = await deferred.find(request_id, request.state.caller)
    if record is None:
        message = f"there is no request {request_id[:80]!r}: it is unknown or expired"
        raise ApiError(404, message, param="request_id")
    return JSONResponse(await deferred.describe(record))


@router.delete("/v1/requests/{request_id}")
async def cancel(request: Request, request_id: str) -> dict[str, Any]:
    """Cancel a request of yours, by the id in the header `X-Job-Id` of its response. It ends with the error
    `request_cancelled`, and its slots are free within one step."""
    job = await request.app.state.deferred.job_of(request_id, request.state.caller) or request_id
    if not await request.app.state.backend.cancel(job, request.state.caller):
        raise ApiError(404, f"there is no request {request_id[:80]!r}: it is finished or unknown", param="request_id")
    return {"id": request_id, "object": "request", "cancelled": True}


@router.get("/files/{name}", include_in_schema=False)
async def file(request: Request, name: str) -> Response:
    """A stored picture, by the name in its URL."""
    store: ImageStore | None = request.app.state.store
    found = await asyncio.to_thread(store.get, name) if store is not None else None
    if found is None:
        raise ApiError(404, f"there is no picture {name[:80]!r}, or it has expired")
    # pages of other origins that know the URL may show the picture
    picture, seconds = found
    headers = {
        "Cache-Control": f"private, max-age={seconds}, immutable",
        "Cross-Origin-Resource-Policy": "cross-origin",
    }
    return Response(picture, media_type=f"image/{name.rpartition('.')[2]}", headers=headers)


async def _answer_with_pictures(request: Request, fields: Fields, upload: Upload | None, kind: Kind) -> Response:
    """Send a job to its model, and answer with its pictures, a stream of events, or the state of the request."""
    app, state = request.app, request.state
    asked = Asked(
        fields=fields,
        upload=upload,
        kind=kind,
        caller=state.caller,
        user=request.headers.get(FORWARDED_USER) or fields.user or fields.safety_identifier,
        base_url=str(request.base_url),
    )
    key, asynchronous = key_of(request), is_asynchronous(request)
    if asynchronous and fields.stream:
        raise ApiError(400, "an asynchronous request cannot stream", code="invalid_value", param="stream")
    if asynchronous or (key is not None and not fields.stream):
        return await _answer_deferred(request, asked, key, asynchronous=asynchronous)
    if key is not None and fields.seed is None:
        asked = dataclasses.replace(asked, fields=fields.model_copy(update={"seed": seed_of(asked.caller, key)}))
    drawing = await prepare_drawing(app, asked)
    state.log.update(drawing.log)
    events = _until_gone(request, drawing.events())
    if not fields.stream:
        body = await draw_whole(drawing, events)
        if body is None:
            return Response(status_code=CLIENT_GONE)
        return JSONResponse(body, headers=drawing.answer.headers)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(contextlib.aclosing(events))
        first = await anext(events, None)
        if first is None:
            return Response(status_code=CLIENT_GONE)
        if isinstance(first, Refused):
            raise to_http(first)
        assert isinstance(first, Accepted)
        drawing.answer.accepted = first
        headers = drawing.answer.headers | {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        content = drawing.answer.stream(events, stack.pop_all())
        return StreamingResponse(content, media_type="text/event-stream", headers=headers)


async def _answer_deferred(request: Request, asked: Asked, key: str | None, *, asynchronous: bool) -> Response:
    """Answer with the state of a request, or with its kept answer, once it is there."""
    deferred: Deferred = request.app.state.deferred
    record, was_there = await deferred.start(asked, key, asynchronous=asynchronous)
    request.state.log.update(job=record.id)
    headers = {"X-Job-Id": record.id} | ({"Idempotent-Replayed": "true"} if was_there else {})
    if not asynchronous:
        return JSONResponse(await deferred.wait(record), headers=headers)
    described = await deferred.describe(record)
    headers |= {"Location": f"/v1/requests/{record.id}", "Preference-Applied": "respond-async", "Retry-After": "1"}
    return JSONResponse(described, 202, headers=headers)


async def _until_gone(request: Request, events: AsyncGenerator[Event]) -> AsyncGenerator[Event]:
    """The events, until the client disconnects. Leaving early closes them, which cancels their job."""
    gone = asyncio.create_task(_wait_until_gone(request))
    try:
        while True:
            event = asyncio.ensure_future(anext(events, None))
            try:
                await asyncio.wait((event, gone), return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not event.done():
                    event.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await event
            if gone.done() or event.cancelled() or (found := event.result()) is None:
                return
            yield found
    finally:
        gone.cancel()
        await events.aclose()


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
