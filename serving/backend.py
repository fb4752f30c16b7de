"""What the ingress needs of the models, whoever runs them: this process, or Ray."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from serving.jobs import Event, Job, ModelInfo

__all__ = ["Backend"]


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
