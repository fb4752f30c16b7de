"""Bodies of responses: OpenAI's wire format, with additions."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from dalle.translation import TranslatedPrompt

__all__ = [
    "ErrorBody",
    "ImageData",
    "ImagesResponse",
    "ModelCard",
    "ModelDetails",
    "ModelList",
    "RequestState",
    "StyleCard",
    "Timing",
    "TranslationCard",
    "Usage",
]


class ImageData(BaseModel):
    """One picture of a response."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    """The English prompt that was drawn, if the prompt was translated."""
    seed: int
    index: int
    score: float | None = None
    """The judge's score, of which higher is better, if the request has `best_of`."""
    rank: int | None = None
    """1 for the best candidate, if the request has `best_of`."""
    codes: list[list[int]] | None = None


class InputTokens(BaseModel):
    text_tokens: int
    image_tokens: int


class OutputTokens(BaseModel):
    image_tokens: int
    text_tokens: int = 0


class Usage(BaseModel):
    """Tokens of a request. Input: the prompt's tokens, and the codes kept of a given picture, counted once for each
    picture. Output: the codes that were drawn. The unconditional row of guidance is not counted."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class Timing(BaseModel):
    """Durations of a request, in seconds."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    queue: float
    """Longest time that one of its pictures was queued for slots."""
    estimate: float
    """Total time that was estimated when the request arrived."""
    total: float
    """Total time that it took."""


class TranslationCard(BaseModel):
    """What was translated into the prompts that were drawn."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    prompt: str | None = None
    """The prompt as it was sent, if it was translated."""
    language: str | None = None
    """ISO 639 code of its language."""
    drawn_prompt: str | None = None
    """Its English, which was drawn."""
    negative_prompt: str | None = None
    """The negative prompt as it was sent, if it was translated."""
    negative_language: str | None = None
    """ISO 639 code of its language."""
    drawn_negative_prompt: str | None = None
    """Its English, which was used."""
    kept: list[str]
    """Words that were kept as they are, since the translator does not know them."""
    translator: str
    """Name of the translator."""

    @classmethod
    def of(cls, drawn: TranslatedPrompt | None) -> Self | None:
        """The card of prompts that are drawn; None if nothing was translated."""
        if drawn is None or drawn.translation is None:
            return None
        given = drawn.translation
        return cls(
            prompt=given.prompt,
            language=given.language,
            drawn_prompt=drawn.prompt if given.prompt is not None else None,
            negative_prompt=given.negative_prompt,
            negative_language=given.negative_language,
            drawn_negative_prompt=drawn.negative_prompt if given.negative_prompt is not None else None,
            kept=list(given.kept),
            translator=given.translator,
        )


class ImagesResponse(BaseModel):
    """Response of generations, edits and variations."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    created: int
    id: str
    model: str
    data: list[ImageData]
    background: Literal["transparent", "opaque"]
    output_format: str
    size: str
    enlargement: int | None = None
    """Factor by which the pictures were enlarged, if they were."""
    kept: Literal["mask", "keep_rows", "transparency", "upper_half"] | None = None
    """What decided which part of a given picture was kept."""
    candidates: int | None = None
    """Number of candidates that were compared, if the request has `best_of`: fewer than that if slots were not idle."""
    rerank: Literal["likelihood", "clip"] | None = None
    """Judge of the candidates."""
    clip: str | None = None
    """Name of the CLIP model that judged them, if one did."""
    translation: TranslationCard | None = None
    """What was translated, if anything was; `revised_prompt` of each picture has the English too."""
    ignored: list[str] | None = None
    """Fields of the request that have no effect, if there were any and the service is set to ignore them."""
    warnings: list[str] | None = None
    """Reasons why the pictures may not show what the prompt says, if there are any: the model knows no word of it."""
    quality: str = "auto"
    safety_identifier: str | None = None
    seed: int
    system_fingerprint: str
    """Hash of everything besides the request that decides a picture's bytes: model, library, torch, device, batch size
    of a step."""
    usage: Usage
    timing: Timing


class RequestState(BaseModel):
    """State of an asynchronous or idempotent request."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    object: Literal["request"] = "request"
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    created_at: int
    expires_at: int
    """Time until which it is kept, in seconds since the epoch."""
    model: str
    seed: int
    pictures: int
    """Number of pictures."""
    pictures_done: int
    position: int | None
    """Pictures of other requests that were to be drawn before its first one when it was accepted, while it is
    queued."""
    estimate: float | None
    """Predicted seconds until all its pictures are finished; null when it is over."""
    preview: str | None
    """The last preview or picture, in base64, while it is drawn."""
    result: ImagesResponse | None
    """The response, when it is completed."""
    error: "ErrorDetail | None"
    """The error, if it has failed or was cancelled."""


class ModelCard(BaseModel):
    """A model, as `GET /v1/models` lists it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    aliases: list[str]
    """Further names of the model in requests."""
    state: Literal["loaded", "idle", "unavailable"]
    """`idle` if the model was unloaded and is loaded for its next request; `unavailable` if it does not answer now."""
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "dalle-serve"
    digest: str
    """Digest of the model directory."""
    size: str
    """Size of the model's pictures, such as `128x128` (width x height)."""
    rows: int
    """Number of grid rows (rows of codes) of a picture, and its largest number of previews."""
    num_codes: int
    """Number of codes of a picture."""
    max_prompt_tokens: int
    """Largest number of tokens of a prompt."""
    transparency: bool
    """Whether the model draws pictures with a transparent background."""
    moderation: list[Literal["prompt", "picture"]]
    """What this service checks, and may block: prompts before they are drawn, pictures before they are sent."""
    rerank: list[Literal["likelihood", "clip"]]
    """Judges that can compare its pictures, for requests with `best_of`."""
    translate_from: list[str]
    """ISO 639 codes of the languages whose prompts can be translated into English for it."""
    translate: str
    """Default of the field `translate` of requests."""
    sampling: dict[str, Any]
    """The model's sampling parameters, for those that a request does not set."""


class StyleCard(BaseModel):
    """A style that a model draws in."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    phrase: str
    """Words of a prompt for it, which follow the thing and a comma."""
    picture: str | None
    """A small picture that the model drew in this style, as a `data:` URL."""


class ModelDetails(ModelCard):
    """A model with what it knows, as `GET /v1/models/NAME` describes it. The lists of a model that does not say what it
    knows are empty."""

    description: str
    """What to type, in a sentence."""
    examples: list[str]
    """Prompts that the model draws well."""
    styles: list[StyleCard]
    concepts: list[str]
    """Names of the things that the model was trained to draw."""


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ModerationInfo(BaseModel):
    """Where a request was blocked."""

    moderation_stage: Literal["input", "output"]
    categories: list[str]


class ErrorDetail(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    message: str
    type: str
    param: str | None
    code: str | None
    moderation_details: ModerationInfo | None = None
    """Whether the prompt (`input`) or a picture (`output`) was blocked, with the code `moderation_blocked`."""


class ErrorBody(BaseModel):
    """Body of every response with an error status."""

    error: ErrorDetail
