"""`Backend`: the contract between the ingress and whatever runs the models, be it this process or Ray."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from serving.jobs import Event, Job, ModelInfo

__all__ = ["Backend"]


class Backend(Protocol):
    """Models by id. All methods can be called at any time, from one event loop."""

    @property
    def names(self) -> Sequence[str]:
        """Ids of all models, loaded or not, the default first."""

    def draw(self, model: str, job: Job) -> AsyncGenerator[Event]:
        """Draw a job. The first event is `Accepted` or `Refused`; then previews and pictures follow, until all are
        drawn or the job is `Refused`, also because an engine failed. Leaving the iterator early cancels the job."""

    async def cancel(self, job_id: str, owner: str) -> bool:
        """Stop a job of this owner, wherever it runs. False if there is no such job."""

    async def models(self) -> list[ModelInfo]:
        """Facts about every model that has been loaded, the default first."""

    async def ready(self) -> set[str]:
        """Ids of the models that can draw now, never from a cache."""

    async def metrics(self, own: str) -> list[tuple[Mapping[str, str], str]]:
        """Metrics of all engines and ingresses in Prometheus' text format, with labels that distinguish them. `own`
        is the text of the calling ingress."""
