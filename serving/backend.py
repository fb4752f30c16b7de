"""`Backend`: the contract between the ingress and whatever runs the models, be it this process or Ray."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Literal, Protocol

from serving.jobs import Event, Explain, Explained, Job, ModelInfo, Refused

__all__ = ["Backend", "State"]

State = Literal["loaded", "idle"]
"""Whether a model is loaded, or was unloaded because it was idle and is loaded for its next request."""


class Backend(Protocol):
    """Models by id. All methods can be called at any time, from one event loop."""

    @property
    def names(self) -> Sequence[str]:
        """Ids of all models, loaded or not, the default first."""

    def draw(self, model: str, job: Job) -> AsyncGenerator[Event]:
        """Draw a job. The first event is `Accepted` or `Refused`; then previews and pictures follow, until all are
        drawn or the job is `Refused`, also because an engine failed. Leaving the iterator early cancels the job."""

    async def explain(self, model: str, asked: Explain) -> Explained | Refused:
        """Explain a picture that the model drew."""

    async def cancel(self, job_id: str, owner: str) -> bool:
        """Stop a job of this owner, wherever it runs. False if there is no such job."""

    async def models(self) -> list[ModelInfo]:
        """Facts about every model that has been loaded, the default first."""

    async def states(self) -> dict[str, State]:
        """States of the models that can draw, by id, never from a cache."""

    async def load(self, model: str) -> ModelInfo | None:
        """Facts about a model that is idle, as soon as it is loaded. None if that fails, and for other models."""

    async def metrics(self, own: str) -> list[tuple[Mapping[str, str], str]]:
        """Metrics of all engines and ingresses in Prometheus' text format, with labels that distinguish them. `own`
        is the text of the calling ingress."""
