"""`Replica`: an engine with its thread, as a replica of a Ray Serve deployment."""

import contextlib
import ctypes
import logging
from collections.abc import AsyncGenerator
from typing import Any

import torch
from pydantic import ValidationError
from ray import serve

from dalle import DALLE
from dalle.device import keep_memory
from serving.cluster.autoscaling import IDLE_SECONDS, SLOTS_WANTED
from serving.cluster.loopback import stay_on_loopback
from serving.cluster.orphans import Orphans
from serving.engine.async_engine import AsyncEngine
from serving.jobs import Event, Explain, Explained, Job, ModelInfo, Refused
from serving.model_settings import ModelSettings, QueueSettings
from serving.safety.moderation import Moderation
from serving.safety.settings import SafetySettings
from serving.settings import mistakes
from serving.tracing import Tracing

__all__ = ["Replica"]

logger = logging.getLogger(__name__)


def _leave_the_cores_to_the_engine() -> None:
    """Avoid two costs that slow an engine by a third when it does not run on the process's first thread.

    OpenMP keeps a pool of threads for each thread that uses several; this one, which loads the model, needs none.
    glibc gives every thread but the first an arena that returns memory to the kernel after each step; one arena for all
    does not.
    """
    torch.set_num_threads(1)
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        arena_max = -8
        ctypes.CDLL("libc.so.6").mallopt(arena_max, 1)


class Replica:
    """A replica of a model. Its constructor loads the model and runs the self-test; the replica is ready after it."""

    def __init__(
        self, settings: dict[str, Any], traces: str | None = None, safety: dict[str, Any] | None = None
    ) -> None:
        """traces: URL to which spans are sent, if they are. safety: fields of `SafetySettings`, if anything is
        checked."""
        stay_on_loopback()
        _leave_the_cores_to_the_engine()
        keep_memory()
        chosen = ModelSettings(**settings)
        model = DALLE.load(chosen.path, device=chosen.device, text_encoder=chosen.text_encoder)
        self._tracing = Tracing.to(traces)
        self._moderation = Moderation(SafetySettings(**safety)) if safety is not None else None
        self.engine = AsyncEngine(model, chosen, self._tracing, self._moderation).start()
        self._orphans = Orphans(self.engine.cancel)
        logger.info(
            "the model %s is ready: %d slots, %d threads", chosen.id, chosen.num_slots, self.engine.thread.threads
        )

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Change the limit of the queue while the service runs; Ray Serve calls this."""
        try:
            settings = QueueSettings(**({"max_queue": self.engine.settings.max_queue} | user_config))
        except ValidationError as error:
            # if it were raised, Serve would kill a healthy replica
            logger.error("user_config is rejected, and the queue stays as it was: %s", mistakes(error))
            return
        self.engine.max_queue = settings.max_queue

    async def draw(self, job: Job) -> AsyncGenerator[Event]:
        """Draw a job: see `AsyncEngine.draw`. The job is cancelled when the ingress that sent it dies."""
        with self._orphans.watched(job):
            async with contextlib.aclosing(self.engine.draw(job)) as events:
                async for event in events:
                    yield event

    async def explain(self, asked: Explain) -> Explained | Refused:
        """Explain a finished picture: see `AsyncEngine.explain`."""
        return await self.engine.explain(asked)

    async def cancel(self, job_id: str, owner: str) -> bool:
        """Stop a job: see `AsyncEngine.cancel`."""
        return self.engine.cancel(job_id, owner)

    async def info(self) -> ModelInfo:
        return self.engine.info()

    async def metrics(self) -> tuple[str, str]:
        """The replica's id, and its metrics in Prometheus' text format."""
        return serve.get_replica_context().replica_id.unique_id, self.engine.metrics.text()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The figures by which `SlotsPolicy` scales; Ray Serve calls this."""
        return {SLOTS_WANTED: self.engine.num_slots_wanted, IDLE_SECONDS: self.engine.idle_seconds}

    async def check_health(self) -> None:
        """Raise if the engine's thread has ended or is stuck: Serve then replaces the replica."""
        self.engine.check()

    def __del__(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()
            if self._moderation is not None:
                self._moderation.close()
            if self._tracing is not None:
                self._tracing.close()
