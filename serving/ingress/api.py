"""The HTTP application: OpenAI's images API, the web page, health checks and metrics, over any `Backend`.

`create_app(backend, settings)` returns the application. Every error is a response with OpenAI's error body.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Scope

from dalle import __version__
from dalle.checkpoint.vocabulary import Vocabulary
from serving.backend import Backend, State
from serving.errors import ERRORS, ApiError, content_type, field_error, unreadable_body, wrong_type
from serving.ingress.batches.routes import router as batch_router
from serving.ingress.batches.runner import BatchRunner
from serving.ingress.batches.shelf import Shelf
from serving.ingress.callers import Callers, read_keys
from serving.ingress.deferred import Deferred
from serving.ingress.drawing import find_model
from serving.ingress.explanations import router as explanation_router
from serving.ingress.images import router
from serving.ingress.middleware import AccessLog, Authentication, Failures, HeadRequests, RequestBounds
from serving.ingress.records import Records
from serving.ingress.spans import RequestSpans, telemetry_of
from serving.ingress.store import ImageStore
from serving.jobs import ModelInfo
from serving.metrics import HTTPMetrics, join, text_of_states
from serving.responses import ModelCard, ModelDetails, ModelList, StyleCard
from serving.safety.settings import Stage
from serving.settings import Settings
from serving.tracing import Tracing

__all__ = ["create_app"]

WEB = Path(__file__).parents[1] / "web"
UPLOADS = ("/v1/images/edits", "/v1/images/variations", "/v1/images/explanations")
FILES = "/v1/files"
EXPOSED = (
    *(
        "X-Request-Id",
        "X-Job-Id",
        "X-Ignored-Fields",
        "Location",
        "Idempotent-Replayed",
        "X-Queue-Position",
        "X-Estimate-Seconds",
        "Retry-After",
        "X-Should-Retry",
    ),
    *(f"X-RateLimit-{what}-Requests" for what in ("Limit", "Remaining", "Reset")),
)
"""Response headers that pages of other origins may read."""
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document without FastAPI's status 422: invalid bodies get 400 here."""
        document = super().openapi()
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document


def create_app(
    backend: Backend, settings: Settings, *, send_request_id: bool = True, tracing: Tracing | None = None
) -> FastAPI:
    """The application over these models, with spans if there is `tracing`. Set `send_request_id` to False behind a
    proxy that sends `X-Request-Id`.

    Raises `ConfigError` for a key file or a store that cannot be used.
    """
    app = _Application(
        title="dalle-serve",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        responses=ERRORS,
        lifespan=_batches,
        telemetry=telemetry_of(tracing),
    )
    app.state.backend = backend
    app.state.settings = settings
    app.state.callers = Callers(read_keys(settings.keys_file), settings.limits)
    app.state.store = (
        ImageStore(settings.store, settings.store_seconds, settings.store_bytes) if settings.store else None
    )
    records = Records(settings.requests_folder, settings.store_seconds, settings.store_bytes)
    app.state.deferred = Deferred(app, records)
    app.state.batches = None
    if settings.batches_folder is not None:
        shelf = Shelf(settings.batches_folder, settings.batch_seconds, settings.batch_bytes)
        at_once = max(model.num_slots * model.min_replicas for model in settings.models)
        app.state.batches = BatchRunner(app, shelf, at_once)
    app.state.metrics = HTTPMetrics()
    app.state.tracing = tracing

    def limit(scope: Scope) -> int:
        limits, path = app.state.callers.limits, get_route_path(scope)
        if path == FILES:
            return limits.max_file_bytes
        return limits.max_upload_bytes if path in UPLOADS else limits.max_body_bytes

    # the middleware added last is the outermost
    app.add_middleware(Authentication, callers=app.state.callers)
    app.add_middleware(RequestBounds, limit=limit, seconds=lambda: app.state.callers.limits.deadline)
    app.add_middleware(HeadRequests)
    app.add_middleware(Failures)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],  # for these origins alone; OpenAI's client sends a dozen of its own
            expose_headers=EXPOSED,
            # browsers ask this before a public page may call a service in a private network, or on their own machine
            allow_private_network="*" not in settings.cors_origins,
        )
    if tracing is not None:
        app.add_middleware(RequestSpans)
    app.add_middleware(AccessLog, metrics=app.state.metrics, send_id=send_request_id)
    _add_error_handlers(app)
    app.include_router(router)
    app.include_router(explanation_router)
    app.include_router(batch_router)
    _add_models(app)
    _add_operations(app)
    _add_page(app)
    return app


@contextlib.asynccontextmanager
async def _batches(app: FastAPI) -> AsyncIterator[None]:
    """Draw batches while the application runs, if it has a folder for them."""
    runner: BatchRunner | None = app.state.batches
    async with contextlib.nullcontext() if runner is None else runner.running():
        yield


# -- errors


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def known(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        in_body = error.errors()[0]["loc"][0] == "body"
        if in_body and content_type(request) != "application/json":
            return wrong_type(request, "application/json").response()
        route = request.scope["route"]
        kind = route.body_field.field_info.annotation if route.body_field is not None else None
        return field_error(list(error.errors()), sorted(getattr(kind, "model_fields", ()))).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400 and error.__cause__ is not None:  # FastAPI could not parse the body
            return unreadable_body(error.__cause__).response()
        messages = {
            404: f"there is nothing at {request.url.path}",
            405: f"{request.method} is not allowed at {request.url.path}",
        }
        message = messages.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, headers=error.headers).response()


# -- models


def _add_models(app: FastAPI) -> None:
    settings: Settings = app.state.settings

    def card(info: ModelInfo, states: Mapping[str, State]) -> ModelCard:
        aliases = [alias for alias, model in settings.aliases.items() if model == info.id]
        return _card(info, aliases, states.get(info.id, "unavailable"), settings.safety.stages)

    @app.get("/v1/models", tags=["models"])
    async def models() -> ModelList:
        """List the models that have been loaded, the default first. A model that is idle is loaded if this process has
        never seen it."""
        backend: Backend = app.state.backend
        seen = {info.id for info in await backend.models()}
        await asyncio.gather(*(backend.load(name) for name in backend.names if name not in seen))
        states = await backend.states()
        return ModelList(data=[card(info, states) for info in await backend.models()])

    @app.get("/v1/models/{model}", tags=["models"])
    async def model(model: str) -> ModelDetails:
        """Describe one model: its facts, and the styles and concepts that it knows."""
        info = await find_model(app.state.backend, settings, model)
        return _details(card(info, await app.state.backend.states()), info.vocabulary or Vocabulary())


def _card(
    info: ModelInfo, aliases: list[str], state: State | Literal["unavailable"], moderation: tuple[Stage, ...]
) -> ModelCard:
    return ModelCard(
        id=info.id,
        aliases=aliases,
        state=state,
        created=info.created,
        digest=info.digest,
        size=f"{info.width}x{info.height}",
        rows=info.grid_rows,
        num_codes=info.num_codes,
        max_prompt_tokens=info.max_prompt_tokens,
        transparency=info.image_mode == "RGBA",
        moderation=[*moderation],
        rerank=[*info.rerank],
        translate_from=[*info.translates],
        translate=info.translate,
        sampling=info.sampling,
    )


def _details(card: ModelCard, vocabulary: Vocabulary) -> ModelDetails:
    styles = [
        StyleCard(
            name=style.name,
            phrase=style.phrase,
            picture=f"data:image/webp;base64,{style.picture}" if style.picture else None,
        )
        for style in vocabulary.styles
    ]
    return ModelDetails(
        **card.model_dump(),
        description=vocabulary.description,
        examples=[*vocabulary.examples],
        styles=styles,
        concepts=[*vocabulary.concepts],
    )


# -- operations


def _add_operations(app: FastAPI) -> None:
    @app.get("/health", tags=["operations"])
    async def health() -> dict[str, str]:
        """Report that the process is alive."""
        return {"status": "alive"}

    @app.get("/ready", tags=["operations"])
    async def ready() -> dict[str, Any]:
        """Report whether every model is loaded and has passed its self-test, or is idle; status 503 if not."""
        states = await app.state.backend.states()
        missing = [model.id for model in app.state.settings.models if model.id not in states]
        if missing:
            raise ApiError(503, f"not ready yet: {', '.join(missing)}", code="not_ready", headers={"Retry-After": "2"})
        return {"status": "ready", "models": sorted(states)}

    @app.get("/metrics", response_class=PlainTextResponse, tags=["operations"])
    async def metrics() -> Response:
        """Metrics of all replicas in Prometheus' text format."""
        texts = await app.state.backend.metrics(app.state.metrics.text())
        states = text_of_states(await app.state.backend.states())
        return Response(join([*texts, ({}, states)]), media_type=METRICS_TYPE)


def _add_page(app: FastAPI) -> None:
    app.mount("/static", StaticFiles(directory=WEB), name="static")

    def page(name: str, media_type: str) -> Callable[[], Any]:
        async def answer() -> Response:
            return FileResponse(WEB / name, media_type=media_type, headers={"Cache-Control": "no-cache"})

        return answer

    app.get("/", include_in_schema=False)(page("index.html", "text/html"))
    app.get("/favicon.ico", include_in_schema=False)(page("favicon.svg", "image/svg+xml"))
