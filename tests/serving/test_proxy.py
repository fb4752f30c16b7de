"""Errors of the proxy in front of the service."""

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import Receive, Scope, Send

from serving.headers import SECURITY_HEADERS
from serving.proxy import ProxyErrors

ROOT = Path(__file__).parents[2]
SERVES_ID = {"X-Request-ID": "serve-1"}


def ask(path: str) -> httpx.Response:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert b"x-request-timeout-seconds" not in dict(scope["headers"])
        MutableHeaders(scope=scope)["X-Request-ID"] = "serve-1"  # as Serve does, inside of this
        if path == "/broken":
            raise ConnectionError("the ingress is gone")
        if path == "/silent":
            return
        answers = {
            "/dead": PlainTextResponse("Internal Server Error", 500, SERVES_ID),
            "/slow": PlainTextResponse("timed out", 408, SERVES_ID),
            "/gone": PlainTextResponse("Request was cancelled.", 499, SERVES_ID),
            "/wrong": JSONResponse({"error": "as it is"}, 400),
            "/well": PlainTextResponse("metrics"),
        }
        await answers[path](scope, receive, send)

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app=ProxyErrors(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.get(path, headers={"X-Request-Timeout-Seconds": "1"})

    return asyncio.run(asked())


def test_plain_text_errors_get_openais_form() -> None:
    for path in ("/dead", "/broken", "/silent"):
        dead = ask(path)
        assert (dead.status_code, dead.headers["retry-after"]) == (500, "2")
        assert set(dead.json()["error"]) == {"message", "type", "param", "code"}
    slow = ask("/slow")
    assert (slow.status_code, slow.json()["error"]["code"]) == (408, "request_timeout")
    gone = ask("/gone")
    assert (gone.status_code, gone.json()["error"]["code"]) == (499, "error"), "a status that has no name"


def test_errors_keep_serves_id_and_have_the_headers_of_all_others() -> None:
    for path in ("/dead", "/broken", "/silent", "/slow"):
        headers = ask(path).headers
        assert headers["x-request-id"] == "serve-1", path
        assert {name: headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS


def test_everything_else_passes() -> None:
    assert ask("/wrong").json() == {"error": "as it is"}
    assert ask("/well").text == "metrics"


def test_the_proxy_s_process_stays_light() -> None:
    program = (
        "import serving.proxy, sys; print(*{'torch', 'PIL', 'fastapi', 'limits', 'prometheus_client'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not result.stdout.split()
