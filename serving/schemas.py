"""Bodies of requests and answers: OpenAI's wire format for pictures, and what we add to it.

Fields that an autoregressive model cannot honour are known here by name, so that they are refused with the reason and
not as unknown.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

__all__ = [
    "MAX_PROMPT_LENGTH",
    "UNSUPPORTED",
    "EditFields",
    "ErrorBody",
    "Fields",
    "GenerationRequest",
    "ImageData",
    "ImagesResponse",
    "ModelCard",
    "ModelList",
    "Timing",
    "Usage",
    "VariationFields",
    "sampling_of",
]

MAX_PROMPT_LENGTH = 32000
Prompt = Annotated[str, StringConstraints(max_length=MAX_PROMPT_LENGTH)]

UNSUPPORTED = {
    "style": "a model draws in the styles that it was trained on; name one in the prompt",
    "num_inference_steps": "an autoregressive model draws each code once; steps belong to diffusion",
    "strength": "an autoregressive model keeps codes or draws them; see keep_rows and mask",
    "guidance_rescale": "it belongs to diffusion",
    "eta": "it belongs to diffusion",
    "scheduler": "it belongs to diffusion",
    "true_cfg_scale": "use guidance_scale",
    "generator_device": "noise does not depend on a device here",
    "input_fidelity": "a picture is kept code by code or not at all; see keep_rows and mask",
    "complexity": "a picture has a fixed number of codes",
    "frame_count": "the models draw still pictures",
    "frame_duration_ms": "the models draw still pictures",
    "svg": "the models draw pixels",
    "lora": "models are served whole",
}
"""Fields of OpenAI and of other servers that cannot be honoured, and why."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)

    @classmethod
    def may_be_left_out(cls, name: str) -> bool:
        """Whether a request may come without this field. So may it with the fields that it may not come with."""
        field = cls.model_fields.get(name)
        return name in UNSUPPORTED if field is None else not field.is_required()

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        """OpenAI's clients send null for what is not given."""
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None or not cls.may_be_left_out(name)}


def _tell_nulls(schema: dict[str, Any]) -> None:
    """Adds to the schema of a JSON body that what may be left out may be null."""
    for name, field in schema["properties"].items():
        if name not in schema["required"] and {"type": "null"} not in field.get("anyOf", ()):
            kind = {key: field.pop(key) for key in field.keys() - {"title", "description", "default"}}
            field["anyOf"] = [kind, {"type": "null"}]


class _Common(_Body):
    """What every request for pictures may say."""

    model: str | None = None
    n: int = Field(default=1, ge=1)
    size: str = "auto"
    """`auto`, or the one size that the model draws, such as `128x128`."""
    quality: Literal["auto", "standard"] = "auto"
    background: Literal["transparent", "opaque", "auto"] = "auto"
    """What lies behind a picture: `transparent` (nothing; needs a model that draws transparency, and png or webp),
    `opaque` (white), or `auto`, which is transparent where that can be."""
    moderation: Literal["auto", "low"] = "auto"
    """Accepted and without effect: nothing is moderated."""
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int | None = Field(default=None, ge=0, le=100)
    """Quality of JPEG and WebP, of which 0 is the same as 1; PNG is lossless and takes 100 alone."""
    response_format: Literal["b64_json", "url"] = "b64_json"
    stream: bool = False
    partial_images: int = Field(default=0, ge=0)
    """Previews of each picture while it is drawn, at most as many as the model has rows of codes."""
    user: str | None = Field(default=None, max_length=256)
    safety_identifier: str | None = Field(default=None, max_length=256)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """The same request with the same seed gives the same bytes. Drawn if not given, and always returned."""
    first_index: int = Field(default=0, ge=0, lt=2**30)
    """Index of the first picture: with `n` 1, picture i of an earlier request is drawn alone."""
    guidance_scale: float | None = Field(default=None, ge=1, le=100, allow_inf_nan=False)
    guidance_schedule: Literal["constant", "linear", "cosine"] | None = None
    guided_codes: int | None = Field(default=None, ge=0, lt=2**31)
    """Guide only so many of the first codes; 0 guides them all."""
    temperature: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=0, lt=2**31)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    min_p: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    negative_prompt: Prompt | None = None
    return_codes: bool = False
    """Return each picture's codes, row by row."""
    deadline: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds in which all must be done; at most what the service allows, which is the default."""


class GenerationRequest(_Common):
    """Body of `POST /v1/images/generations`."""

    model_config = ConfigDict(json_schema_extra=_tell_nulls)

    prompt: Prompt


class EditFields(_Common):
    """Form fields of `POST /v1/images/edits`, beside the files `image` and `mask`."""

    prompt: Prompt
    keep_rows: int | None = Field(default=None, ge=0)
    """Rows of codes that are kept from the top; the rest is drawn. Instead of a mask."""


class VariationFields(_Common):
    """Form fields of `POST /v1/images/variations`, beside the file `image`."""

    prompt: Prompt | None = None
    """By default the prompt in the picture's receipt, if it has one; else none."""
    keep_rows: int | None = Field(default=None, ge=0)
    """Rows of codes that are kept from the top; half of them by default."""


Fields = GenerationRequest | EditFields | VariationFields

SAMPLING = ("guidance_scale", "guidance_schedule", "guided_codes", "temperature", "top_k", "top_p", "min_p")


def sampling_of(fields: Fields) -> dict[str, Any]:
    """The sampling parameters that a request names; the others are the model's own."""
    return {name: value for name in SAMPLING if (value := getattr(fields, name)) is not None}


class ImageData(BaseModel):
    """One picture of an answer."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    seed: int
    index: int
    codes: list[list[int]] | None = None


class InputTokens(BaseModel):
    text_tokens: int
    image_tokens: int


class OutputTokens(BaseModel):
    image_tokens: int
    text_tokens: int = 0


class Usage(BaseModel):
    """Tokens of a request. Input: the prompt's text ids, and the codes that were kept of a given picture, once for each
    picture. Output: the codes that were drawn. The second row of guidance is not counted."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class Timing(BaseModel):
    """Seconds: what a request waited for slots, what was estimated when it came, and what it took."""

    queue: float
    estimate: float
    total: float


class ImagesResponse(BaseModel):
    """Answer of all three endpoints."""

    created: int
    id: str
    model: str
    data: list[ImageData]
    background: Literal["transparent", "opaque"]
    output_format: str
    size: str
    quality: str = "auto"
    safety_identifier: str | None = None
    seed: int
    system_fingerprint: str
    """Of all that decides a picture's bytes besides the request: model, library, torch, device, shape of a step."""
    usage: Usage
    timing: Timing


class ModelCard(BaseModel):
    """A model, as `GET /v1/models` lists it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "dalle-serve"
    digest: str
    size: str
    rows: int
    """Rows of codes, the most previews that a picture can have."""
    num_codes: int
    max_prompt_tokens: int
    transparency: bool
    """Whether the model draws pictures with a transparent background."""
    sampling: dict[str, Any]
    """The parameters that a request leaves out."""


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer that is no success."""

    error: ErrorDetail
