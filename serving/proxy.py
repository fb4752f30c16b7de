"""Middleware for Ray Serve's proxy: its own errors get OpenAI's body, and its control headers are removed.

The proxy answers in plain text when no ingress is available, and fails when it loses one during a response. Ray calls
`middlewares` in the proxy's process if the environment variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it.
"""

import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import ApiError
from serving.headers import SECURITY_HEADERS, request_id_of

__all__ = ["CALLBACK", "ProxyErrors", "middlewares"]

logger = logging.getLogger(__name__)

CALLBACK = "serving.proxy:middlewares"
STEERING = frozenset(
    {
        "x-request-timeout-seconds",
        "x-request-disconnect-disabled",
        "x-session-id",
        "serve-multiplexed-model-id",
        "traceparent",
        "tracestate",
    }
)
"""Headers of Serve with which a caller could set a timeout, and get a plain-text 408, keep a request running after it
has disconnected, or choose a replica. Serve fails at values of them that are not UTF-8."""
MESSAGES = {
    408: "the request took longer than the service allows",
    500: "the process that handled this request has died; try again",
    503: "the service is starting or overloaded; try again in a moment",
}


class ProxyErrors:
    """Gives every request an id, and replaces the body of a plain-text error by OpenAI's; everything else passes
    unchanged."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope))
        scope["headers"] = [header for header in scope["headers"] if _plain(header[0]) not in STEERING]
        MutableHeaders(scope=scope)["x-request-id"] = request_id  # Serve and the ingress keep an id that is there
        started = replaced = False

        async def send_error(status: int) -> None:
            headers = SECURITY_HEADERS | {"X-Request-ID": request_id}
            headers |= {"Retry-After": "2"} if status in (500, 503) else {}
            error = ApiError(status, MESSAGES.get(status, "the service cannot answer this request"), headers=headers)
            await error.response()(scope, receive, send)

        async def send_in_form(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started = True
                status = message["status"]
                headers = Headers(raw=message["headers"])
                replaced = status >= 400 and not headers.get("content-type", "").startswith("application/json")
                if replaced:
                    await send_error(status)
            if not replaced:
                await send(message)

        try:
            await self.app(scope, receive, send_in_form)
        except Exception:
            if started:
                raise  # the reader of the stream sees it break off
            logger.exception("the proxy has failed")
        finally:
            if not started:  # also after a cancellation, or an end without a response, as when an ingress dies
                await send_error(500)


def _plain(name: bytes) -> str:
    """A header's name with hyphens for the underscores that Serve takes too."""
    return name.decode("latin-1").lower().replace("_", "-")


def middlewares() -> list[Middleware]:
    """The middleware to install; Ray Serve calls this when the proxy starts."""
    return [Middleware(ProxyErrors)]
