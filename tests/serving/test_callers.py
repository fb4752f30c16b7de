"""Callers: API keys, rates, concurrent requests, and requests of others."""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from dalle import DALLE
from serving.engine.local import LocalBackend
from serving.ingress.api import create_app
from tests.support.service import GENERATIONS, PROMPT, Service, error_of, running, service

ALICE, BOB = ({"Authorization": f"Bearer {letter * 20}"} for letter in "ab")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# callers\nalice {'a' * 20}\nbob {'b' * 20}\n")
    return path


def test_keys_rates_and_limits_at_once(model: DALLE, keys: Path) -> None:
    limits = {"rate": "3/minute", "concurrency": 1, "max_n": 2}
    with service(model, keys_file=keys, limits=limits, slow=0.03) as one:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "aaaaaaaaaaaaaaaaaaaa"}):
            response = httpx.post(one.url + GENERATIONS, json=PROMPT, headers=header)
            assert response.status_code == 401 and error_of(response)["code"] == "invalid_api_key"
        assert httpx.get(one.url + "/v1/models").status_code == 401
        assert httpx.get(one.url + "/health").status_code == 200, "a probe has no key"
        answers: list[httpx.Response] = []

        def draw() -> None:
            answers.append(httpx.post(one.url + GENERATIONS, json=PROMPT, headers=ALICE, timeout=30))

        threads = [threading.Thread(target=draw) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answer.status_code for answer in answers) == [200, 429]
        draw()
        assert answers[-1].status_code == 200
        assert answers[-1].headers["x-ratelimit-remaining-requests"] == "0"
        draw()
        assert error_of(answers[-1])["code"] == "rate_limit_exceeded"
        assert int(answers[-1].headers["retry-after"]) <= 60
        bob = httpx.post(one.url + GENERATIONS, json=PROMPT, headers=BOB, timeout=30)
        assert bob.status_code == 200, "limits are each caller's own"


@pytest.mark.parametrize("prefix", ["", "/dalle"])
def test_everything_but_what_is_open_needs_a_key_wherever_it_is_mounted(model: DALLE, keys: Path, prefix: str) -> None:
    guarded = [
        ("GET", "/v1/models"),
        ("DELETE", "/v1/requests/job_x"),
        ("POST", GENERATIONS),
        ("GET", "/v1"),
        ("GET", "/v2/models"),
        ("GET", "/static"),
        ("GET", "/healthy"),
    ]
    with service(model, keys_file=keys) as one:
        app = create_app(LocalBackend({"lively": one.engine}), one.settings)

        async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "root_path": prefix}, receive, send)

        with running(mounted) as url, httpx.Client(base_url=url + prefix, timeout=30) as client:
            for method, path in guarded:
                response = client.request(method, path, json=PROMPT if method == "POST" else None)
                assert response.status_code == 401 and error_of(response)["code"] == "invalid_api_key", path
            for path in ("/", "/health", "/ready", "/metrics", "/openapi.json", "/favicon.ico", "/static/app.js"):
                assert client.get(path).status_code == 200, path
            assert client.get("/files/nothing.png").status_code == 404
            client.headers.update(ALICE)
            assert client.get("/v1/models").status_code == 200
            drawn = client.post(GENERATIONS, json=PROMPT)
            assert drawn.status_code == 200 and len(drawn.json()["data"]) == 1
            upload = client.post("/v1/images/variations", files={"image": b"x" * 100_000})
            assert error_of(upload)["code"] == "invalid_image", "an upload may be larger than other bodies"


@contextlib.contextmanager
def upload_that_does_not_come(one: Service, path: str) -> Iterator[socket.socket]:
    """A connection with a request's headers, whose body is announced and never sent."""
    address = urlsplit(one.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        kind = "Content-Type: multipart/form-data; boundary=x"
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\n{kind}\r\nContent-Length: 1000\r\n\r\n".encode())
        yield connection


def test_requests_at_once_are_counted_before_their_bodies_are_read(
    model: DALLE, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serving.access")
    with service(model, limits={"concurrency": 1}) as one:

        def status() -> int:
            return httpx.post(one.url + GENERATIONS, json=PROMPT, timeout=30).status_code

        def comes_to(expected: int) -> bool:
            until = time.monotonic() + 10
            while (found := status()) != expected and time.monotonic() < until:
                time.sleep(0.02)
            return found == expected

        with upload_that_does_not_come(one, "/v1/images/edits"):
            assert comes_to(429)
        assert comes_to(200), "a connection that is gone counts no more"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR], "and is no failure of ours"
    lines = [json.loads(record.message) for record in caplog.records if record.name == "serving.access"]
    assert [line["status"] for line in lines if line["path"] == "/v1/images/edits"] == [499]


def test_a_request_is_cancelled_by_its_own_caller_alone(model: DALLE, keys: Path) -> None:
    with service(model, keys_file=keys, slow=0.05) as one:
        body = PROMPT | {"stream": True, "user": "somebody"}
        with httpx.stream("POST", one.url + GENERATIONS, json=body, headers=ALICE, timeout=30) as response:
            job = f"{one.url}/v1/requests/{response.headers['x-job-id']}"
            by_bob, of_nobody = (httpx.delete(url, headers=BOB) for url in (job, f"{one.url}/v1/requests/job_x"))
            assert (by_bob.status_code, of_nobody.status_code) == (404, 404)
            assert httpx.delete(job, headers=ALICE).json()["cancelled"] is True
            assert "request_cancelled" in response.read().decode()


def test_without_keys_an_address_cancels_whatever_users_it_named(model: DALLE) -> None:
    with service(model, slow=0.05) as one:
        body = PROMPT | {"stream": True, "user": "somebody"}
        with httpx.stream("POST", one.url + GENERATIONS, json=body, timeout=30) as response:
            answer = httpx.delete(f"{one.url}/v1/requests/{response.headers['x-job-id']}")
            assert answer.json()["cancelled"] is True
            assert "request_cancelled" in response.read().decode()


def test_a_body_that_does_not_come_is_not_waited_for(model: DALLE) -> None:
    with service(model, limits={"deadline": 0.3}) as one:
        for path in (GENERATIONS, "/v1/images/edits"):
            with upload_that_does_not_come(one, path) as connection:
                connection.settimeout(10)
                answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 408 ") and b"has not arrived within 0.3 s" in answer, path
