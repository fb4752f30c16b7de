"""`RayBackend`: models on Ray Serve, whose replicas can die at any moment.

A job's seed is fixed before it is sent, and the pictures that have arrived are known. So when a replica dies, the rest
of the job is sent to another one, and the caller gets the same pictures as from the first, none of them twice.
"""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Mapping
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from serving.backend import State
from serving.jobs import Accepted, Drawn, Event, Explain, Explained, Job, ModelInfo, Preview, Refused
from serving.model_settings import LOAD_SECONDS

__all__ = ["RayBackend"]

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Replicas that a job is sent to before it is refused."""
RETRY_SECONDS = 1.0
"""Pause before the second attempt; each later pause is longer by the same. Serve needs a moment to notice a death."""
INFO_SECONDS = 10.0
"""Time for which the facts about a model are cached: a rolling update can change them."""
PATIENCE = 5.0
"""Timeout of calls to a replica that need no computation, in seconds."""
READY_PATIENCE = 0.6
"""The same for `ready`, whose callers are to be answered within a second."""
LOST = Refused(
    status=503, code="replica_lost", message="the replicas that drew this request have died; try again", retry_after=5
)
UNLOADED = ("HEALTHY", "DOWNSCALING")
"""What Serve says of a model without replicas if it needs none."""
NOT_LOADED = Refused(
    status=503, code="not_ready", message="the model could not be loaded; try again in a moment", retry_after=10
)
BUSY = Refused(status=429, code="queue_full", message="too many requests wait; try again", retry_after=1)
SILENT = Refused(status=408, code="deadline_exceeded", message="the deadline has passed, and no replica has answered")


class RayBackend:
    """Models by id, each a deployment.

    ingress: the deployment of the ingress, for its metrics.
    sender: name of this ingress replica in Ray; its jobs are cancelled when it dies.
    unloaded_when_idle: ids of the models that can have no replica because they are idle. Serve starts one as soon as a
        call to a model waits for it, so these are only called for jobs; questions are broadcast to those that run.
    """

    def __init__(
        self,
        models: Mapping[str, DeploymentHandle[Any]],
        ingress: DeploymentHandle[Any],
        sender: str = "",
        unloaded_when_idle: Collection[str] = (),
    ) -> None:
        self.names = list(models)
        self._sender = sender
        self._models = models
        self._ingress = ingress
        self._unloaded_when_idle = frozenset(unloaded_when_idle)
        self._infos: dict[str, tuple[float, ModelInfo]] = {}

    async def draw(self, model: str, job: Job) -> AsyncGenerator[Event]:
        """Draw a job like `AsyncEngine.draw`; retries when a replica dies. A model that is idle is loaded first, and
        the job's deadline is later by as long."""
        since = time.time()
        if model in self._unloaded_when_idle and await self._has_no_replica(model):
            if await self.load(model) is None:
                yield NOT_LOADED
                return
            job = dataclasses.replace(job, deadline=job.deadline + time.time() - since)
        progress = _Progress(dataclasses.replace(job, sender=self._sender))
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(min(attempt * RETRY_SECONDS, max(0.0, job.deadline - time.time())))
            stream: Any = self._models[model].options(stream=True).draw.remote(progress.rest())
            try:
                while (event := await _next_event(stream, job.deadline)) is not None:
                    if isinstance(event, Accepted) and progress.drawn_by not in (None, event.fingerprint):
                        yield LOST  # another fingerprint: its pictures could differ from those of the first replica
                        return
                    for new in progress.news(event):
                        yield new
                    if isinstance(event, Refused):
                        return
                return
            except TimeoutError:
                yield SILENT
                return
            except BackPressureError:
                yield BUSY
                return
            except (RayError, RayServeException) as error:
                logger.warning(
                    "a replica of %s was lost while it drew %s (attempt %d): %s", model, job.id, attempt + 1, error
                )
                if not progress.missing:
                    return
                if job.deadline < time.time():
                    break
            finally:
                stream.cancel()
        yield LOST

    async def explain(self, model: str, asked: Explain) -> Explained | Refused:
        """Explain a picture that the model drew. A model that is idle is loaded first, and the deadline is later by as
        long. It is not tried again if the replica dies: nothing is lost but time."""
        since = time.time()
        if model in self._unloaded_when_idle and await self._has_no_replica(model):
            if await self.load(model) is None:
                return NOT_LOADED
            asked = dataclasses.replace(asked, deadline=asked.deadline + time.time() - since)
        try:
            left = asked.deadline + PATIENCE - time.time()
            answer: Explained | Refused = await asyncio.wait_for(self._models[model].explain.remote(asked), left)
            return answer
        except TimeoutError:
            return SILENT
        except BackPressureError:
            return BUSY
        except (RayError, RayServeException) as error:
            logger.warning("a replica of %s was lost while it explained a picture: %s", model, error)
            return LOST

    async def cancel(self, job_id: str, owner: str) -> bool:
        handles = self._models.values()
        answers = await asyncio.gather(*(self._broadcast(handle, "cancel", job_id, owner) for handle in handles))
        return any(any(answer) for answer in answers)

    async def models(self) -> list[ModelInfo]:
        now = time.monotonic()
        old = [name for name in self.names if name not in self._infos or now - self._infos[name][0] > INFO_SECONDS]
        await asyncio.gather(*map(self._refresh, old))
        return [self._infos[name][1] for name in self.names if name in self._infos]

    async def states(self) -> dict[str, State]:
        answers = await asyncio.gather(*(self._state(name) for name in self.names))
        return {name: state for name, state in zip(self.names, answers, strict=True) if state is not None}

    async def _state(self, name: str) -> State | None:
        """The state of a model; None if it does not answer, or is loaded for the first time."""
        if await self._refresh(name, READY_PATIENCE):
            return "loaded"
        if name not in self._unloaded_when_idle or not await self._has_no_replica(name):
            return None
        if name not in self._infos:
            asked = asyncio.to_thread(_is_unloaded, self._models[name])
            with contextlib.suppress(TimeoutError):
                return "idle" if await asyncio.wait_for(asked, READY_PATIENCE) else None
            return None
        return "idle"

    async def load(self, model: str) -> ModelInfo | None:
        if model not in self._unloaded_when_idle:
            return None
        logger.info("the model %s is loaded for a request", model)
        try:
            info: ModelInfo = await asyncio.wait_for(self._models[model].info.remote(), LOAD_SECONDS)
        except (RayError, RayServeException, TimeoutError) as error:
            logger.warning("the model %s could not be loaded: %s", model, error)
            return None
        self._infos[model] = (time.monotonic(), info)
        return info

    async def metrics(self, own: str) -> list[tuple[Mapping[str, str], str]]:
        handles = [*self._models.values(), self._ingress]
        answers = await asyncio.gather(*(self._broadcast(handle, "metrics") for handle in handles))
        return [({"replica": replica}, text) for answer in answers for replica, text in answer]

    async def _refresh(self, name: str, patience: float = PATIENCE) -> bool:
        """Update the facts about a model. False if no replica answers; older facts are kept."""
        handle = self._models[name]
        try:
            if name in self._unloaded_when_idle:  # no call that waits for a replica
                answers = await self._broadcast(handle, "info", patience=patience)
                if not answers:
                    return False
                info = answers[0]
            else:
                info = await asyncio.wait_for(handle.info.remote(), patience)
        except (RayError, RayServeException, TimeoutError) as error:
            logger.warning("the model %s does not answer: %s", name, error)
            return False
        self._infos[name] = (time.monotonic(), info)
        return True

    async def _has_no_replica(self, name: str) -> bool:
        try:
            await self._models[name].broadcast("info").results_async(timeout_s=READY_PATIENCE, return_exceptions=True)
        except DeploymentUnavailableError:
            return True
        except (RayError, RayServeException, TimeoutError, RuntimeError):
            pass
        return False

    async def _broadcast(
        self, handle: DeploymentHandle[Any], method: str, *arguments: Any, patience: float = PATIENCE
    ) -> list[Any]:
        """Call a method of all replicas, if there are any. Returns the results of those that answer in time."""
        try:
            response = handle.broadcast(method, *arguments)
            answers = await response.results_async(timeout_s=patience, return_exceptions=True)
        except DeploymentUnavailableError:
            return []
        except (RayError, RayServeException, TimeoutError, RuntimeError) as error:
            logger.warning("a broadcast of %s has failed: %s", method, error)
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]


def _is_unloaded(handle: DeploymentHandle[Any]) -> bool:
    """Whether Serve has no replica of a model because it needs none: not one that it is starting, or cannot start."""
    try:
        application = serve.status().applications[handle.app_name]
        return application.deployments[handle.deployment_name].status in UNLOADED
    except (KeyError, RayError, RayServeException) as error:
        logger.warning("Serve does not say whether %s is unloaded: %r", handle.deployment_name, error)
        return False


class _Progress:
    """Progress of a job over all replicas that have worked on it."""

    def __init__(self, job: Job) -> None:
        self.missing = list(job.indices)
        self.drawn_by: str | None = None
        """Fingerprint of the first engine that accepted the job."""
        self._job = job
        self._previews = Counter[int]()
        self._chosen: list[Event] = []
        """The best of candidates, until all of them are there: one replica has to make the whole choice."""

    def rest(self) -> Job:
        """The job without the pictures that have arrived. A choice among candidates is made anew."""
        self._chosen = []
        return dataclasses.replace(self._job, indices=tuple(self.missing), accepted=self.drawn_by is not None)

    def news(self, event: Event) -> list[Event]:
        """Record an event. Returns what it brings: nothing if another replica has sent it before, and the best of
        candidates together, with the last of them."""
        match event:
            case Accepted():
                first, self.drawn_by = self.drawn_by is None, event.fingerprint
                return [event] if first else []
            case Preview():
                first = event.number >= self._previews[event.index]
                self._previews[event.index] = max(self._previews[event.index], event.number + 1)
                return [event] if first else []
            case Drawn() if self._job.num_candidates is not None:
                self._chosen.append(event)
                if len(self._chosen) < len(self.missing):
                    return []
                self.missing = []
                return self._chosen
            case Drawn():
                self.missing.remove(event.index)
        return [event]


async def _next_event(stream: Any, deadline: float) -> Event | None:
    """The next event of a stream, None at its end. Raises `TimeoutError` if none comes by the deadline and `PATIENCE`:
    a live engine would have stopped the job by then."""
    left = deadline + PATIENCE - time.time()
    event: Event | None = await asyncio.wait_for(anext(stream, None), max(0.0, left))
    return event
