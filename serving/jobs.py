"""Jobs that the ingress sends to a model, and the events that come back. Plain data that can be pickled."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from dalle.defaults import DEFAULT_RERANK, Rerank, Translate

if TYPE_CHECKING:  # not imported: the proxy, which needs no model, reads this module too
    from dalle.checkpoint.vocabulary import Vocabulary
    from dalle.ranking import Ranking
    from dalle.translation import TranslatedPrompt

__all__ = [
    "FAILED",
    "MODERATION_BLOCKED",
    "Accepted",
    "Drawn",
    "EngineFailedError",
    "Event",
    "Explain",
    "Explained",
    "Given",
    "Job",
    "Kept",
    "ModelInfo",
    "ModerationDetails",
    "Preview",
    "Refused",
]


Kept = Literal["mask", "keep_rows", "transparency", "upper_half"]
"""What decides which part of a given picture is kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """A picture of which some codes are kept, cropped and resized for a model."""

    pixels: bytes
    """Raw pixels, row by row, of the model's height and width."""
    mode: Literal["RGB", "RGBA"] = "RGB"
    """RGBA, with straight alpha, for a model that draws transparency."""
    keep: tuple[bool, ...]
    """For each code, in reading order, whether it is kept; the others are drawn."""
    kept: Kept = "keep_rows"
    """What decided which codes are kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A request for pictures of one prompt with one seed."""

    id: str
    owner: str
    """Name of the caller who sent it, and who alone can cancel it."""
    caller: str
    """Key by which jobs take turns in the queue: a caller, or one of its users."""
    prompt: str | None
    negative_prompt: str | None = None
    params: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Sampling parameters; the model's defaults apply to the others."""
    seed: int
    indices: tuple[int, ...]
    """Index of each picture to draw; at least one."""
    num_candidates: int | None = None
    """With it, the best of the pictures and of so many candidates more are sent, best first, as many as there are
    indices. Candidates have the indices that follow the last one. They are drawn in slots that no other job wants, and
    are given up when another job's pictures want those. None sends every picture as soon as it is drawn."""
    rerank: Rerank = DEFAULT_RERANK
    """Judge of the candidates."""
    translate: Translate = "off"
    """Language that the prompts are translated from into English, before anything else is done with them."""
    translate_prompt: bool = True
    """Whether the prompt is translated too, and not only the negative prompt: the one of a given picture's receipt was
    drawn as it is."""
    given: Given | None = None
    deadline: float
    """Time by which all pictures must be finished, in seconds since the epoch. The clocks of a cluster are assumed to
    agree."""
    num_previews: int = 0
    """Previews of each picture."""
    output_format: Literal["png", "jpeg", "webp"] = "png"
    quality: int | None = None
    background: Literal["transparent", "opaque"] = "opaque"
    """Background that was chosen for this model and this format."""
    enlargement: int = 1
    """Whole factor by which pictures and previews are enlarged."""
    spare: bool = False
    """Whether it is drawn in spare slots: it waits behind every other job, whatever its turn, gives its slots up to
    them, and is then drawn again. Nobody waits for the pictures of a batch."""
    accepted: bool = False
    """Whether a replica that has died since had accepted it. Another one then draws it under any load, and stops it at
    its deadline alone."""
    sender: str = ""
    """Name in Ray of the ingress replica that waits for the pictures: they are drawn only while it lives."""
    trace: dict[str, str] = dataclasses.field(default_factory=dict)
    """Headers of W3C's trace context by which its spans are below those of the ingress; none if traces are off."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accepted:
    """The first event of a job that is accepted: it is predicted to finish by its deadline."""

    position: int
    """Pictures of other jobs that will get slots before its first one."""
    estimate: float
    """Predicted seconds until all its pictures are finished."""
    num_text_tokens: int
    """Tokens of the prompt."""
    num_kept_codes: int
    """Codes that each picture keeps of a given one."""
    fingerprint: str
    """Hash of everything besides the request that decides the bytes of a picture."""
    translated: "TranslatedPrompt | None" = None
    """The prompts that are drawn, if they were translated."""


MODERATION_BLOCKED = "moderation_blocked"
"""OpenAI's code for a request whose prompt or pictures are blocked."""


class ModerationDetails(TypedDict):
    """Where a request was blocked, as OpenAI's errors say it."""

    moderation_stage: Literal["input", "output"]
    categories: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refused:
    """The last event of a job that is refused on arrival, or stopped later. Pictures that came before it are valid."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after: float | None = None
    """Seconds after which a retry can succeed; None if a retry is not suggested."""
    moderation_details: ModerationDetails | None = None
    """Where it was blocked, if it was."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preview:
    """A picture that is still being drawn; the part that is not drawn yet is grey."""

    index: int
    number: int
    """Number of the preview among those of its picture, from 0."""
    num_codes: int
    """Codes of the picture so far."""
    image: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """A finished picture."""

    index: int
    image: bytes
    codes: list[list[int]]
    queue_seconds: float
    """Time from the arrival of its job until it got slots."""
    ranking: "Ranking | None" = None
    """Its place among the candidates; None if there were none."""


Event = Accepted | Preview | Drawn | Refused


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explain:
    """A request to explain a finished picture."""

    text: dict[str, str]
    """The receipt of its PNG, as text chunks."""
    layers: tuple[int, ...] | None = None
    """Layers to show, numbered from 1; None for all."""
    heads: tuple[int, ...] | None = None
    """Heads of these layers to show, likewise."""
    response_format: Literal["html", "json"] = "html"
    deadline: float
    """Time by which it must be ready, in seconds since the epoch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explained:
    """The explanation of a picture, as a file."""

    content: bytes
    media_type: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Facts about a loaded model that the ingress needs."""

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
    """Default sampling parameters."""
    rerank: tuple[Rerank, ...] = get_args(Rerank)
    """Judges that can compare its pictures."""
    created: int
    """When it was loaded, in seconds since the epoch."""
    vocabulary: "Vocabulary | None" = None
    """What the model knows, if its directory says so."""
    translates: tuple[str, ...] = ()
    """ISO 639 codes of the languages whose prompts are translated for it."""
    translation_fault: str | None = None
    """Why its prompts are not translated; None if they are."""
    translate: Translate = "off"
    """Default of a request's field `translate`."""


class EngineFailedError(RuntimeError):
    """An engine that has died or is stuck: its pictures are lost, and another engine can draw them."""


FAILED = Refused(status=500, code="engine_failed", message="the picture could not be made; try again")
"""Refusal that a caller gets for an unexpected exception."""
