"""What passes between the parts of the service: a job goes to a model, events come back. Plain data, picklable."""

import dataclasses
from typing import Any, Literal

__all__ = ["Accepted", "Drawn", "Event", "Given", "Job", "ModelInfo", "Preview", "Refused"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """A picture of which some codes are kept."""

    image: bytes
    """An image file of any size; it is cropped to the model's proportions and resized."""
    keep_rows: int | None = None
    """Rows of codes kept from the top; None keeps what the mask keeps."""
    mask: bytes | None = None
    """An image file of the same size whose transparent pixels are to be drawn anew: every code that has one is."""
    max_pixels: int = 16 * 2**20
    """Height times width beyond which a file is refused before it is decoded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Pictures to draw of one prompt with one seed."""

    id: str
    caller: str
    """For whose sake: callers are served in turn."""
    prompt: str | None
    negative_prompt: str | None = None
    params: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Sampling parameters; those left out are the model's own."""
    seed: int
    indices: tuple[int, ...]
    """One picture for each."""
    given: Given | None = None
    deadline: float
    """In seconds since the epoch: clocks of one cluster agree well enough."""
    num_previews: int = 0
    """Of each picture."""
    output_format: Literal["png", "jpeg", "webp"] = "png"
    quality: int | None = None


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
    rows: int
    """Of codes."""
    num_codes: int
    max_prompt_tokens: int
    sampling: dict[str, Any]
    fingerprint: str
    """Of all that decides the bytes of a picture besides the request."""
    created: int
