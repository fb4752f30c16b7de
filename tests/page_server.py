"""A stand-in for the service, for the tests of its page: the same wire format, pictures of coloured discs, no model.

Requests are checked by the service's own schemas, so the page cannot send what the service would refuse. `serve` runs
any ASGI application in a thread, on a free port.
"""

import asyncio
import base64
import colorsys
import contextlib
import io
import json
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image, ImageDraw
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.schemas import EditFields, GenerationRequest, VariationFields

__all__ = ["WEB", "create_stand_in", "serve"]

WEB = Path(__file__).parents[1] / "serving" / "web"
ROWS, COLUMNS, SIZE = 8, 8, 128
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

Fields = GenerationRequest | EditFields | VariationFields


class _Policy:
    """Puts the service's content security policy on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, guarded)


def create_stand_in(*, row_seconds: float) -> Starlette:
    """The stand-in; a row of codes takes it row_seconds."""
    cancelled: dict[str, asyncio.Event] = {}

    async def index(request: Request) -> Response:
        return FileResponse(WEB / "index.html")

    async def models(request: Request) -> Response:
        card = {
            "id": "discs",
            "object": "model",
            "created": 0,
            "owned_by": "dalle-serve",
            "digest": "00" * 32,
            "size": f"{SIZE}x{SIZE}",
            "rows": ROWS,
            "num_codes": ROWS * COLUMNS,
            "max_prompt_tokens": 32,
            "sampling": {
                "temperature": 0.7,
                "top_k": 0,
                "top_p": 1.0,
                "min_p": 0.0,
                "guidance_scale": 1.5,
                "guidance_schedule": "constant",
            },
        }
        return JSONResponse({"object": "list", "data": [card]})

    async def draw(request: Request) -> Response:
        endpoint = request.url.path.rpartition("/")[2]
        try:
            fields, kept = await _parse(request, endpoint)
        except ValidationError as error:
            first = error.errors()[0]
            return _refusal(400, f"{first['loc'][0]}: {first['msg']}", param=str(first["loc"][0]))
        request_id = uuid.uuid4().hex
        if not fields.stream:
            return JSONResponse(_answer(fields, request_id, kept))
        cancelled[request_id] = asyncio.Event()
        kind = "image_generation" if endpoint == "generations" else "image_edit"
        headers = {
            "X-Request-Id": request_id,
            "X-Queue-Position": "2",
            "X-Estimate-Seconds": f"{row_seconds * ROWS:.2f}",
        }
        return StreamingResponse(
            _events(fields, kind, request_id, kept, cancelled[request_id], row_seconds),
            media_type="text/event-stream",
            headers=headers,
        )

    async def cancel(request: Request) -> Response:
        event = cancelled.get(request.path_params["id"])
        if event is None:
            return _refusal(404, "there is no such request", param=None)
        event.set()
        return Response(status_code=204)

    return Starlette(
        routes=[
            Route("/", index),
            Route("/v1/models", models),
            Route("/v1/images/generations", draw, methods=["POST"]),
            Route("/v1/images/edits", draw, methods=["POST"]),
            Route("/v1/images/variations", draw, methods=["POST"]),
            Route("/v1/requests/{id}", cancel, methods=["DELETE"]),
            Mount("/static", StaticFiles(directory=WEB)),
        ],
        middleware=[Middleware(_Policy)],
    )


async def _parse(request: Request, endpoint: str) -> tuple[Fields, int]:
    """The request's fields, and how many rows of codes are kept. Raises `ValidationError`."""
    if endpoint == "generations":
        return GenerationRequest.model_validate_json(await request.body()), 0
    form = dict(await request.form())
    upload = form.pop("image")
    assert not isinstance(upload, str)
    Image.open(io.BytesIO(await upload.read())).verify()
    fields = (EditFields if endpoint == "edits" else VariationFields).model_validate(form)
    return fields, ROWS // 2 if fields.keep_rows is None else fields.keep_rows


def _refusal(status: int, message: str, *, param: str | None) -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": None}
    return JSONResponse({"error": error}, status_code=status)


async def _events(
    fields: Fields, kind: str, request_id: str, kept: int, cancelled: asyncio.Event, row_seconds: float
) -> AsyncIterator[str]:
    """Previews of all pictures row by row, then the pictures, each an event."""
    started = time.monotonic()
    seed = fields.seed or 0
    yield ": keepalive\n\n"
    for row in range(kept + 1, ROWS + 1):
        await asyncio.sleep(row_seconds)
        if cancelled.is_set():
            return
        is_last = row == ROWS
        if not is_last and row - kept > fields.partial_images:
            continue
        for image_index in range(fields.n):
            index = fields.first_index + image_index
            what = "completed" if is_last else "partial_image"
            event: dict[str, Any] = {
                "type": f"{kind}.{what}",
                "b64_json": _picture(seed, index, row),
                "output_format": "png",
                "size": f"{SIZE}x{SIZE}",
                "image_index": image_index,
                "codes_done": row * COLUMNS,
                "num_codes": ROWS * COLUMNS,
                "seed": seed,
                "index": index,
                "id": request_id,
            }
            if is_last:
                seconds = time.monotonic() - started
                event |= {"usage": {}, "timing": {"queue": 0.0, "estimate": 0.0, "total": seconds}}
            else:
                event["partial_image_index"] = row - kept - 1
            yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


def _answer(fields: Fields, request_id: str, kept: int) -> dict[str, Any]:
    seed = fields.seed or 0
    indices = range(fields.first_index, fields.first_index + fields.n)
    data = [{"b64_json": _picture(seed, index, ROWS), "seed": seed, "index": index} for index in indices]
    return {
        "created": 0,
        "id": request_id,
        "data": data,
        "size": f"{SIZE}x{SIZE}",
        "output_format": "png",
        "seed": seed,
    }


def _picture(seed: int, index: int, num_rows: int) -> str:
    """A disc whose colour tells seed and index, with its first rows drawn: a PNG in base64."""
    hue = (seed * 0.618 + index * 0.13) % 1
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.55, 0.9))
    image = Image.new("RGB", (SIZE, SIZE), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((12, 12, SIZE - 12, SIZE - 12), fill=(red, green, blue))
    draw.rectangle((0, SIZE * num_rows // ROWS, SIZE, SIZE), fill="white")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@contextlib.contextmanager
def serve(app: ASGIApp) -> Iterator[str]:
    """Runs an application in a thread, and gives the address of its root."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", ws="none", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                time.sleep(0.02)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()
