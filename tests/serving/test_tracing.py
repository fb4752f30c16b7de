"""Spans of requests, over a real engine and the SDK's exporter in memory: their parents, attributes and errors; and
the receiver, from the setting and from OpenTelemetry's own variables."""

import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from dalle import DALLE
from dalle.errors import ConfigError
from serving import attributes as names
from serving.preflight import check_settings
from serving.settings import load_settings
from serving.tracing import Tracing, receiver_of
from tests.support.service import GENERATIONS, PROMPT, Service, error_of, events_of, post, service

ROOT = Path(__file__).parents[2]
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PHASES = ["wait", "prefill", "steps", "decode", "encode"]
VARIABLES = [
    *("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"),
    *("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


class Spans:
    """The spans that have ended."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(provider)

    def of(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name.split()[0] == name]

    def one(self, name: str) -> ReadableSpan:
        """The span whose name begins with this word, as soon as there is one."""
        self.wait_for(lambda: self.of(name))
        (found,) = self.of(name)
        return found

    def wait_for(self, condition: Callable[[], object]) -> None:
        until = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < until, [span.name for span in self.exporter.get_finished_spans()]
            time.sleep(0.01)


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def quick(model: DALLE, spans: Spans, tmp_path: Path) -> Iterator[Service]:
    with service(model, tracing=spans.tracing, requests=tmp_path / "requests") as one:
        yield one


@pytest.fixture
def slow(model: DALLE, spans: Spans, tmp_path: Path) -> Iterator[Service]:
    """A service that takes more than a second for a picture."""
    with service(model, slow=0.08, tracing=spans.tracing, requests=tmp_path / "requests") as one:
        yield one


def is_below(span: ReadableSpan, parent: ReadableSpan) -> bool:
    return span.parent is not None and parent.context is not None and span.parent.span_id == parent.context.span_id


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def error_type(span: ReadableSpan) -> object:
    """Kind of the error of a span that has failed; None of one that has not."""
    assert (span.status.status_code is StatusCode.ERROR) == (names.ERROR_TYPE in attributes_of(span))
    return attributes_of(span).get(names.ERROR_TYPE)


def test_a_request_is_one_trace_from_the_caller_to_the_file(
    quick: Service, spans: Spans, model: DALLE, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "serving.access"):
        body = PROMPT | {"n": 2, "seed": 7, "top_k": 5, "model": "lively"}
        headers = {"traceparent": CALLER, "tracestate": "vendor=1", "X-Request-Id": "mine"}
        answer = httpx.post(quick.url + GENERATIONS, json=body, headers=headers, timeout=30).json()
        request = spans.one("POST")
    job, draw = spans.one("generate_content"), spans.one("draw")
    assert (request.name, request.kind) == (f"POST {GENERATIONS}", SpanKind.SERVER)
    assert request.parent is not None and f"{request.parent.span_id:016x}" == CALLER.split("-")[2]
    assert (job.name, job.kind) == ("generate_content lively", SpanKind.CLIENT) and is_below(job, request)
    assert (draw.name, draw.kind) == ("draw lively", SpanKind.SERVER) and is_below(draw, job)
    found = spans.exporter.get_finished_spans()
    assert {f"{span.context.trace_id:032x}" for span in found} == {CALLER.split("-")[1]}
    assert {span.context.trace_state.get("vendor") for span in found} == {"1"}
    for index in (0, 1):
        phases = [span for span in found if attributes_of(span).get(names.PICTURE) == index]
        assert [span.name for span in sorted(phases, key=lambda span: span.start_time or 0)] == PHASES
        assert all(is_below(span, draw) for span in phases)
        assert all((span.start_time or 0) <= (span.end_time or 0) for span in phases)
        (steps,) = (span for span in phases if span.name == "steps")
        assert attributes_of(steps)[names.CODES] == model.num_codes
    assert not any(error_type(span) for span in found)
    assert attributes_of(request).items() >= {
        ("http.request.method", "POST"),
        ("http.route", GENERATIONS),
        ("http.response.status_code", 200),
        ("url.path", GENERATIONS),
        ("url.scheme", "http"),
        (names.REQUEST_ID, "mine"),
    }
    told = attributes_of(job)
    assert told.pop(names.FINISH_REASONS) == ("stop", "stop")
    assert told.pop(names.ESTIMATE) > 0
    assert told == {
        names.OPERATION: "generate_content",
        names.PROVIDER: "dalle-serve",
        names.OUTPUT_TYPE: "image",
        names.REQUEST_MODEL: "lively",
        names.MODEL: "lively",
        names.NUM_PICTURES: 2,
        names.SEED: 7,
        names.STREAM: False,
        names.TOP_K: 5,
        names.JOB_ID: answer["id"],
        names.POSITION: 0,
        names.FINGERPRINT: answer["system_fingerprint"],
        names.INPUT_TOKENS: answer["usage"]["input_tokens"],
        names.OUTPUT_TOKENS: answer["usage"]["output_tokens"],
    }
    (line,) = (json.loads(record.message) for record in caplog.records if record.name == "serving.access")
    assert line["trace_id"] == CALLER.split("-")[1]
    assert not any("panda" in str(attributes_of(span)) for span in found), "prompts are not sent"


def test_a_stream_has_spans_of_its_previews_and_ends_with_its_body(quick: Service, spans: Spans) -> None:
    events = events_of(post(quick, **PROMPT, stream=True, partial_images=2).text)
    numbers = [data.get("partial_image_index") for _, data in events]
    assert numbers[0] == 0 and numbers[-1] is None
    request = spans.one("POST")
    assert error_type(request) is None
    for name in ("decode", "encode"):
        assert [attributes_of(span).get(names.PREVIEW) for span in spans.of(name)] == numbers
    assert (request.end_time or 0) >= max(span.end_time or 0 for span in spans.of("encode"))


def test_a_check_of_a_picture_has_a_span(model: DALLE, spans: Spans) -> None:
    safety = {"picture_hook": "tests.support.hooks:blocks_every_picture"}
    with service(model, tracing=spans.tracing, safety=safety) as one:
        assert error_of(post(one, prompt="a fish"))["code"] == "moderation_blocked"
        assert error_type(spans.one("check")) == error_type(spans.one("draw")) == "moderation_blocked"
        assert not spans.of("encode")


def test_a_trace_that_the_caller_does_not_sample_is_not_sent(quick: Service, spans: Spans) -> None:
    httpx.post(quick.url + GENERATIONS, json=PROMPT, headers={"traceparent": CALLER[:-2] + "00"}, timeout=30)
    assert post(quick, **PROMPT).status_code == 200
    spans.one("POST")


@pytest.mark.parametrize("value", ["", "00-0-0-00", "\xff", "0" * 500])
def test_a_header_that_is_no_trace_context_begins_a_trace(quick: Service, spans: Spans, value: str) -> None:
    headers = [(b"traceparent", value.encode("latin-1"))]
    assert httpx.get(quick.url + "/v1/models", headers=headers).status_code == 200
    assert spans.one("GET").parent is None


def test_probes_have_no_spans(quick: Service, spans: Spans) -> None:
    for path in ("/health", "/ready", "/metrics", "/v1/models"):
        httpx.get(quick.url + path)
    assert attributes_of(spans.one("GET"))["http.route"] == "/v1/models"


def test_a_callers_mistake_is_no_failure_of_the_service(quick: Service, spans: Spans) -> None:
    assert post(quick, **PROMPT, n=11).status_code == 400
    request = spans.one("POST")
    assert error_type(request) is None and attributes_of(request)["http.response.status_code"] == 400
    assert not spans.of("generate_content")


def test_a_refused_job_says_why(slow: Service, spans: Spans) -> None:
    with httpx.stream("POST", slow.url + GENERATIONS, json=PROMPT | {"n": 6, "stream": True}, timeout=30):
        assert error_of(post(slow, **PROMPT, n=6))["code"] == "queue_full"
        request = spans.one("POST")
        assert error_type(request) is None and attributes_of(request)["http.response.status_code"] == 429
        assert {error_type(spans.one(name)) for name in ("generate_content", "draw")} == {"queue_full"}


def test_a_client_that_leaves_ends_all_spans(model: DALLE, spans: Spans, tmp_path: Path) -> None:
    with (
        service(model, slow=0.3, tracing=spans.tracing, requests=tmp_path / "requests") as slow,
        httpx.stream("POST", slow.url + GENERATIONS, json=PROMPT | {"n": 6, "stream": True}, timeout=30) as answer,
    ):
        assert answer.status_code == 200
        spans.wait_for(lambda: len(spans.of("prefill")) == 2)
        answer.close()
        spans.wait_for(lambda: len(spans.of("steps")) == 2 and len(spans.of("wait")) == 6)
        for name in ("POST", "generate_content", "draw"):
            assert error_type(spans.one(name)) == "ConnectionError", name
    assert {error_type(span) for span in spans.of("steps")} == {"request_cancelled"}
    assert [error_type(span) for span in spans.of("wait")] == [None] * 2 + ["request_cancelled"] * 4


def test_a_client_that_leaves_before_its_answer_ends_all_spans(slow: Service, spans: Spans) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(slow.url + GENERATIONS, json=PROMPT, timeout=0.5)
    for name in ("POST", "generate_content", "draw"):
        assert error_type(spans.one(name)) == "ConnectionError", name


def test_an_asynchronous_request_is_drawn_in_its_trace(slow: Service, spans: Spans) -> None:
    headers = {"Prefer": "respond-async", "traceparent": CALLER}
    answer = httpx.post(slow.url + GENERATIONS, json=PROMPT, headers=headers, timeout=30)
    request = spans.one("POST")
    assert attributes_of(request)["http.response.status_code"] == 202 and error_type(request) is None
    assert not spans.of("generate_content"), "it goes on after its response"
    job = spans.one("generate_content")
    assert is_below(job, request) and is_below(spans.one("draw"), job) and error_type(job) is None
    assert attributes_of(job)[names.JOB_ID] == answer.json()["id"]
    second = httpx.post(slow.url + GENERATIONS, json=PROMPT, headers=headers, timeout=30).json()["id"]
    httpx.delete(f"{slow.url}/v1/requests/{second}")
    spans.wait_for(lambda: len(spans.of("draw")) == len(spans.of("generate_content")) == 2)
    assert {error_type(spans.of(name)[1]) for name in ("draw", "generate_content")} == {"request_cancelled"}


def test_a_picture_that_gives_its_slots_up_waits_again(model: DALLE, spans: Spans, tmp_path: Path) -> None:
    line = {"custom_id": "a", "method": "POST", "url": GENERATIONS, "body": PROMPT | {"n": 2}}
    with service(model, slow=0.08, tracing=spans.tracing, store=tmp_path) as slow:
        form: dict[str, Any] = {"files": {"file": json.dumps(line)}, "data": {"purpose": "batch"}}
        file = httpx.post(f"{slow.url}/v1/files", **form).json()["id"]
        asked = {"input_file_id": file, "endpoint": GENERATIONS, "completion_window": "24h"}
        batch = httpx.post(f"{slow.url}/v1/batches", json=asked).json()["id"]
        spans.wait_for(lambda: len(spans.of("prefill")) == 2)
        assert post(slow, **PROMPT).status_code == 200
        spans.wait_for(lambda: httpx.get(f"{slow.url}/v1/batches/{batch}").json()["status"] == "completed")
    (failed,) = (span for span in spans.of("steps") if error_type(span))
    index = attributes_of(failed)[names.PICTURE]
    phases = [
        span
        for span in spans.exporter.get_finished_spans()
        if (span.context.trace_id, attributes_of(span).get(names.PICTURE)) == (failed.context.trace_id, index)
    ]
    phases.sort(key=lambda span: span.start_time or 0)
    assert [span.name for span in phases] == PHASES[:3] + PHASES
    for before, after in pairwise(phases):
        assert (before.end_time or 0) <= (after.start_time or 0), (before.name, after.name)


def test_an_engine_that_fails_fails_the_trace(quick: Service, spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(quick.engine.thread.engine, "step", broken)
    assert post(quick, **PROMPT).status_code == 500
    assert error_type(spans.one("POST")) == "500"
    assert {error_type(spans.one(name)) for name in ("generate_content", "draw")} == {"engine_failed"}


class Broken(SpanExporter):
    """An exporter that always fails."""

    def export(self, spans: Any) -> SpanExportResult:
        raise OSError("no route to host")


def test_requests_do_not_notice_a_receiver_that_fails(model: DALLE, tmp_path: Path) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Broken()))
    away = Tracing.to("http://127.0.0.1:9/v1/traces")
    assert away is not None
    for tracing in (Tracing(provider), away):
        with service(model, tracing=tracing, requests=tmp_path / "requests") as one:
            assert post(one, **PROMPT).status_code == 200
        start = time.monotonic()
        tracing.close()
        assert time.monotonic() - start < 10


def test_without_a_receiver_opentelemetrys_sdk_is_not_imported() -> None:
    program = "import serving.ingress.api, serving.engine.async_engine, sys; print('opentelemetry.sdk' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert Tracing.to(receiver_of(None)) is None


@pytest.mark.parametrize(
    ("traces", "environment", "url"),
    [
        (None, {}, None),
        ("http://127.0.0.1:4318", {}, "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/", {}, "http://127.0.0.1:4318/v1/traces"),
        ("https://example.org/otlp/v1/traces", {}, "https://example.org/otlp/v1/traces"),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "http://collector:4318/v1/traces"),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector/otlp/"}, "http://collector/otlp/v1/traces"),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:1/spans"}, "http://collector:1/spans"),
        ("http://mine:1", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://other:2"}, "http://mine:1/v1/traces"),
        ("http://mine:1", {"OTEL_SDK_DISABLED": "true"}, None),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://other:2", "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_the_receiver_is_that_of_the_setting_or_of_the_environment(
    traces: str | None, environment: dict[str, str], url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert receiver_of(traces) == url


@pytest.mark.parametrize(
    "traces", ["localhost:4318", "grpc://localhost:4317", "http://", "http://a:0", "http://a:port"]
)
def test_a_receiver_that_is_no_url_is_refused(traces: str) -> None:
    with pytest.raises(ConfigError, match=f"traces is '{traces}'; it must be the URL of an OTLP/HTTP receiver"):
        check_settings(load_settings({"traces": traces}))


def test_traces_without_the_extra_are_refused_at_the_start() -> None:
    program = (
        "import sys\nsys.modules['opentelemetry.exporter'] = None\n"
        "sys.argv = ['serving', '--traces', 'http://127.0.0.1:4318']\nfrom serving.__main__ import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: traces are to be sent to http://127.0.0.1:4318/v1/traces, and .*otel.*\n", done.stderr)


def test_the_page_has_every_name() -> None:
    page = (ROOT / "docs" / "tracing.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([\w.]+)`", page, re.M)
    ours = {getattr(names, name) for name in names.__all__}
    assert len(listed) == len(set(listed)) and ours <= set(listed)
    assert all(name.startswith(("http.", "url.", "server.", "network.")) for name in {*listed} - ours)
