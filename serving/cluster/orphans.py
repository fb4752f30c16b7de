"""`Orphans`: cancels the jobs of an ingress replica that has died, since nobody waits for their pictures.

Ray knows the death of a process at once, from its closed connection. So an ingress that is only slow, or stopped by the
system for a while, keeps its jobs: nothing here depends on how quickly it answers.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

import ray
from ray.exceptions import RayError

from serving.jobs import Job

__all__ = ["Orphans"]

logger = logging.getLogger(__name__)

PERIOD = 0.5
"""Seconds between two questions to Ray, while there are jobs."""
NAMESPACE = "serve"
"""Ray's namespace of the actors of Ray Serve."""


class Orphans:
    """Jobs of one replica by the ingress that sent them. Used by one event loop."""

    def __init__(self, cancel: Callable[[str, str], bool]) -> None:
        """`cancel`: stops a job by its id and owner, as `AsyncEngine.cancel`."""
        self._cancel = cancel
        self._jobs: dict[str, list[Job]] = {}
        self._watching: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def watched(self, job: Job) -> Iterator[None]:
        """Within a `with` block the job is cancelled if its sender dies. A job without a sender is not watched."""
        if not job.sender:
            yield
            return
        self._jobs.setdefault(job.sender, []).append(job)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            jobs = self._jobs[job.sender]
            jobs.remove(job)
            if not jobs:
                del self._jobs[job.sender]

    async def _watch(self) -> None:
        while self._jobs:
            await asyncio.sleep(PERIOD)
            for sender in list(self._jobs):
                if await asyncio.to_thread(_lives, sender):
                    continue
                orphans = list(self._jobs.get(sender, ()))
                logger.warning("%s has died: its %d jobs are cancelled", sender, len(orphans))
                for job in orphans:
                    self._cancel(job.id, job.owner)


def _lives(actor: str) -> bool:
    """Whether Ray has an actor of this name. True if Ray does not answer."""
    try:
        ray.get_actor(actor, namespace=NAMESPACE)
    except ValueError:
        return False
    except (RayError, RuntimeError) as error:
        logger.warning("Ray does not say whether %s is alive: %s", actor, error)
    return True
