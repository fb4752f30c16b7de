"""Errors of the proxy in front of the service."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serving.headers import SECURITY_HEADERS
from serving.proxy import TIMEOUT, ProxyErrors

ROOT = Path(__file__).parents[2]
STEERING = ("X-Request-Timeout-Seconds", "X-Session-Id", "x_session_id", "serve_multiplexed_model_id", "traceparent")


NO_ROUTE = PlainTextResponse("Path '/gone' not found. Ping http://.../-/routes for available routes.", 404)
DEPLOYED = JSONResponse({"/dalle": "dalle"})


async def breaks_off() -> AsyncIterator[bytes]:
    yield b"event: one\ndata: {}\n\n"
    raise ConnectionError("the ingress is gone")


def ask(path: str, request_id: bytes = b"mine-1", routes: Response = DEPLOYED) -> httpx.Response:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/-/routes":
            await routes(scope, receive, send)
            return
        headers = {name: value.decode() for name, value in scope["headers"]}  # as Serve reads them
        own = {TIMEOUT.encode()} if path.endswith("/ready") else set()
        assert {name.lower().encode() for name in STEERING} & headers.keys() == own
        serves_id = {"X-Request-ID": headers[b"x-request-id"]}
        if path == "/broken":
            raise ConnectionError("the ingress is gone")
        if path == "/silent":
            return
        if path.endswith("/ready"):  # as Serve does when nobody is there
            await asyncio.sleep(float(headers[TIMEOUT.encode()]))
            await PlainTextResponse("timed out", 408, serves_id)(scope, receive, send)
            return
        answers = {
            "/no-route": NO_ROUTE,
            "/stream": StreamingResponse(breaks_off(), media_type="text/event-stream"),
            "/body": StreamingResponse(breaks_off(), media_type="application/json"),
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


@pytest.mark.parametrize("routes", [JSONResponse({}), PlainTextResponse("Route table is not populated yet.", 503)])
def test_nothing_deployed_is_503_at_which_clients_try_again(routes: Response) -> None:
    starting = ask("/no-route", routes=routes)
    assert (starting.status_code, starting.headers["retry-after"]) == (503, "2")
    assert starting.json()["error"]["code"] == "service_unavailable"
    assert ask("/no-route", routes=DEPLOYED).status_code == 404


@pytest.mark.parametrize("path", ["/ready", "/prefix/ready"])
def test_a_probe_is_answered_within_a_second_when_nobody_is_there(path: str) -> None:
    start = time.monotonic()
    answer = ask(path)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert time.monotonic() - start < 1.0


def test_a_stream_that_breaks_off_ends_with_an_error_event() -> None:
    one, error = ask("/stream").text.split("\n\n", 1)
    assert one == "event: one\ndata: {}"
    kind, _, data = error.partition("\n")
    assert kind == "event: error"
    assert set(json.loads(data.removeprefix("data: "))["error"]) == {"message", "type", "param", "code"}
    with pytest.raises(ConnectionError):  # another body cannot say so
        ask("/body")


def test_everything_else_passes() -> None:
    assert ask("/wrong").json() == {"error": "as it is"}
    assert ask("/well").text == "metrics"


def test_the_proxy_s_process_stays_light() -> None:
    program = (
        "import serving.proxy, sys; print(*{'torch', 'PIL', 'fastapi', 'limits', 'prometheus_client'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not result.stdout.split()
