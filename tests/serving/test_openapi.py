"""The OpenAPI document is correct: requests that it allows get responses that it describes, and never status 500."""

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from dalle import DALLE
from serving.engine.async_engine import AsyncEngine
from serving.engine.local import LocalBackend
from serving.ingress.api import create_app
from serving.model_settings import ModelSettings
from serving.settings import load_settings

CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]
EVERYWHERE = {"405", "413", "431", "500"}


def file_of(mode: str, size: tuple[int, int], colour: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module", autouse=True)
def _pictures() -> None:
    """Generate pictures and masks for forms, most of which fit each other."""
    either, picture = file_of("RGBA", (16, 16), (0, 0, 0, 0)), file_of("RGB", (16, 16), "green")
    others = [file_of("RGBA", (16, 16), (0, 0, 0, 255)), file_of("L", (40, 20), 7), picture[:60], b"", b"x"]
    schemathesis.openapi.media_type("image/png", st.sampled_from([either] * 10 + [picture] * 2 + others))


@pytest.fixture(scope="module")
def app(model_folder: Path, clear_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    """A service of two models; the second one draws transparency."""
    chosen = tuple(ModelSettings(path=name, num_slots=4, threads=1) for name in ("lively", "clear"))
    models = (DALLE.load(model_folder), DALLE.load(clear_folder))
    engines = {one.path: AsyncEngine(model, one).start() for one, model in zip(chosen, models, strict=True)}
    folder = tmp_path_factory.mktemp("batches")
    settings = {"models": chosen, "limits": {"max_n": 2, "max_batches": 10_000}, "batches": folder}
    yield create_app(LocalBackend(engines), load_settings(settings))
    for engine in engines.values():
        engine.close()


@pytest.fixture
def bounded(app: FastAPI) -> Iterator[FastAPI]:
    """The service with limits of its model and settings in its document, so that many generated requests are drawn."""
    document = app.openapi()
    forms = [document["paths"][f"/v1/images/{path}"]["post"]["requestBody"] for path in ("edits", "variations")]
    schemas = [form["content"]["multipart/form-data"]["schema"] for form in forms]
    for schema in (document["components"]["schemas"]["GenerationRequest"], *schemas):
        for name, maximum in {"n": 3, "best_of": 6, "partial_images": 4, "keep_rows": 4, "deadline": 120}.items():
            field = schema["properties"].get(name, {})
            field.get("anyOf", [field])[0]["maximum"] = maximum
        schema["properties"]["model"] = {"enum": ["lively", "clear", "unknown"]}
        schema["properties"]["size"] = {"anyOf": [{"enum": ["16x16", "auto"]}, {"type": "string"}]}
    yield app
    app.openapi_schema = None


def test_no_request_ends_in_a_500(bounded: FastAPI) -> None:
    answers: Counter[tuple[str, int]] = Counter()
    for result in schemathesis.openapi.from_asgi("/openapi.json", bounded).get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]  # an invalid document raises here

        @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(case=operation.as_strategy())
        def ends_well(case: Any) -> None:
            response = case.call(timeout=30)
            answers[case.operation.label, response.status_code] += 1
            assert response.status_code < 500, response.text
            if response.status_code >= 400:
                assert set(response.json()) == {"error"}
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            if not response.headers["content-type"][0].startswith("text/event-stream"):
                case.validate_response(response, checks=CHECKS)

        ends_well()
    for path in ("generations", "edits", "variations"):
        assert min(answers[f"POST /v1/images/{path}", status] for status in (200, 400)) >= 12, answers
    assert answers["GET /v1/models", 200] and answers["GET /metrics", 200]
    assert answers["POST /v1/files", 200] and answers["GET /v1/batches", 200]


def test_every_operation_documents_exactly_its_errors(app: FastAPI) -> None:
    document = app.openapi()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert {*operation["responses"]} >= EVERYWHERE, path
            assert "422" not in operation["responses"], path
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_what_may_be_left_out_of_a_json_body_may_be_null(app: FastAPI) -> None:
    body = app.openapi()["components"]["schemas"]["GenerationRequest"]
    nullable = {name for name, field in body["properties"].items() if {"type": "null"} in field.get("anyOf", ())}
    assert nullable == {*body["properties"]} - {"prompt"}
    assert body["properties"]["n"]["default"] == 1 and body["properties"]["n"]["anyOf"][0]["minimum"] == 1


@pytest.mark.parametrize(
    ("path", "files", "required"),
    [("edits", {"image", "mask"}, {"image", "prompt"}), ("variations", {"image"}, {"image"})],
)
def test_a_form_documents_its_fields_and_files(app: FastAPI, path: str, files: set[str], required: set[str]) -> None:
    content = app.openapi()["paths"][f"/v1/images/{path}"]["post"]["requestBody"]["content"]["multipart/form-data"]
    schema = content["schema"]
    fields = schema["properties"]
    assert {name for name, field in fields.items() if field.get("format") == "binary"} == files
    assert {*schema["required"]} == required and schema["additionalProperties"] is False
    assert {"keep_rows", "seed", "size", "guidance_scale", "background"} <= {*fields}
    assert fields["background"]["enum"] == ["transparent", "opaque", "auto"]
    assert fields["keep_rows"]["type"] == "integer" and fields["keep_rows"]["description"]
