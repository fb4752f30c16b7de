"""The models as Ray Serve runs them: replicas that may die at any moment.

A job's seed is fixed before it is sent, and the pictures that have arrived are known. So when a replica dies, the rest
of the job goes to another one, and the caller gets the pictures that the first would have drawn, none of them twice.
"""

import asyncio
import dataclasses
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from serving.jobs import Accepted, Drawn, Event, Job, ModelInfo, Preview, Refused

__all__ = ["RayBackend"]

logger = logging.getLogger(__name__)

ATTEMPTS = 3
INFO_SECONDS = 10.0
"""How long what is known of a model is believed: a rolling update may bring another one."""
PATIENCE = 5.0
"""Seconds for an answer of a replica that has nothing to compute for it."""


class RayBackend:
    """Models by id, each a deployment; and the ingress' own, for its metrics."""

    def __init__(self, models: Mapping[str, DeploymentHandle[Any]], ingress: DeploymentHandle[Any]) -> None:
        self._models = models
        self._ingress = ingress
        self._infos: dict[str, tuple[float, ModelInfo]] = {}

    async def draw(self, model: str, job: Job) -> AsyncGenerator[Event]:
        """As `AsyncEngine.draw`, over the death of replicas."""
        missing, accepted, previews = list(job.indices), False, Counter[int]()
        for attempt in range(ATTEMPTS):
            rest = dataclasses.replace(job, indices=tuple(missing))
            stream: Any = self._models[model].options(stream=True).draw.remote(rest)
            try:
                async for event in stream:
                    match event:
                        case Accepted():
                            if accepted:
                                continue
                            accepted = True
                        case Preview():
                            if event.number < previews[event.index]:
                                continue
                            previews[event.index] = event.number + 1
                        case Drawn():
                            missing.remove(event.index)
                    yield event
                    if isinstance(event, Refused):
                        return
                return
            except BackPressureError:
                yield Refused(status=429, code="queue_full", message="too many requests wait; try again", retry_after=1)
                return
            except (RayActorError, RayServeException) as error:
                logger.warning("a replica of %s was lost with %s (attempt %d): %s", model, job.id, attempt + 1, error)
                if job.deadline < time.time():
                    break
            finally:
                stream.cancel()
        message = "the replicas that drew this request have died; try again"
        yield Refused(status=503, code="replica_lost", message=message, retry_after=5)

    async def cancel(self, job_id: str) -> bool:
        answers = await asyncio.gather(*(self._broadcast(handle, "cancel", job_id) for handle in self._models.values()))
        return any(any(answer) for answer in answers)

    async def models(self) -> list[ModelInfo]:
        await asyncio.gather(*map(self._refresh, self._models))
        return [self._infos[name][1] for name in self._models if name in self._infos]

    async def ready(self) -> set[str]:
        self._infos.clear()
        return {info.id for info in await self.models()}

    async def metrics(self, own: str) -> list[tuple[Mapping[str, str], str]]:
        handles = [*self._models.values(), self._ingress]
        answers = await asyncio.gather(*(self._broadcast(handle, "metrics") for handle in handles))
        return [({"replica": replica}, text) for answer in answers for replica, text in answer]

    async def _refresh(self, name: str) -> None:
        known = self._infos.get(name)
        if known is not None and time.monotonic() - known[0] < INFO_SECONDS:
            return
        try:
            info = await asyncio.wait_for(self._models[name].info.remote(), PATIENCE)
        except (RayError, RayServeException, TimeoutError) as error:
            logger.warning("the model %s does not answer: %s", name, error)
            return
        self._infos[name] = (time.monotonic(), info)

    async def _broadcast(self, handle: DeploymentHandle[Any], method: str, *arguments: Any) -> list[Any]:
        """The answers of all replicas that give one in time."""
        try:
            response = handle.broadcast(method, *arguments)
            answers = await response.results_async(timeout_s=PATIENCE, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError, RuntimeError) as error:
            logger.warning("a broadcast of %s has failed: %s", method, error)
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]
