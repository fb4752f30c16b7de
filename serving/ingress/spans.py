"""Spans of the ingress: FastAPI's own of each HTTP request, completed, and one below it of the job that it becomes."""

from collections.abc import AsyncGenerator
from typing import Any

from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import attributes as names
from serving.jobs import Accepted, Drawn, Event, Job, ModelInfo
from serving.schemas import Fields
from serving.tracing import LEFT, Tracing, fail, follow

__all__ = ["JobSpan", "RequestSpans", "telemetry_of"]

PROBES = ("/health", "/ready", "/metrics")
"""Ends of paths without spans: programs ask for them all the time."""
PROVIDER = "dalle-serve"
SAMPLING = {"temperature": names.TEMPERATURE, "top_k": names.TOP_K, "top_p": names.TOP_P}


def telemetry_of(tracing: Tracing | None) -> TelemetryConfig:
    """What FastAPI sends by itself: a span of each request but probes, if there is `tracing`, and nothing else."""
    return {
        "tracing": tracing is not None,
        "tracer_provider": None if tracing is None else tracing.provider,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": lambda scope: scope["path"].endswith(PROBES),
    }


class RequestSpans:
    """Completes FastAPI's span of a request: its id, and the error if the client leaves. The access log gets the id of
    the trace."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from opentelemetry.trace import format_trace_id, get_current_span

        span, ended = get_current_span(), False
        context = span.get_span_context()
        if scope["type"] != "http" or not context.is_valid:
            await self.app(scope, receive, send)
            return
        scope["state"]["log"]["trace_id"] = format_trace_id(context.trace_id)
        span.set_attribute(names.REQUEST_ID, scope["state"]["request_id"])

        async def receive_noted() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not ended:
                fail(span, LEFT)
            return message

        async def send_noted(message: Message) -> None:
            nonlocal ended
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        await self.app(scope, receive_noted, send_noted)


class JobSpan:
    """Makes the span of a job, below that of the request that is current when it is made."""

    def __init__(self, tracing: Tracing, info: ModelInfo, fields: Fields, job: Job) -> None:
        attributes: dict[str, Any] = {
            names.OPERATION: names.GENERATE,
            names.PROVIDER: PROVIDER,
            names.OUTPUT_TYPE: "image",
            names.REQUEST_MODEL: fields.model or info.id,
            names.MODEL: info.id,
            names.NUM_PICTURES: len(job.indices),
            names.SEED: job.seed,
            names.STREAM: fields.stream,
            names.JOB_ID: job.id,
        }
        attributes |= {name: job.params[key] for key, name in SAMPLING.items() if job.params.get(key) is not None}
        self._num_codes = info.num_codes
        self._num_text_tokens = self._num_kept = 0
        self._reasons: list[str] = []
        self._span = tracing.start(f"{names.GENERATE} {info.id}", "CLIENT", attributes)
        self.headers = tracing.headers(self._span)

    def follow(self, job: Job, events: AsyncGenerator[Event]) -> AsyncGenerator[Event]:
        """The events of the job; the span ends with them."""
        return follow(self._span, job, events, self._note)

    def _note(self, event: Event) -> None:
        span = self._span
        match event:
            case Accepted():
                self._num_text_tokens, self._num_kept = event.num_text_tokens, event.num_kept_codes
                span.set_attribute(names.POSITION, event.position)
                span.set_attribute(names.ESTIMATE, event.estimate)
                span.set_attribute(names.FINGERPRINT, event.fingerprint)
            case Drawn():
                self._reasons.append("stop")
                span.set_attribute(names.FINISH_REASONS, self._reasons)
                num = len(self._reasons)
                span.set_attribute(names.INPUT_TOKENS, self._num_text_tokens + num * self._num_kept)
                span.set_attribute(names.OUTPUT_TOKENS, num * (self._num_codes - self._num_kept))
