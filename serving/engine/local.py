"""`LocalBackend`: engines in this process, for tests and for a service without Ray."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress

from serving.backend import State
from serving.engine.async_engine import AsyncEngine
from serving.jobs import FAILED, EngineFailedError, Event, Explain, Explained, Job, ModelInfo, Refused

__all__ = ["LocalBackend"]


class LocalBackend:
    """A `Backend` over engines in this process, by model id."""

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

    async def explain(self, model: str, asked: Explain) -> Explained | Refused:
        return await self.engines[model].explain(asked)

    async def cancel(self, job_id: str, owner: str) -> bool:
        return any(engine.cancel(job_id, owner) for engine in self.engines.values())

    async def models(self) -> list[ModelInfo]:
        infos = []
        for engine in self.engines.values():
            with suppress(EngineFailedError):
                infos.append(engine.info())
        return infos

    async def states(self) -> dict[str, State]:
        return {info.id: "loaded" for info in await self.models()}

    async def load(self, model: str) -> None:
        return None

    async def metrics(self, own: str) -> list[tuple[Mapping[str, str], str]]:
        return [({}, text) for text in (own, *(engine.metrics.text() for engine in self.engines.values()))]
