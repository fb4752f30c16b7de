"""What passes between the parts of the service: a job goes to a model, events come back. Plain data, picklable."""

import dataclasses
from typing import Any, Literal

__all__ = [
    "FAILED",
    "Accepted",
    "Drawn",
    "EngineFailedError",
    "Event",
    "Given",
    "Job",
    "ModelInfo",
    "Preview",
    "Refused",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """A picture of which some codes are kept, made ready for a model."""

    pixels: bytes
    """Row by row, of the model's height and width."""
    mode: Literal["RGB", "RGBA"] = "RGB"
    """RGBA, with straight alpha, for a model that draws transparency."""
    keep: tuple[bool, ...]
    """For each code, row by row, whether it is kept; the others are drawn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Pictures to draw of one prompt with one seed."""

    id: str
    owner: str
    """Who asked for it, and may cancel it."""
    caller: str
    """For whose sake: callers are served in turn."""
    prompt: str | None
    negative_prompt: str | None = None
    params: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Sampling parameters; those left out are the model's own."""
    seed: int
    indices: tuple[int, ...]
    """One picture for each; at least one."""
    given: Given | None = None
    deadline: float
    """In seconds since the epoch: clocks of one cluster agree well enough."""
    num_previews: int = 0
    """Of each picture."""
    output_format: Literal["png", "jpeg", "webp"] = "png"
    quality: int | None = None
    background: Literal["transparent", "opaque"] = "opaque"
    """As it was decided for this model and this format."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accepted:
    """The first event of a job that will be done in time."""

    position: int
    """Pictures of others that will get slots before its first."""
    estimate: float
    """Seconds until all its pictures are done."""
    num_text_tokens: int
    num_kept_codes: int
    """Of one picture."""
    fingerprint: str
    """Of the engine, and of all else that decides the bytes of a picture besides the request."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refused:
    """The last event of a job that is not done, be it at once or on the way. Pictures that came before it are good."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after: float | None = None
    """Seconds after which it is worth trying again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preview:
    """A picture that is still being drawn; rows to come are blank."""

    index: int
    number: int
    """0 for a picture's first preview."""
    num_codes: int
    """That it has so far."""
    image: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """A finished picture."""

    index: int
    image: bytes
    codes: list[list[int]]
    queue_seconds: float
    """From its job's arrival until it had slots."""


Event = Accepted | Preview | Drawn | Refused


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What the ingress must know of a model."""

    id: str
    digest: str
    height: int
    width: int
    grid_rows: int
    """Number of grid rows: rows of codes in a picture."""
    num_codes: int
    max_prompt_tokens: int
    image_mode: Literal["RGB", "RGBA"] = "RGB"
    """RGBA for a model that draws transparency, else RGB."""
    sampling: dict[str, Any]
    created: int
    """When it was loaded, in seconds since the epoch."""


class EngineFailedError(RuntimeError):
    """An engine is gone or stuck: what it was drawing is lost, and may be drawn elsewhere."""


FAILED = Refused(status=500, code="engine_failed", message="the picture could not be made; try again")
"""What a caller is told of a fault of ours."""
