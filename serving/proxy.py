"""Middleware for Ray Serve's proxy: its own errors get OpenAI's body, and its control headers are removed.

The proxy answers in plain text when no ingress is available, with status 404 while the service starts or stops, waits
without end for an ingress that is being replaced, and breaks off when it loses one during a response. Ray calls
`middlewares` in the proxy's process if the environment variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it.
"""

import json
import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import ApiError
from serving.headers import SECURITY_HEADERS, TRACE_CONTEXT, request_id_of

__all__ = ["CALLBACK", "TIMEOUT", "ProxyErrors", "middlewares"]

logger = logging.getLogger(__name__)

CALLBACK = "serving.proxy:middlewares"
TIMEOUT = "x-request-timeout-seconds"
"""Header that sets Serve's timeout for its request, in seconds."""
STEERING = frozenset(
    {
        TIMEOUT,
        "x-request-disconnect-disabled",
        "x-session-id",
        "serve-multiplexed-model-id",
    }
)
"""Headers of Serve with which a caller could set a timeout, and get a plain-text 408, keep a request running after it
has disconnected, or choose a replica. Serve fails at values of them, and of `TRACE_CONTEXT`, that are not UTF-8."""
MESSAGES = {
    408: "the request took longer than the service allows",
    500: "the process that handled this request has died; try again",
    503: "the service is starting, stopping or overloaded; try again in a moment",
}
PROBES = ("/health", "/ready")
"""Ends of the paths that are answered within `PROBE_SECONDS`, by Serve's own timeout: a request that is cancelled from
outside leaves a task behind, whose stack trace Serve prints."""
PROBE_SECONDS = 0.8
ROUTES = "/-/routes"
"""Serve's path that lists the applications that have been deployed."""


class ProxyErrors:
    """Gives every request an id, replaces the body of a plain-text error by OpenAI's, and ends a stream that breaks off
    with an error event. Everything else passes unchanged.

    A status 404 while nothing is deployed becomes 503, since clients try again after that one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope))
        scope["headers"] = [header for header in scope["headers"] if _passes(*header)]
        headers = MutableHeaders(scope=scope)
        headers["x-request-id"] = request_id  # Serve and the ingress keep an id that is there
        if probe := scope["path"].endswith(PROBES):
            headers[TIMEOUT] = str(PROBE_SECONDS)
        started = replaced = streaming = False

        async def send_error(status: int) -> None:
            headers = SECURITY_HEADERS | {"X-Request-ID": request_id}
            headers |= {"Retry-After": "2"} if status in (500, 503) else {}
            await _error(status, headers).response()(scope, receive, send)

        async def send_in_form(message: Message) -> None:
            nonlocal started, replaced, streaming
            if message["type"] == "http.response.start":
                started = True
                status = message["status"]
                headers = Headers(raw=message["headers"])
                kind = headers.get("content-type", "")
                streaming = kind.startswith("text/event-stream")
                replaced = status >= 400 and not kind.startswith("application/json")
                if replaced:
                    late = status == 408 and probe
                    await send_error(503 if late or (status == 404 and not await self._has_routes(scope)) else status)
            elif not message.get("more_body", False):
                streaming = False
            if not replaced:
                await send(message)

        try:
            await self.app(scope, receive, send_in_form)
        except Exception:
            if started and not streaming:
                raise  # the reader sees the response break off
            logger.exception("the proxy has failed")
        finally:
            if not started:  # also after a cancellation, or an end without a response, as when an ingress dies
                await send_error(500)
            elif streaming:
                event = f"event: error\ndata: {json.dumps(_error(500).body)}\n\n"
                await send({"type": "http.response.body", "body": event.encode()})

    async def _has_routes(self, scope: Scope) -> bool:
        """Whether any application has been deployed, by Serve's own list."""
        text = b""

        async def receive() -> Message:
            return {"type": "http.request"}

        async def collect(message: Message) -> None:
            nonlocal text
            text += message.get("body", b"")

        asked = {"method": "GET", "path": ROUTES, "raw_path": ROUTES.encode(), "query_string": b"", "headers": []}
        await self.app({**scope, **asked}, receive, collect)
        try:
            return bool(json.loads(text))
        except ValueError:  # a sentence, before the first list has arrived
            return False


def _error(status: int, headers: dict[str, str] | None = None) -> ApiError:
    return ApiError(status, MESSAGES.get(status, "the service cannot answer this request"), headers=headers)


def _passes(name: bytes, value: bytes) -> bool:
    """Whether a header is passed on: not those of Serve, whose names it takes with underscores for hyphens too."""
    plain = name.decode("latin-1").lower().replace("_", "-")
    return plain not in STEERING and (plain not in TRACE_CONTEXT or value.isascii())


def middlewares() -> list[Middleware]:
    """The middleware to install; Ray Serve calls this when the proxy starts."""
    return [Middleware(ProxyErrors)]
