"""Middleware of every request: request ids, the access log, unexpected exceptions, size limits, authentication.

It is plain ASGI, so that streams are not buffered.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable
from typing import Any

from starlette._utils import get_route_path  # the path that routes match; there is no public name for it
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import ApiError, internal_error
from serving.headers import SECURITY_HEADERS, request_id_of
from serving.ingress.callers import Callers
from serving.metrics import HTTPMetrics

__all__ = ["AccessLog", "Authentication", "Failures", "HeadRequests", "RequestBounds", "describe_prompt"]

logger = logging.getLogger(__name__)
access_log = logging.getLogger("serving.access")

MAX_HEADERS = 64
MAX_HEADER_BYTES = 16 * 1024
CLIENT_GONE = 499
OPEN_PATHS = frozenset({"/", "/favicon.ico", "/health", "/ready", "/metrics", "/openapi.json"})
OPEN_FOLDERS = ("/static/", "/files/")
"""Paths that need no API key, with `OPEN_PATHS`: the page, probes, and pictures whose names cannot be guessed."""


class AccessLog:
    """Gives every request an id and every response its headers; logs a line of JSON when the response ends.

    A caller can choose the id with the header `X-Request-Id`, to find the request in the log. `send_id` is False behind
    a proxy that returns the id itself.
    """

    def __init__(self, app: ASGIApp, metrics: HTTPMetrics, *, send_id: bool) -> None:
        self.app = app
        self.metrics = metrics
        self.send_id = send_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.monotonic()
        request_id = request_id_of(Headers(scope=scope))
        noted: dict[str, Any] = {}
        scope.setdefault("state", {}).update(log=noted, request_id=request_id)
        status = CLIENT_GONE

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                if self.send_id:
                    headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(round(1000 * (time.monotonic() - start)))
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            seconds = time.monotonic() - start
            route = scope.get("route")
            self.metrics.count_response(getattr(route, "path", "other"), status, seconds)
            line = {
                "id": request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "seconds": round(seconds, 4),
                **noted,
            }
            access_log.info(json.dumps(line))


class HeadRequests:
    """Answers HEAD as GET, without the body, wherever there is a GET."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        head = scope["method"] == "HEAD"

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if "GET" in (allowed := headers.get("allow", "").split(", ")) and "HEAD" not in allowed:
                    headers["allow"] = ", ".join((*allowed, "HEAD"))
            elif head:
                message = {**message, "body": b""}
            await send(message)

        # a copy, since the server looks at the method too; its route is for the access log
        inner = {**scope, "method": "GET"} if head else scope
        try:
            await self.app(inner, receive, send_head)
        finally:
            scope["route"] = inner.get("route")


class Failures:
    """Turns an unexpected exception into a response, and logs it.

    The middleware around it then adds the id, the security headers and the CORS headers. Starlette's own handler is
    outside of all middleware, and its responses would have none of them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except ClientDisconnect:  # while the body was read: the client is gone
            return
        except Exception:
            if scope["type"] != "http" or started:
                raise  # the reader of the stream sees it break off
            logger.exception("the request %s has failed", scope["state"]["request_id"])
            await internal_error().response()(scope, receive, send)


def describe_prompt(prompt: str | None, *, whole: bool) -> dict[str, Any]:
    """A prompt's entries in the access log: its length and a hash, or all of it."""
    if prompt is None or whole:
        return {"prompt": prompt}
    return {"prompt_characters": len(prompt), "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest()[:16]}


class RequestBounds:
    """Refuses headers and bodies that are too large, bodies that do not arrive in time, and compressed bodies. A body
    is counted while it is read, since its declared length can be false."""

    def __init__(self, app: ASGIApp, limit: Callable[[Scope], int], seconds: Callable[[], float]) -> None:
        self.app = app
        self.limit = limit
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
            limits = f"the limits are {MAX_HEADERS} headers and {MAX_HEADER_BYTES} bytes"
            await ApiError(431, f"{len(headers)} headers of {size} bytes; {limits}").response()(scope, receive, send)
            return
        encoding = Headers(scope=scope).get("content-encoding", "")
        if scope["method"] == "POST" and encoding.strip().lower() not in ("", "identity"):
            message = f"the content encoding is {encoding[:80]!r}: send the body without compression"
            error = ApiError(415, message, code="unsupported_media_type", headers={"Accept-Encoding": "identity"})
            await error.response()(scope, receive, send)
            return
        limit, read, whole = self.limit(scope), 0, False
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdigit() and int(declared) > limit:
            await _too_large(int(declared), limit).response()(scope, receive, send)
            return
        seconds = self.seconds()
        until = asyncio.get_running_loop().time() + seconds

        async def bounded() -> Message:
            nonlocal read, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError as error:
                raise ApiError(408, f"the body has not arrived within {seconds:g} s") from error
            whole = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > limit:
                raise _too_large(read, limit)
            return message

        await self.app(scope, bounded, send)


def _too_large(size: int, limit: int) -> ApiError:
    return ApiError(413, f"the body has {size} bytes or more; the limit is {limit}", code="request_too_large")


class Authentication:
    """Identifies the caller of every request to a path that is not open, and counts it against the caller's limits. The
    body is read afterwards, so that a refused request takes no memory."""

    def __init__(self, app: ASGIApp, callers: Callers) -> None:
        self.app = app
        self.callers = callers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope):
            await self.app(scope, receive, send)
            return
        rate: dict[str, str] = {}

        async def send_with_rate(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(rate)
            await send(message)

        with contextlib.ExitStack() as running:
            try:
                client = scope.get("client")
                caller = self.callers.name(Headers(scope=scope).get("authorization"), client[0] if client else "local")
                scope["state"]["caller"] = scope["state"]["log"]["caller"] = caller
                if scope["method"] == "POST":
                    rate = await self.callers.spend(caller)
                    running.enter_context(self.callers.at_once(caller))
            except ApiError as error:
                await error.response()(scope, receive, send_with_rate)
                return
            await self.app(scope, receive, send_with_rate)


def _is_open(scope: Scope) -> bool:
    path = get_route_path(scope) or "/"
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)
