"""What the ingress needs of the models, whoever runs them: this process, or Ray."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Protocol

from serving.engine.async_engine import AsyncEngine
from serving.jobs import FAILED, EngineFailedError, Event, Job, ModelInfo

__all__ = ["Backend", "LocalBackend"]


class Backend(Protocol):
    """Models by id. All methods may be called at any time, from one event loop."""

    @property
    def names(self) -> Sequence[str]:
        """Of the models, loaded or not, the default first."""

    def draw(self, model: str, job: Job) -> AsyncGenerator[Event]:
        """As `AsyncEngine.draw`, but an engine that fails is a refusal too. Leaving the iterator early cancels the
        job."""

    async def cancel(self, job_id: str, owner: str) -> bool:
        """Stop somebody's job wherever it runs. False if nobody knows it."""

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
        self.names = list(engines)

    async def draw(self, model: str, job: Job) -> AsyncGenerator[Event]:
        async with aclosing(self.engines[model].draw(job)) as events:
            try:
                async for event in events:
                    yield event
            except EngineFailedError:
                yield FAILED

    async def cancel(self, job_id: str, owner: str) -> bool:
        return any(engine.cancel(job_id, owner) for engine in self.engines.values())

    async def models(self) -> list[ModelInfo]:
        infos = []
        for engine in self.engines.values():
            with suppress(EngineFailedError):
                infos.append(engine.info())
        return infos

    async def ready(self) -> set[str]:
        return {info.id for info in await self.models()}

    async def metrics(self, own: str) -> list[tuple[Mapping[str, str], str]]:
        return [({}, text) for text in (own, *(engine.metrics.text() for engine in self.engines.values()))]
