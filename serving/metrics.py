"""Metrics for Prometheus. Every replica has a registry of its own; the ingress joins them at `/metrics`."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

__all__ = ["EngineMetrics", "HTTPMetrics", "join", "text_of_states"]

STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
WAIT_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class EngineMetrics:
    """Metrics of one engine."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()

        def labelled(kind: type, name: str, text: str, **options: object) -> object:
            return kind(f"dalle_{name}", text, ["model"], registry=self.registry, **options).labels(model)

        def gauge(name: str, text: str) -> Gauge:
            return labelled(Gauge, name, text)  # type: ignore[return-value]

        def counter(name: str, text: str) -> Counter:
            return labelled(Counter, name, text)  # type: ignore[return-value]

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return labelled(Histogram, name, text, buckets=buckets)  # type: ignore[return-value]

        self.queue_length = gauge("queue_length", "Pictures that are queued for slots")
        self.slots = gauge("slots", "Slots of the engine: its largest batch size")
        self.slots_used = gauge("slots_used", "Slots that pictures hold")
        self.queue_seconds = histogram(
            "queue_seconds", "Seconds from a picture's arrival until it got slots", WAIT_SECONDS
        )
        self.steps = counter("steps", "Steps that the engine has run")
        self.step_seconds = histogram("step_seconds", "Seconds of a step", STEP_SECONDS)
        self.first_preview_seconds = histogram(
            "first_preview_seconds", "Seconds from a job's arrival until its first preview", WAIT_SECONDS
        )
        self.decode_seconds = histogram(
            "decode_seconds", "Seconds in which the codes of a picture or preview become pixels", STEP_SECONDS
        )
        self.pictures = counter("pictures", "Pictures that were finished")
        self.codes = counter("codes", "Codes that were drawn")
        self.cancellations = counter("cancellations", "Jobs that were cancelled or stopped at their deadline")
        self.wasted_steps = counter("wasted_steps", "Steps that were run for a job after it was cancelled")
        self.discarded_steps = counter(
            "discarded_steps", "Steps whose codes were discarded because their job was stopped or its slots were needed"
        )
        self.evictions = counter("evictions", "Pictures of batches that have given their slots up to others")
        self.candidates = counter("candidates", "Candidates of best_of that were drawn besides a job's n pictures")
        self.candidates_given_up = counter(
            "candidates_given_up", "Candidates that were given up for other jobs' pictures, or for a deadline"
        )
        self.choose_seconds = histogram(
            "choose_seconds", "Seconds in which a job's candidates are compared", WAIT_SECONDS
        )
        self.translate_seconds = histogram(
            "translate_seconds", "Seconds in which a job's prompts are translated", WAIT_SECONDS
        )
        self._refusals = Counter(
            "dalle_refusals", "Jobs that were refused, by reason", ["model", "reason"], registry=self.registry
        )
        self._blocked = Counter(
            "dalle_moderation_blocked",
            "Prompts and pictures that were blocked, by the check that did",
            ["model", "check"],
            registry=self.registry,
        )
        self.check_seconds = histogram("check_seconds", "Seconds of the check of a picture or preview", STEP_SECONDS)
        self._model = model

    def count_blocked(self, check: str) -> None:
        self._blocked.labels(self._model, check).inc()

    def count_refusal(self, reason: str) -> None:
        self._refusals.labels(self._model, reason).inc()

    def text(self) -> str:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry).decode()


class HTTPMetrics:
    """Metrics of one ingress."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "dalle_http_requests", "HTTP requests, by path and status", ["path", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "dalle_http_seconds",
            "Seconds from a request's arrival until the end of its response",
            ["path"],
            buckets=WAIT_SECONDS,
            registry=self.registry,
        )

    def count_response(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> str:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry).decode()


def text_of_states(states: Mapping[str, str]) -> str:
    """Whether each model is loaded, as a metric in Prometheus' text format, by the states of the models that can
    draw."""
    registry = CollectorRegistry()
    loaded = Gauge(
        "dalle_model_loaded",
        "1 for a loaded model, 0 for one that was unloaded because it was idle",
        ["model"],
        registry=registry,
    )
    for model, state in states.items():
        loaded.labels(model).set(state == "loaded")
    return generate_latest(registry).decode()


class _Joined(Collector):
    def __init__(self, texts: Iterable[tuple[Mapping[str, str], str]]) -> None:
        self._families: dict[str, Metric] = {}
        for labels, text in texts:
            for family in text_string_to_metric_families(text):
                joined = self._families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    joined.add_sample(
                        sample.name, {**sample.labels, **labels}, sample.value, sample.timestamp, sample.exemplar
                    )

    def collect(self) -> Iterable[Metric]:
        return self._families.values()


def join(texts: Iterable[tuple[Mapping[str, str], str]]) -> bytes:
    """Merge the metrics of several replicas: each family appears once, its samples with the labels of their source."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Joined(texts))
    return generate_latest(registry)
