"""Whatever the OpenAPI document allows, and what it does not, never ends in a 500, and errors have OpenAI's form."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from dalle import DALLE
from serving.api import create_app
from serving.async_engine import AsyncEngine
from serving.backend import LocalBackend
from serving.settings import ModelSettings, load_settings

CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def app(model_folder: Path) -> Iterator[FastAPI]:
    chosen = ModelSettings(path="lively", num_slots=4, threads=1)
    engine = AsyncEngine(DALLE.load(model_folder), chosen).start()
    yield create_app(LocalBackend({"lively": engine}), load_settings({"models": (chosen,), "limits": {"max_n": 2}}))
    engine.close()


def test_no_request_ends_in_a_500(app: FastAPI) -> None:
    tried = set()
    for result in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]  # an invalid document raises here

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(case=operation.as_strategy())
        def ends_well(case: Any) -> None:
            response = case.call(timeout=30)
            assert response.status_code < 500, response.text
            if response.status_code >= 400:
                assert set(response.json()) == {"error"}
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            if not response.headers["content-type"][0].startswith("text/event-stream"):
                case.validate_response(response, checks=CHECKS)

        ends_well()
        tried.add(operation.label)
    assert {"POST /v1/images/generations", "POST /v1/images/edits", "GET /v1/models", "GET /metrics"} <= tried
