"""The HTTP side: OpenAI's images API, and around it what a service needs. It knows no Ray, only a `Backend`.

`create_app(backend, settings)` gives the application. Whatever goes wrong is an answer with OpenAI's error body.
"""

import asyncio
import base64
import contextlib
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Scope

from dalle import __version__
from dalle.errors import ImageError
from dalle.images import open_image
from dalle.receipt import Receipt
from serving.backend import Backend
from serving.callers import Callers, read_keys
from serving.errors import ApiError, field_error, refused
from serving.jobs import Accepted, Drawn, Event, Given, Job, ModelInfo, Preview, Refused
from serving.metrics import HTTPMetrics, join
from serving.middleware import CLIENT_GONE, AccessLog, Authentication, RequestSize, describe_prompt
from serving.schemas import (
    EditFields,
    ErrorBody,
    GenerationRequest,
    ImageData,
    ImagesResponse,
    InputTokens,
    ModelCard,
    ModelList,
    OutputTokens,
    Timing,
    Usage,
    VariationFields,
)
from serving.settings import Settings
from serving.store import ImageStore

__all__ = ["create_app"]

logger = logging.getLogger(__name__)

WEB = Path(__file__).parent / "web"
KEEP_ALIVE_SECONDS = 15.0
UPLOADS = ("/v1/images/edits", "/v1/images/variations")
SAMPLING = ("guidance_scale", "guidance_schedule", "temperature", "top_k", "top_p", "min_p")
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 408, 409, 413, 415, 429, 500, 503)
}

Fields = GenerationRequest | EditFields | VariationFields
B = TypeVar("B", bound=BaseModel)


def create_app(backend: Backend, settings: Settings) -> FastAPI:
    """The application over these models. Raises `ConfigError` for a key file or a store that cannot be used."""
    app = FastAPI(title="dalle-serve", version=__version__, docs_url=None, redoc_url=None)
    app.state.backend = backend
    app.state.settings = settings
    app.state.callers = Callers(read_keys(settings.keys_file), settings.limits)
    app.state.store = ImageStore(settings.store, settings.store_seconds) if settings.store else None
    app.state.metrics = HTTPMetrics()

    def limit(scope: Scope) -> int:
        limits = app.state.callers.limits
        return limits.max_upload_bytes if scope["path"] in UPLOADS else limits.max_body_bytes

    # the last one added is the outermost
    app.add_middleware(Authentication, callers=app.state.callers)
    app.add_middleware(RequestSize, limit=limit)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["X-Request-Id", "X-Queue-Position", "X-Estimate-Seconds", "Retry-After"],
        )
    app.add_middleware(AccessLog, metrics=app.state.metrics)
    _add_error_handlers(app)
    _add_images(app)
    _add_operations(app)
    _add_page(app)
    return app


# -- errors


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def known(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _wrong_type(request, "application/json").response()
        return field_error(list(error.errors()), sorted(GenerationRequest.model_fields)).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        messages = {
            404: f"there is nothing at {request.url.path}",
            405: f"{request.method} is not allowed at {request.url.path}",
        }
        message = messages.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        return ApiError(500, "the service has failed; the error is in its log", code="internal_error").response()


def _wrong_type(request: Request, expected: str) -> ApiError:
    given = request.headers.get("content-type", "none")
    return ApiError(415, f"the content type is {given[:80]!r}; expected {expected}", code="unsupported_media_type")


# -- pictures


def _add_images(app: FastAPI) -> None:
    @app.post("/v1/images/generations", responses=ERRORS, response_model=ImagesResponse, tags=["images"])
    async def generations(request: Request, body: Annotated[GenerationRequest, Body()]) -> Response:
        """Draw pictures of a prompt."""
        return await _draw(request, body, None, "image_generation")

    form = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": {"type": "object"}}}}}

    @app.post("/v1/images/edits", responses=ERRORS, response_model=ImagesResponse, tags=["images"], openapi_extra=form)
    async def edits(request: Request) -> Response:
        """Keep a part of a picture, and draw the rest to a prompt: all below the first `keep_rows` rows of codes, or
        what the mask leaves transparent. Codes are drawn in reading order, each seeing only those before it, so what
        is drawn fits what is above and left of it, and not what is kept below."""
        fields, given = await _form(request, EditFields)
        if given.mask is None and given.keep_rows is None:
            raise ApiError(
                400,
                "say what to keep: send keep_rows (rows of codes from the top), or a mask whose transparent pixels are "
                "drawn anew",
                code="missing_required_parameter",
                param="mask",
            )
        return await _draw(request, fields, given, "image_edit")

    @app.post(
        "/v1/images/variations", responses=ERRORS, response_model=ImagesResponse, tags=["images"], openapi_extra=form
    )
    async def variations(request: Request) -> Response:
        """Keep the upper rows of a picture, and draw the rest with another seed."""
        fields, given = await _form(request, VariationFields)
        return await _draw(request, fields, given, "image_edit")

    @app.delete("/v1/requests/{request_id}", responses=ERRORS, tags=["images"])
    async def cancel(request: Request, request_id: str) -> dict[str, Any]:
        """Stop a request: its slots are free within one step, and it ends with an error `request_cancelled`."""
        if not await app.state.backend.cancel(request_id):
            raise ApiError(404, f"there is no request {request_id[:80]!r}: it is done or unknown", param="request_id")
        return {"id": request_id, "object": "request", "cancelled": True}

    @app.get("/v1/models", responses=ERRORS, tags=["models"])
    async def models() -> ModelList:
        """The models that are ready to draw."""
        return ModelList(data=[_card(info) for info in await app.state.backend.models()])

    @app.get("/v1/models/{model}", responses=ERRORS, tags=["models"])
    async def model(model: str) -> ModelCard:
        """One of them."""
        return _card(await _find_model(app.state.backend, model))

    @app.get("/files/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        path = app.state.store.get(name) if app.state.store is not None else None
        if path is None:
            raise ApiError(404, f"there is no picture {name[:80]!r}, or its time is over")
        media_type = f"image/{path.suffix[1:]}"
        return FileResponse(path, media_type=media_type, headers={"Cache-Control": "private, max-age=3600, immutable"})


def _card(info: ModelInfo) -> ModelCard:
    return ModelCard(
        id=info.id,
        created=info.created,
        digest=info.digest,
        size=f"{info.width}x{info.height}",
        rows=info.rows,
        num_codes=info.num_codes,
        max_prompt_tokens=info.max_prompt_tokens,
        sampling=info.sampling,
    )


async def _find_model(backend: Backend, name: str | None) -> ModelInfo:
    infos = await backend.models()
    if not infos:
        raise ApiError(503, "no model is loaded yet; try again in a moment", headers={"Retry-After": "2"})
    for info in infos:
        if name in (None, info.id):
            return info
    known = ", ".join(info.id for info in infos)
    raise ApiError(404, f"there is no model {name!r}; there are {known}", code="model_not_found", param="model")


async def _form(request: Request, kind: type[B]) -> tuple[B, Given]:
    """The fields of a form, and its picture and mask."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise _wrong_type(request, "multipart/form-data")
    limits = request.app.state.callers.limits
    try:
        form = await request.form(max_files=2, max_fields=50, max_part_size=limits.max_body_bytes)
    except ApiError:
        raise
    except HTTPException as error:
        raise ApiError(400, f"the form cannot be read: {error.detail}", code="invalid_form") from error
    try:
        pictures = {name: one for name, one in form.multi_items() if isinstance(one, UploadFile)}
        values = {name: one for name, one in form.multi_items() if not isinstance(one, UploadFile)}
        if "image[]" in pictures:  # OpenAI's client calls a list of one so
            pictures["image"] = pictures.pop("image[]")
        for name in pictures.keys() - {"image", "mask"}:
            raise ApiError(400, f"{name!r} is no picture that is expected: image and mask are", param=name)
        if "image" not in pictures:
            raise ApiError(400, "the file image is missing", code="missing_required_parameter", param="image")
        fields = kind.model_validate(values)
        files = {name: await one.read() for name, one in pictures.items()}
    except ValidationError as error:
        raise field_error(list(error.errors()), sorted(kind.model_fields)) from error
    finally:
        await form.close()
    keep_rows = getattr(fields, "keep_rows", None)
    if "mask" in files and keep_rows is not None:
        raise ApiError(400, "keep_rows and a mask say twice what to keep: send one of them", param="keep_rows")
    if "mask" in files and kind is VariationFields:
        raise ApiError(400, "a variation has no mask: see /v1/images/edits", code="unsupported_parameter", param="mask")
    return fields, Given(image=files["image"], mask=files.get("mask"), keep_rows=keep_rows)


def _check(fields: Fields, info: ModelInfo, settings: Settings, max_n: int, store: ImageStore | None) -> None:
    """What depends on the model and on the service. Raises `ApiError`."""
    size = f"{info.width}x{info.height}"
    if fields.n > max_n:
        raise ApiError(400, f"n is {fields.n}; the limit is {max_n}", code="invalid_value", param="n")
    if fields.size not in ("auto", size):
        message = f"size is {fields.size[:80]!r}; the model {info.id} draws {size}: send that, or auto"
        raise ApiError(400, message, code="invalid_value", param="size")
    if fields.partial_images > info.rows:
        message = f"partial_images is {fields.partial_images}; the model {info.id} has {info.rows} rows of codes"
        raise ApiError(400, message, code="invalid_value", param="partial_images")
    if fields.partial_images and not fields.stream:
        raise ApiError(400, "partial_images needs stream", code="invalid_value", param="partial_images")
    if fields.output_format == "png" and fields.output_compression not in (None, 100):
        message = f"output_compression is {fields.output_compression}, but png is lossless: choose jpeg or webp"
        raise ApiError(400, message, code="invalid_value", param="output_compression")
    if fields.response_format == "url" and (store is None or fields.stream):
        reason = "a stream carries its pictures" if fields.stream else "this service keeps no pictures"
        message = f"response_format url is not possible: {reason}; send b64_json"
        raise ApiError(400, message, code="unsupported_value", param="response_format")


async def _draw(request: Request, fields: Fields, given: Given | None, kind: str) -> Response:
    """Draw, and answer with pictures or a stream of events."""
    app, state = request.app, request.state
    callers: Callers = app.state.callers
    settings: Settings = app.state.settings
    info = await _find_model(app.state.backend, fields.model)
    _check(fields, info, settings, callers.limits.max_n, app.state.store)
    limit = callers.limits.deadline
    if fields.deadline is not None and fields.deadline > limit:
        message = f"deadline is {fields.deadline} s; the limit is {limit:g} s"
        raise ApiError(400, message, code="invalid_value", param="deadline")
    prompt = fields.prompt
    if prompt is None and given is not None:
        prompt = _prompt_of(given.image)
    job = Job(
        id=state.request_id,
        caller=f"{state.caller}/{fields.user or fields.safety_identifier or ''}",
        prompt=prompt,
        negative_prompt=fields.negative_prompt,
        params={name: value for name in SAMPLING if (value := getattr(fields, name)) is not None},
        seed=secrets.randbelow(2**31) if fields.seed is None else fields.seed,
        indices=tuple(range(fields.first_index, fields.first_index + fields.n)),
        given=given,
        deadline=time.time() + (fields.deadline or limit),
        num_previews=fields.partial_images,
        output_format=fields.output_format,
        quality=fields.output_compression if fields.output_format != "png" else None,
    )
    state.log.update(model=info.id, n=fields.n, seed=job.seed, **describe_prompt(prompt, whole=settings.log_prompts))
    answer = _Answer(request, fields, info, job, kind)
    stack = contextlib.AsyncExitStack()
    try:
        stack.enter_context(callers.at_once(state.caller))
        events = await stack.enter_async_context(
            contextlib.aclosing(_until_gone(request, app.state.backend, info, job))
        )
        first = await anext(events, None)
        if first is None:
            return Response(status_code=CLIENT_GONE)
        if isinstance(first, Refused):
            raise refused(first)
        assert isinstance(first, Accepted)
        answer.accepted = first
        if fields.stream:
            headers = answer.headers | {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            content = answer.stream(events, stack.pop_all())
            return StreamingResponse(content, media_type="text/event-stream", headers=headers)
        drawn = []
        async for event in events:
            if isinstance(event, Refused):
                raise refused(event)
            if isinstance(event, Drawn):
                drawn.append(event)
        if len(drawn) < len(job.indices):
            return Response(status_code=CLIENT_GONE)
        return JSONResponse(answer.whole(drawn), headers=answer.headers)
    finally:
        await stack.aclose()


def _prompt_of(image: bytes) -> str | None:
    """The prompt in the receipt of a picture, if it has one."""
    try:
        with open_image(image, formats=("PNG",)) as opened:
            return Receipt.from_text(opened.text).prompt or None  # type: ignore[attr-defined]
    except ImageError:
        return None


async def _until_gone(request: Request, backend: Backend, info: ModelInfo, job: Job) -> AsyncGenerator[Event]:
    """The events of a job, until the client is gone. Leaving early cancels the job."""
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


class _Answer:
    """How a job's events become an answer."""

    accepted: Accepted

    def __init__(self, request: Request, fields: Fields, info: ModelInfo, job: Job, kind: str) -> None:
        self.request = request
        self.fields = fields
        self.info = info
        self.job = job
        self.kind = kind
        self.started = time.monotonic()
        self.created = int(time.time())

    @property
    def headers(self) -> dict[str, str]:
        return {
            "X-Queue-Position": str(self.accepted.position),
            "X-Estimate-Seconds": f"{self.accepted.estimate:.3f}",
        }

    def usage(self, num_pictures: int) -> Usage:
        """Of this many pictures."""
        kept = self.accepted.num_kept_codes * num_pictures
        drawn = self.info.num_codes * num_pictures - kept
        text = self.accepted.num_text_tokens
        return Usage(
            input_tokens=text + kept,
            input_tokens_details=InputTokens(text_tokens=text, image_tokens=kept),
            output_tokens=drawn,
            output_tokens_details=OutputTokens(image_tokens=drawn),
            total_tokens=text + kept + drawn,
        )

    def timing(self, queue_seconds: float) -> Timing:
        total = time.monotonic() - self.started
        return Timing(queue=round(queue_seconds, 4), estimate=round(self.accepted.estimate, 4), total=round(total, 4))

    def whole(self, drawn: list[Drawn]) -> dict[str, Any]:
        """The body of an answer that is no stream."""
        drawn = sorted(drawn, key=lambda one: one.index)
        body = ImagesResponse(
            created=self.created,
            id=self.job.id,
            model=self.info.id,
            data=[self._data(one) for one in drawn],
            output_format=self.fields.output_format,
            size=f"{self.info.width}x{self.info.height}",
            safety_identifier=self.fields.safety_identifier,
            seed=self.job.seed,
            system_fingerprint=self.info.fingerprint,
            usage=self.usage(len(drawn)),
            timing=self.timing(max(one.queue_seconds for one in drawn)),
        )
        return body.model_dump(mode="json", exclude_none=True)

    def _data(self, one: Drawn) -> ImageData:
        codes = one.codes if self.fields.return_codes else None
        data = ImageData(seed=self.job.seed, index=one.index, codes=codes)
        if self.fields.response_format == "url":
            app = self.request.app
            name = app.state.store.put(one.image, self.fields.output_format)
            base = app.state.settings.public_url or str(self.request.base_url)
            return data.model_copy(update={"url": f"{base.rstrip('/')}/files/{name}"})
        return data.model_copy(update={"b64_json": base64.b64encode(one.image).decode()})

    async def stream(self, events: AsyncIterator[Event], stack: contextlib.AsyncExitStack) -> AsyncIterator[bytes]:
        """Server-sent events. `stack` is closed at the end, whatever happens."""
        async with stack:
            try:
                async for event in _with_keep_alive(events):
                    if event is None:
                        yield b": keepalive\n\n"
                    elif isinstance(event, Refused):
                        yield _sse("error", refused(event).body)
                        return
                    else:
                        yield self._event(event)
            except Exception:
                logger.exception("a stream has failed")
                error = ApiError(500, "the service has failed; the error is in its log", code="internal_error")
                yield _sse("error", error.body)

    def _event(self, event: Event) -> bytes:
        assert isinstance(event, Preview | Drawn)
        data: dict[str, Any] = {
            "b64_json": base64.b64encode(event.image).decode(),
            "created_at": int(time.time()),
            "size": f"{self.info.width}x{self.info.height}",
            "quality": "auto",
            "background": "opaque",
            "output_format": self.fields.output_format,
            "id": self.job.id,
            "seed": self.job.seed,
            "index": event.index,
            "image_index": event.index - self.job.indices[0],
            "num_codes": self.info.num_codes,
        }
        if isinstance(event, Preview):
            data |= {"partial_image_index": event.number, "codes_done": event.num_codes}
            return _sse(f"{self.kind}.partial_image", data)
        data |= {
            "codes_done": self.info.num_codes,
            "usage": self.usage(1).model_dump(),
            "timing": self.timing(event.queue_seconds).model_dump(),
            "system_fingerprint": self.info.fingerprint,
        }
        if self.fields.return_codes:
            data["codes"] = event.codes
        return _sse(f"{self.kind}.completed", data)


def _sse(kind: str, data: dict[str, Any]) -> bytes:
    typed = data if kind == "error" else {"type": kind, **data}
    return f"event: {kind}\ndata: {json.dumps(typed)}\n\n".encode()


async def _with_keep_alive(events: AsyncIterator[Event]) -> AsyncIterator[Event | None]:
    """The events, and None whenever nothing came for a while."""
    waiting: asyncio.Future[Event | None] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(events, None))
            done, _ = await asyncio.wait((waiting,), timeout=KEEP_ALIVE_SECONDS)
            if not done:
                yield None
                continue
            event, waiting = waiting.result(), None
            if event is None:
                return
            yield event
    finally:
        if waiting is not None:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting


# -- operations


def _add_operations(app: FastAPI) -> None:
    @app.get("/health", tags=["operations"])
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/ready", responses=ERRORS, tags=["operations"])
    async def ready() -> dict[str, Any]:
        """Every model is loaded and has drawn its self-test."""
        loaded = await app.state.backend.ready()
        missing = [model.id for model in app.state.settings.models if model.id not in loaded]
        if missing:
            raise ApiError(503, f"not ready yet: {', '.join(missing)}", code="not_ready", headers={"Retry-After": "2"})
        return {"status": "ready", "models": sorted(loaded)}

    @app.get("/metrics", response_class=PlainTextResponse, tags=["operations"])
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(join(await app.state.backend.metrics(app.state.metrics.text())), media_type=METRICS_TYPE)


def _add_page(app: FastAPI) -> None:
    app.mount("/static", StaticFiles(directory=WEB), name="static")

    def page(name: str, media_type: str) -> Callable[[], Any]:
        async def answer() -> Response:
            return FileResponse(WEB / name, media_type=media_type, headers={"Cache-Control": "no-cache"})

        return answer

    app.get("/", include_in_schema=False)(page("index.html", "text/html"))
    app.get("/favicon.ico", include_in_schema=False)(page("favicon.svg", "image/svg+xml"))
