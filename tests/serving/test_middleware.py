"""Middleware: responses to unexpected exceptions, and requests by pages of other origins."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from dalle import DALLE
from serving.engine.local import LocalBackend
from serving.errors import ApiError, to_http
from serving.headers import SECURITY_HEADERS
from serving.ingress.api import create_app
from serving.jobs import Refused
from tests.support.service import GENERATIONS, PROMPT, error_of, post, service

ORIGIN = "https://paint.example"


async def fail(*arguments: Any) -> Any:
    raise ZeroDivisionError("a mistake of ours")


def test_a_failure_of_ours_has_an_id_all_headers_and_a_line_in_the_log(
    model: DALLE, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with service(model, cors_origins=(ORIGIN,)) as one:
        with monkeypatch.context() as broken:
            broken.setattr(LocalBackend, "models", fail)
            response = httpx.get(one.url + "/v1/models", headers={"X-Request-Id": "mine-1", "Origin": ORIGIN})
        assert response.status_code == 500 and error_of(response)["code"] == "internal_error"
        assert response.headers["x-request-id"] == "mine-1"
        assert {name: response.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
        assert response.headers["access-control-allow-origin"] == ORIGIN, "or a page could not read the error"
        (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
        assert "mine-1" in record.message and record.exc_info and record.exc_info[0] is ZeroDivisionError
        assert "ZeroDivisionError" not in response.text and "mistake" not in response.text
        assert 'path="/v1/models",status="500"' in httpx.get(one.url + "/metrics").text
        assert post(one, **PROMPT).status_code == 200


def test_a_page_of_an_origin_that_is_named_may_use_openais_client(model: DALLE) -> None:
    theirs = ("authorization", "content-type", "openai-organization", "idempotency-key")
    stainless = (f"x-stainless-{what}" for what in ("lang", "os", "arch", "runtime", "retry-count", "timeout"))
    headers = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": ",".join((*theirs, *stainless)),
    }
    with service(model, cors_origins=(ORIGIN,)) as one:
        preflight = httpx.options(one.url + GENERATIONS, headers=headers)
        assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == ORIGIN
        allowed = {name.strip().lower() for name in preflight.headers["access-control-allow-headers"].split(",")}
        assert allowed >= {*headers["Access-Control-Request-Headers"].split(",")}
        answer = httpx.post(one.url + GENERATIONS, json=PROMPT, headers={"Origin": ORIGIN}, timeout=30)
        exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
        assert exposed >= {"x-request-id", "x-job-id", "retry-after", "x-should-retry", "x-ratelimit-reset-requests"}
        stranger = httpx.options(one.url + GENERATIONS, headers=headers | {"Origin": "https://other.example"})
        assert stranger.status_code == 400 and "access-control-allow-origin" not in stranger.headers


@pytest.mark.parametrize("origins", [(ORIGIN,), ("*",)])
def test_a_named_origin_may_call_a_service_in_a_private_network(model: DALLE, origins: tuple[str, ...]) -> None:
    headers = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Private-Network": "true",
    }
    with service(model, cors_origins=origins) as one:
        preflight = httpx.options(one.url + GENERATIONS, headers=headers)
        named = origins == (ORIGIN,)
        assert preflight.status_code == (200 if named else 400)
        assert preflight.headers.get("access-control-allow-private-network") == ("true" if named else None)
        stranger = httpx.options(one.url + GENERATIONS, headers=headers | {"Origin": "https://other.example"})
        assert stranger.status_code == 400


def test_head_is_get_without_the_body(model: DALLE, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with service(model, store=tmp_path) as one, httpx.Client(base_url=one.url, timeout=30) as client:
        picture = post(one, **PROMPT, response_format="url").json()["data"][0]["url"]
        paths = ("/", "/favicon.ico", "/static/app.js", "/health", "/ready", "/metrics", "/openapi.json", "/v1/models")
        with caplog.at_level(logging.INFO, "serving.access"):
            for path in (*paths, "/v1/models/lively", picture):  # over one connection, which a body would break
                head, whole = client.head(path), client.get(path)
                assert head.status_code == whole.status_code == 200 and not head.content, path
                assert head.headers["content-type"] == whole.headers["content-type"]
                if path != "/metrics":
                    assert head.headers["content-length"] == whole.headers["content-length"] == str(len(whole.content))
        lines = [json.loads(record.message) for record in caplog.records if record.name == "serving.access"]
        assert sorted(line["method"] for line in lines) == ["GET"] * 10 + ["HEAD"] * 10
        assert 'path="/v1/models/{model}",status="200"' in client.get("/metrics").text
        assert client.head("/v1/models/nobody").status_code == 404
        assert client.head(GENERATIONS).status_code == 405
        assert client.delete("/v1/models").headers["allow"] == "GET, HEAD"
        assert client.get(GENERATIONS).headers["allow"] == "POST"
    assert "head" not in create_app(LocalBackend({}), one.settings).openapi()["paths"]["/health"]


@pytest.mark.parametrize("given", [b"\xff\xfe", "hé".encode(), b"a b", b"x" * 129, b"", b"mine-1"])
def test_the_id_of_a_request_is_the_same_everywhere(
    model: DALLE, given: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LocalBackend, "models", fail)
    with service(model) as one, caplog.at_level(logging.INFO, "serving.access"):
        response = httpx.get(one.url + "/v1/models", headers=[(b"X-Request-Id", given), (b"X-Session-Id", b"\xff")])
    assert response.status_code == 500
    told = response.headers["x-request-id"]
    assert told == "mine-1" if given == b"mine-1" else re.fullmatch("req_[0-9a-f]{32}", told)
    (line,) = (json.loads(record.message) for record in caplog.records if record.name == "serving.access")
    (failure,) = (record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
    assert line["id"] == told and told in failure


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (1.0, "1"), (1.4, "2"), (6.01, "7")])
def test_retry_after_is_rounded_up_to_whole_seconds(seconds: float, header: str) -> None:
    error = to_http(Refused(status=429, code="queue_full", message="full", retry_after=seconds))
    assert error.response().headers["retry-after"] == header


def test_a_status_without_a_name_is_an_error_too() -> None:
    assert ApiError(499, "gone").body["error"]["code"] == "error"
    assert ApiError(408, "late").body["error"]["code"] == "request_timeout"
