"""What Serve's proxy is taught: its own errors have OpenAI's body too, and callers cannot steer it by headers.

The proxy answers in plain text when it has no ingress to ask, and fails when it loses one in the middle. Ray calls
`middlewares` in the proxy's process if the environment variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it.
"""

import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import ApiError
from serving.headers import SECURITY_HEADERS

__all__ = ["CALLBACK", "ProxyErrors", "middlewares"]

logger = logging.getLogger(__name__)

CALLBACK = "serving.proxy:middlewares"
STEERING = ("x-request-timeout-seconds", "x-request-disconnect-disabled")
"""Headers by which a caller could shorten a request to a plain-text 408, or outlive its own connection."""
MESSAGES = {
    408: "the request took longer than the service allows",
    500: "the part of the service that had this request has died; send it again",
    503: "the service is not there yet, or is overloaded; try again in a moment",
}


class ProxyErrors:
    """Turns a plain-text error into OpenAI's body; everything else passes as it is."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        for name in STEERING:
            del MutableHeaders(scope=scope)[name]
        started = replaced = False

        async def send_error(status: int, request_id: str | None) -> None:
            headers = SECURITY_HEADERS | ({"Retry-After": "2"} if status in (500, 503) else {})
            if request_id is not None:
                headers["X-Request-ID"] = request_id
            error = ApiError(status, MESSAGES.get(status, "the service cannot answer this"), headers=headers)
            await error.response()(scope, receive, send)

        async def send_in_form(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started = True
                status = message["status"]
                headers = Headers(raw=message["headers"])
                replaced = status >= 400 and not headers.get("content-type", "").startswith("application/json")
                if replaced:
                    await send_error(status, headers.get("x-request-id"))
            if not replaced:
                await send(message)

        try:
            await self.app(scope, receive, send_in_form)
        except Exception:
            if started:
                raise  # whoever reads the stream sees it break off
            logger.exception("the proxy has failed")
        finally:
            if not started:  # also when it was cancelled, or has ended without a word: it does when an ingress dies
                # Serve gives a request its id by a header, if it has none
                await send_error(500, Headers(scope=scope).get("x-request-id"))


def middlewares() -> list[Middleware]:
    """For Ray Serve, which calls this where the proxy starts."""
    return [Middleware(ProxyErrors)]
