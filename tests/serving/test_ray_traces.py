"""Traces of a service on a real Ray: one for a request, across its processes, at a receiver of OTLP over HTTP."""

import http.server
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from serving import attributes as names
from tests.support.served import Served, serving
from tests.support.service import GENERATIONS, PROMPT

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, CALLERS_SPAN = CALLER.split("-")[1:3]


class Receiver:
    """A receiver of OTLP over HTTP: the spans that it has got, each with the attributes of its process."""

    def __init__(self) -> None:
        self.spans: list[tuple[Span, dict[str, str]]] = []
        self.paths: set[str] = set()
        self.status = 200
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.paths.add(self.path)
                if receiver.status == 200:
                    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                        told = {one.key: one.value.string_value for one in resource.resource.attributes}
                        for scope in resource.scope_spans:
                            receiver.spans.extend((span, told) for span in scope.spans)
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *values: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of_trace(self, trace: str, num: int) -> list[tuple[Span, dict[str, str]]]:
        """The spans of a trace, as soon as there are so many."""
        until = time.monotonic() + 60
        while len(found := [entry for entry in list(self.spans) if entry[0].trace_id.hex() == trace]) < num:
            assert time.monotonic() < until, [span.name for span, _ in self.spans]
            time.sleep(0.1)
        return found


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    yield one
    one.server.shutdown()
    one.server.server_close()


@pytest.fixture(scope="module")
def served(receiver: Receiver) -> Iterator[Served]:
    models = '[{"path": "emoji", "step": "eager"}]'
    standard = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    with serving("--models", models, **standard, OTEL_SERVICE_NAME="pictures") as one:
        yield one


def test_a_request_is_one_trace_across_processes(served: Served, receiver: Receiver) -> None:
    headers = {"traceparent": CALLER, "X-Request-Id": "traced"}
    answer = httpx.post(served.url + GENERATIONS, json=PROMPT | {"n": 2}, headers=headers, timeout=120)
    assert answer.status_code == 200, answer.text
    found = receiver.of_trace(TRACE, 13)
    assert receiver.paths == {"/v1/traces"}
    (request,) = ((span, told) for span, told in found if span.name == f"POST {GENERATIONS}")
    (job,) = ((span, told) for span, told in found if span.name == "generate_content emoji")
    (draw,) = ((span, told) for span, told in found if span.name == "draw emoji")
    phases = [(span, told) for span, told in found if span not in (request[0], job[0], draw[0])]
    assert request[0].parent_span_id.hex() == CALLERS_SPAN
    assert job[0].parent_span_id == request[0].span_id and draw[0].parent_span_id == job[0].span_id
    assert sorted(span.name for span, _ in phases) == sorted(["wait", "prefill", "steps", "decode", "encode"] * 2)
    assert {span.parent_span_id for span, _ in phases} == {draw[0].span_id}
    ingress, replica = request[1]["service.instance.id"], draw[1]["service.instance.id"]
    assert ingress != replica and job[1]["service.instance.id"] == ingress
    assert {told["service.instance.id"] for _, told in phases} == {replica}
    assert {told["service.name"] for _, told in found} == {"pictures"}
    assert {one.key: one.value.string_value for one in job[0].attributes}[names.JOB_ID] == answer.json()["id"]
    for span, _ in phases:
        assert draw[0].start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
    served.seconds_until(f'"trace_id": "{TRACE}"', 0.0)


def test_headers_of_another_form_do_not_reach_the_service(served: Served) -> None:
    for value in (b"\xff", b"none"):
        headers = [(b"traceparent", value), (b"tracestate", value)]
        assert httpx.get(served.url + "/v1/models", headers=headers, timeout=30).status_code == 200


def test_a_receiver_that_fails_is_not_noticed(served: Served, receiver: Receiver) -> None:
    receiver.status = 500
    try:
        answers = [httpx.post(served.url + GENERATIONS, json=PROMPT, timeout=120).status_code for _ in range(3)]
        time.sleep(1.0)
    finally:
        receiver.status = 200
    assert answers == [200] * 3
    later = CALLER.replace(TRACE, "1" * 32)
    httpx.post(served.url + GENERATIONS, json=PROMPT, headers={"traceparent": later}, timeout=120)
    assert len(receiver.of_trace("1" * 32, 8)) == 8, "it is sent to again"


def test_a_probe_does_not_wait_for_an_ingress_that_hangs(served: Served) -> None:
    """By Serve's own timeout, after which it leaves no stack trace: the last test looks."""
    ingress = served.child("ray::ServeReplica:dalle:Ingress")
    ingress.suspend()
    try:
        answer = httpx.get(served.url + "/ready", timeout=5)
    finally:
        ingress.resume()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2"), answer.text
    served.wait_until_ready()


def test_what_was_drawn_last_is_sent_before_the_end(receiver: Receiver, served: Served) -> None:
    """The last test: it stops the service."""
    last = CALLER.replace(TRACE, "2" * 32)
    assert httpx.post(served.url + GENERATIONS, json=PROMPT, headers={"traceparent": last}, timeout=120).is_success
    served.process.terminate()
    assert served.process.wait(60) == 0, served.tail()
    assert len(receiver.of_trace("2" * 32, 8)) == 8
    assert not [line for _, line in served.lines if "Traceback" in line], (
        "nor at the start, whose probes come too early"
    )
