"""What the ingress needs of the models, whoever runs them: this process, or Ray."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Protocol

from serving.async_engine import AsyncEngine
from serving.jobs import Event, Job, ModelInfo

__all__ = ["Backend", "LocalBackend"]


class Backend(Protocol):
    """Models by id. All methods may be called at any time, from one event loop."""

    def draw(self, model: str, job: Job) -> AsyncGenerator[Event]:
        """As `AsyncEngine.draw`. Leaving the iterator early cancels the job."""

    async def cancel(self, job_id: str) -> bool:
        """Stop a job wherever it runs. False if nobody knows it."""

    async def models(self) -> list[ModelInfo]:
        """Of every model that has been loaded, the default first."""

    async def ready(self) -> set[str]:
        """Ids of the models that could draw right now: asked anew each time."""

    async def metrics(self, own: str) -> list[tuple[Mapping[str, str], str]]:
        """Prometheus texts of all engines and all ingresses, with the labels that tell them apart. `own` is that of
        the ingress that asks."""


class LocalBackend:
    """Engines in this process: for tests and for a service without Ray."""

    def __init__(self, engines: Mapping[str, AsyncEngine]) -> None:
        self.engines = engines

    def draw(self, model: str, job: Job) -> AsyncGenerator[Event]:
        return self.engines[model].draw(job)

    async def cancel(self, job_id: str) -> bool:
        holders = [engine for engine in self.engines.values() if engine.has(job_id)]
        for engine in holders:
            engine.cancel(job_id)
        return bool(holders)

    async def models(self) -> list[ModelInfo]:
        return [engine.info() for engine in self.engines.values()]

    async def ready(self) -> set[str]:
        ready = set()
        for name, engine in self.engines.items():
            with suppress(RuntimeError):
                engine.check()
                ready.add(name)
        return ready

    async def metrics(self, own: str) -> list[tuple[Mapping[str, str], str]]:
        return [({}, text) for text in (own, *(engine.metrics.text() for engine in self.engines.values()))]
