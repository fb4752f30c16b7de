"""The endpoints that draw pictures: validate a request, send it to its model as a job, and return the job's events."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Body, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from dalle.errors import DalleError, PromptError
from dalle.pipeline import NEEDS_GUIDANCE
from serving.backend import Backend
from serving.errors import ApiError, to_http
from serving.ingress.answers import Answer
from serving.ingress.callers import Callers
from serving.ingress.given import prepare, prompt_of
from serving.ingress.middleware import CLIENT_GONE, describe_prompt
from serving.ingress.store import ImageStore
from serving.ingress.uploads import Upload, form_of, read_form
from serving.jobs import Accepted, Drawn, Event, Given, Job, ModelInfo, Refused
from serving.output import output_of
from serving.refusals import refusal_from
from serving.schemas import (
    MAX_PROMPT_LENGTH,
    EditFields,
    Fields,
    GenerationRequest,
    ImagesResponse,
    VariationFields,
    sampling_of,
)
from serving.settings import LimitSettings, Settings

__all__ = ["find_model", "router"]

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


@router.delete("/v1/requests/{request_id}")
async def cancel(request: Request, request_id: str) -> dict[str, Any]:
    """Cancel a request of yours, by the id in the header `X-Job-Id` of its response. It ends with the error
    `request_cancelled`, and its slots are free within one step."""
    if not await request.app.state.backend.cancel(request_id, request.state.caller):
        raise ApiError(404, f"there is no request {request_id[:80]!r}: it is finished or unknown", param="request_id")
    return {"id": request_id, "object": "request", "cancelled": True}


@router.get("/files/{name}", include_in_schema=False)
async def file(request: Request, name: str) -> Response:
    """A stored picture, by the name in its URL."""
    store: ImageStore | None = request.app.state.store
    picture = await asyncio.to_thread(store.get, name) if store is not None else None
    if picture is None:
        raise ApiError(404, f"there is no picture {name[:80]!r}, or it has expired")
    # pages of other origins that know the URL may show the picture
    headers = {"Cache-Control": "private, max-age=3600, immutable", "Cross-Origin-Resource-Policy": "cross-origin"}
    return Response(picture, media_type=f"image/{name.rpartition('.')[2]}", headers=headers)


async def find_model(backend: Backend, settings: Settings, name: str | None) -> ModelInfo:
    """The model of this id or alias, the default without one. Raises `ApiError` 404, and 503 if it is not loaded
    yet."""
    chosen = settings.aliases.get(name, name) if name else backend.names[0]
    if chosen not in backend.names:
        known = ", ".join(backend.names)
        raise ApiError(404, f"there is no model {name!r}; there are {known}", code="model_not_found", param="model")
    for info in await backend.models():
        if info.id == chosen:
            return info
    message = f"the model {chosen} is not loaded yet; try again in a moment"
    raise ApiError(503, message, code="not_ready", param="model", headers={"Retry-After": "2"})


def _check(fields: Fields, info: ModelInfo, limits: LimitSettings) -> None:
    """Validate fields whose limits depend on the model or the service. Raises `ApiError`."""
    if fields.n > limits.max_n:
        raise ApiError(400, f"n is {fields.n}; the limit is {limits.max_n}", code="invalid_value", param="n")
    if fields.deadline is not None and fields.deadline > limits.deadline:
        message = f"deadline is {fields.deadline} s; the limit is {limits.deadline:g} s"
        raise ApiError(400, message, code="invalid_value", param="deadline")
    if (rows := getattr(fields, "keep_rows", None)) is not None and rows >= info.grid_rows:
        message = f"keep_rows is {rows}; it must be below {info.grid_rows}, the model's number of grid rows"
        raise ApiError(400, message, code="invalid_value", param="keep_rows")
    if fields.partial_images > info.grid_rows:
        message = f"partial_images is {fields.partial_images}; the model {info.id} has {info.grid_rows} grid rows"
        raise ApiError(400, message, code="invalid_value", param="partial_images")
    if fields.negative_prompt is not None and (fields.guidance_scale or info.sampling["guidance_scale"]) == 1:
        raise ApiError(400, NEEDS_GUIDANCE, code="invalid_value", param="negative_prompt")
    if fields.partial_images and not fields.stream:
        raise ApiError(400, "partial_images needs stream", code="invalid_value", param="partial_images")


def _as_urls(fields: Fields, settings: Settings) -> bool:
    """Whether a request is answered with URLs. Raises `ApiError` if it asks for URLs that are not possible."""
    if fields.response_format == "url" and (settings.store is None or fields.stream):
        reason = "a stream contains its pictures" if fields.stream else "this service stores no pictures"
        message = f"response_format url is not possible: {reason}; send b64_json"
        raise ApiError(400, message, code="unsupported_value", param="response_format")
    return (fields.response_format or settings.response_format) == "url" and not fields.stream


def _quality(fields: Fields) -> int | None:
    """Quality for `encode_image`, whose lowest is 1, where OpenAI's is 0."""
    if fields.output_format == "png" or fields.output_compression is None:
        return None
    return max(1, fields.output_compression)


async def _answer_with_pictures(request: Request, fields: Fields, upload: Upload | None, kind: str) -> Response:
    """Send a job to its model, and answer with its pictures or a stream of events. `kind` prefixes the names of
    events."""
    app, state = request.app, request.state
    callers: Callers = app.state.callers
    settings: Settings = app.state.settings
    info = await find_model(app.state.backend, settings, fields.model)
    output = output_of(
        fields,
        model=info.id,
        image_size=(info.height, info.width),
        mode=info.image_mode,
        lenient=settings.lenient,
    )
    _check(fields, info, callers.limits)
    as_urls = _as_urls(fields, settings)
    user = request.headers.get(FORWARDED_USER) or fields.user or fields.safety_identifier
    prompt, given = fields.prompt, None
    if upload is not None:
        prompt, given = await asyncio.to_thread(_read, upload, fields, info, callers.limits.max_image_pixels)
    job = Job(
        id=f"job_{uuid4().hex}",
        owner=state.caller,
        caller=callers.turn(state.caller, user),
        prompt=prompt,
        negative_prompt=fields.negative_prompt,
        params=sampling_of(fields),
        seed=secrets.randbelow(2**31) if fields.seed is None else fields.seed,
        indices=tuple(range(fields.first_index, fields.first_index + fields.n)),
        given=given,
        deadline=time.time() + (fields.deadline or callers.limits.deadline),
        num_previews=fields.partial_images,
        output_format=fields.output_format,
        quality=_quality(fields),
        background=output.background,
        enlargement=output.enlargement,
    )
    described = describe_prompt(prompt, whole=settings.log_prompts)
    state.log.update(job=job.id, model=info.id, n=fields.n, seed=job.seed, **described)
    answer = Answer(request, fields, info, job, kind, output=output, as_urls=as_urls)
    stack = contextlib.AsyncExitStack()
    try:
        events = await stack.enter_async_context(
            contextlib.aclosing(_until_gone(request, app.state.backend, info, job))
        )
        first = await anext(events, None)
        if first is None:
            return Response(status_code=CLIENT_GONE)
        if isinstance(first, Refused):
            raise to_http(first)
        assert isinstance(first, Accepted)
        answer.accepted = first
        if fields.stream:
            headers = answer.headers | {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            content = answer.stream(events, stack.pop_all())
            return StreamingResponse(content, media_type="text/event-stream", headers=headers)
        drawn = []
        async for event in events:
            if isinstance(event, Refused):
                raise to_http(event)
            if isinstance(event, Drawn):
                drawn.append(event)
        if len(drawn) < len(job.indices):
            return Response(status_code=CLIENT_GONE)
        return JSONResponse(await answer.whole(drawn), headers=answer.headers)
    finally:
        await stack.aclose()


def _read(upload: Upload, fields: Fields, info: ModelInfo, max_pixels: int) -> tuple[str | None, Given]:
    """The prompt of the fields, or else of the picture's receipt; and the prepared picture. Raises `ApiError`."""
    prompt = fields.prompt
    try:
        if prompt is None:
            prompt = prompt_of(upload.image, max_pixels=max_pixels)
        if prompt is not None and len(prompt) > MAX_PROMPT_LENGTH:
            raise PromptError(f"the prompt has {len(prompt)} characters; the limit is {MAX_PROMPT_LENGTH}")
        keep_rows = getattr(fields, "keep_rows", None)
        given = prepare(
            upload.image,
            upload.mask,
            keep_rows,
            info,
            own_mask=isinstance(fields, EditFields),
            max_pixels=max_pixels,
        )
        return prompt, given
    except DalleError as error:
        raise to_http(refusal_from(error)) from error


async def _until_gone(request: Request, backend: Backend, info: ModelInfo, job: Job) -> AsyncGenerator[Event]:
    """The events of a job, until the client disconnects. Leaving early cancels the job."""
    events = backend.draw(info.id, job)
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
