"""Traces with OpenTelemetry: a process that has a receiver makes spans, and any other one has `None` in their place.

A span's context passes between processes as the headers of W3C's trace context (`traceparent`, `tracestate`), from the
caller's request to the ingress, and in a job from the ingress to the model. Spans are sent from a thread of their own;
a receiver that is slow or away costs spans, and no request waits for it. OpenTelemetry is imported only where it is on.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import urlsplit
from uuid import uuid4

from dalle import __version__
from dalle.errors import ConfigError
from serving.attributes import DRAW, ERROR_TYPE, JOB_ID, MODEL
from serving.jobs import FAILED, Drawn, EngineFailedError, Event, Job, Refused

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

__all__ = ["LEFT", "JobSpan", "Tracing", "fail", "follow", "receiver_of"]

PATH = "/v1/traces"
"""Path of traces at a receiver of OTLP over HTTP."""
SERVICE = "dalle-serve"
CLOSE_SECONDS = 3.0
"""Longest time for which a process that ends sends its last spans."""
LEFT = "ConnectionError"
"""Kind of the error of what a client has left, as FastAPI names it."""

Attributes = Mapping[str, str | bool | int | float | list[str]]


def receiver_of(traces: str | None) -> str | None:
    """URL to which spans are sent: the setting `traces`, or what OpenTelemetry's own variables name; None if traces are
    off. Raises `ConfigError` for a value that is not a URL."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if traces is None and os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() not in ("", "otlp"):
        return None
    whole = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "").strip()
    base = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip().rstrip("/")
    name, url = "traces", traces
    if not url and whole:
        name, url = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", whole
    elif not url and base:
        name, url = "OTEL_EXPORTER_OTLP_ENDPOINT", base + PATH
    if not url:
        return None
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"{name} is {url!r}; it must be the URL of an OTLP/HTTP receiver, like http://127.0.0.1:4318")
    return url if parts.path.strip("/") else url.rstrip("/") + PATH


class Tracing:
    """Makes the spans of one process."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.provider = provider
        self._tracer = provider.get_tracer("dalle-serve", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, url: str | None) -> Self | None:
        """Send spans to the receiver with this URL; None without one. OpenTelemetry's variables for headers, sampling,
        batches and the name of the service apply.

        Raises `ConfigError` if OpenTelemetry is not installed.
        """
        if url is None:
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(
                f"traces are to be sent to {url}, and OpenTelemetry is not installed: add the extra otel "
                "(pip install -e '.[serving,otel]')"
            ) from error
        own: dict[str, str | int] = {
            "service.name": SERVICE,
            "service.version": __version__,
            "service.instance.id": uuid4().hex,
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
        }
        resource = Resource.create(own).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        return cls(provider)

    def start(
        self,
        name: str,
        kind: Literal["SERVER", "CLIENT", "INTERNAL"],
        attributes: Attributes,
        *,
        parent: Mapping[str, str] | None = None,
        below: "Span | None" = None,
        at: int | None = None,
    ) -> "Span":
        """Start a span below the one that the headers `parent` name, or below a span of this process, or below the
        current one. `at`: when it started, in nanoseconds since the epoch (default: now)."""
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, set_span_in_context

        context = None
        if parent is not None:
            context = self._propagator.extract(parent, context=Context())
        elif below is not None:
            context = set_span_in_context(below, Context())
        return self._tracer.start_span(
            name, context=context, kind=SpanKind[kind], attributes=dict(attributes), start_time=at
        )

    def headers(self, span: "Span") -> dict[str, str]:
        """The headers by which another process starts spans below this one."""
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context=set_span_in_context(span, Context()))
        return carrier

    def close(self) -> None:
        """Send the last spans. Returns after `CLOSE_SECONDS` in any case."""
        closing = threading.Thread(target=self.provider.shutdown, name="close-traces", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


def fail(span: "Span", kind: str) -> None:
    """Mark a span as failed, with the kind of its error."""
    from opentelemetry.trace import StatusCode

    span.set_attribute(ERROR_TYPE, kind)
    span.set_status(StatusCode.ERROR)


async def follow(
    span: "Span", job: Job, events: AsyncGenerator[Event], note: Callable[[Event], None] = lambda event: None
) -> AsyncGenerator[Event]:
    """The events of a job. The span ends with them, as failed if not all pictures come: because the job is refused or
    stopped, because its engine fails, or because nobody waits for it any more. `note` is called with each event."""
    missing, error = len(job.indices), LEFT
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                note(event)
                missing -= isinstance(event, Drawn)
                if isinstance(event, Refused):
                    error = event.code
                yield event
    except EngineFailedError:
        error = FAILED.code
        raise
    finally:
        if missing:
            fail(span, error)
        span.end()


class JobSpan:
    """The span of a job in the process of its model, and those of its pictures below it. Used from any thread."""

    def __init__(self, tracing: Tracing, job: Job, model: str) -> None:
        self._tracing = tracing
        self._clock = time.time_ns() - time.monotonic_ns()
        attributes = {JOB_ID: job.id, MODEL: model}
        self._span = tracing.start(f"{DRAW} {model}", "SERVER", attributes, parent=job.trace)

    def add(self, name: str, start: float, end: float, attributes: Attributes, error: str | None = None) -> None:
        """Add the span of a phase from `start` to `end`, on the monotonic clock, with the kind of its error if it has
        failed."""
        at, until = (self._clock + int(seconds * 1e9) for seconds in (start, end))
        span = self._tracing.start(name, "INTERNAL", attributes, below=self._span, at=at)
        if error is not None:
            fail(span, error)
        span.end(until)

    def follow(self, job: Job, events: AsyncGenerator[Event]) -> AsyncGenerator[Event]:
        """The events of the job; its own span ends with them."""
        return follow(self._span, job, events)
