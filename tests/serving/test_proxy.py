"""Errors of the proxy in front of the service."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import Receive, Scope, Send

from serving.headers import SECURITY_HEADERS
from serving.proxy import ProxyErrors

ROOT = Path(__file__).parents[2]
STEERING = ("X-Request-Timeout-Seconds", "X-Session-Id", "x_session_id", "serve_multiplexed_model_id", "traceparent")


def ask(path: str, request_id: bytes = b"mine-1") -> httpx.Response:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name: value.decode() for name, value in scope["headers"]}  # as Serve reads them
        assert not {name.lower().encode() for name in STEERING} & headers.keys()
        serves_id = {"X-Request-ID": headers[b"x-request-id"]}
        if path == "/broken":
            raise ConnectionError("the ingress is gone")
        if path == "/silent":
            return
        answers = {
            "/dead": PlainTextResponse("Internal Server Error", 500, serves_id),
            "/slow": PlainTextResponse("timed out", 408, serves_id),
            "/gone": PlainTextResponse("Request was cancelled.", 499, serves_id),
            "/wrong": JSONResponse({"error": "as it is"}, 400),
            "/well": PlainTextResponse("metrics"),
        }
        await answers[path](scope, receive, send)

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app=ProxyErrors(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            sent = [("X-Request-Id", request_id), *((name, b"\xff") for name in STEERING)]
            return await client.get(path, headers=[(name.encode(), value) for name, value in sent])

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


@pytest.mark.parametrize("request_id", [b"mine-1", b"\xff", b"a b", b""])
def test_errors_have_an_id_of_the_right_form_and_the_headers_of_all_others(request_id: bytes) -> None:
    for path in ("/dead", "/broken", "/silent", "/slow"):
        headers = ask(path, request_id).headers
        told = headers["x-request-id"]
        assert told == "mine-1" if request_id == b"mine-1" else re.fullmatch("req_[0-9a-f]{32}", told), path
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
