"""Middleware: responses to unexpected exceptions, and requests by pages of other origins."""

import logging
from typing import Any

import httpx
import pytest

from dalle import DALLE
from serving.engine.local import LocalBackend
from serving.errors import ApiError, to_http
from serving.headers import SECURITY_HEADERS
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


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (1.0, "1"), (1.4, "2"), (6.01, "7")])
def test_retry_after_is_rounded_up_to_whole_seconds(seconds: float, header: str) -> None:
    error = to_http(Refused(status=429, code="queue_full", message="full", retry_after=seconds))
    assert error.response().headers["retry-after"] == header


def test_a_status_without_a_name_is_an_error_too() -> None:
    assert ApiError(499, "gone").body["error"]["code"] == "error"
    assert ApiError(408, "late").body["error"]["code"] == "request_timeout"
