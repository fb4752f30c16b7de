"""Bodies of requests: OpenAI's wire format for images, with additional fields.

Fields of other servers that an autoregressive model cannot honour are listed in `UNSUPPORTED`, so that they are refused
with the reason and not as unknown.
"""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from dalle.defaults import Rerank, Translate
from dalle.errors import ParameterError
from dalle.translate.languages import as_translate

__all__ = [
    "HARMLESS",
    "MAX_PROMPT_LENGTH",
    "UNSUPPORTED",
    "EditFields",
    "ExplanationFields",
    "Fields",
    "GenerationRequest",
    "VariationFields",
    "sampling_of",
]

MAX_PROMPT_LENGTH = 32000
Prompt = Annotated[str, StringConstraints(max_length=MAX_PROMPT_LENGTH)]

HARMLESS = {
    "quality": "a model has one quality, auto or standard",
    "moderation": "the settings of the service say what is checked; it can be auto or low",
    "style": "the style belongs in the prompt; the model knows the styles that it was trained on",
    "num_inference_steps": "an autoregressive model draws each code once; steps are a parameter of diffusion models",
    "guidance_rescale": "it is a parameter of diffusion models",
    "eta": "it is a parameter of diffusion models",
    "scheduler": "it is a parameter of diffusion models",
    "generator_device": "the noise does not depend on the device",
    "input_fidelity": "an autoregressive model either keeps a code or draws it; use keep_rows or mask",
    "complexity": "a picture has a fixed number of codes",
}
"""Fields of OpenAI and other servers that say nothing about what is drawn, with the reason why they have no effect. The
setting `lenient` has them ignored instead of refused."""
UNSUPPORTED = {
    "strength": "an autoregressive model either keeps a code or draws it; use keep_rows or mask",
    "true_cfg_scale": "use guidance_scale",
    "frame_count": "the models draw still pictures only",
    "frame_duration_ms": "the models draw still pictures only",
    "prune": "candidates take slots that nobody else wants, so dropping some of them saves nothing",
    "clip": "the settings of the service say which CLIP model judges; use rerank",
    "svg": "the models draw pixels, not vector graphics",
    "lora": "models are served without adapters",
}
"""Fields of OpenAI and other servers that cannot be honoured, with the reason."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)

    _without_effect: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def without_effect(self) -> dict[str, Any]:
        """The fields that a request sets and that have no effect, with their values."""
        return self._without_effect

    @classmethod
    def is_optional(cls, name: str) -> bool:
        """Whether a request may omit this field, and so may send null for it: every field that is not required."""
        field = cls.model_fields.get(name)
        return field is None or not field.is_required()

    @classmethod
    def form_schema(cls) -> dict[str, Any]:
        """The schema of the fields of a form, which has no null."""
        schema = cls.model_json_schema()
        for field in schema["properties"].values():
            if "anyOf" in field:
                (kept,) = (one for one in field.pop("anyOf") if one != {"type": "null"})
                field.update(kept)
                field.pop("default", None)
        return schema

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, values: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        """Drop nulls of optional fields, which OpenAI's clients send for a parameter that is not given, and set fields
        without effect aside."""
        if not isinstance(values, dict):
            return read(values)
        given = {name: value for name, value in values.items() if value is not None or not cls.is_optional(name)}
        aside = {name: given.pop(name) for name in HARMLESS if name in given and not cls._takes(name, given[name])}
        body = read(given)
        body._without_effect = aside
        return body

    @classmethod
    def _takes(cls, name: str, value: Any) -> bool:
        """Whether a field that has no effect is declared with this value."""
        field = cls.model_fields.get(name)
        return field is not None and value in get_args(field.annotation)

    @field_validator("translate", mode="before", check_fields=False)
    @classmethod
    def _language(cls, value: Any) -> Any:
        """Convert a tag such as `fr-CA` to the code of its language."""
        try:
            return None if value is None else as_translate(value)
        except ParameterError as error:
            reason = str(error).partition("; ")[2]  # the value stands in front of it in all errors of fields
            raise PydanticCustomError("language", "{reason}", {"reason": reason}) from error

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Convert 3.0, which is an integer in JSON, to 3. Reject what pydantic would take for a number: `true`, and
        text such as "1_0"."""
        kinds = get_args(annotation := cls.model_fields[str(info.field_name)].annotation) or (annotation,)
        if int in kinds and isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
            for kind, name in ((int, "int_type"), (float, "float_type")):
                if kind in kinds:
                    raise PydanticCustomError(name, "it is no number")
        return value


def _allow_nulls(schema: dict[str, Any]) -> None:
    """Declare optional fields as nullable in the schema of a JSON body."""
    for name, field in schema["properties"].items():
        if name not in schema["required"] and {"type": "null"} not in field.get("anyOf", ()):
            kind = {key: field.pop(key) for key in field.keys() - {"title", "description", "default"}}
            field["anyOf"] = [kind, {"type": "null"}]


class _Common(_Body):
    """Fields of every request for pictures."""

    model: str | None = None
    """Id or alias of the model (default: the first one that `GET /v1/models` lists)."""
    n: int = Field(default=1, ge=1, lt=2**31)
    """Number of pictures; the service sets the limit."""
    best_of: int | None = Field(default=None, ge=1, lt=2**31)
    """Draw up to this many candidates and return the best `n`, best first; the service sets the limit. Candidates
    beyond the first `n` take idle slots only, and are given up when other requests need them: `candidates` in the
    response is the number that were compared."""
    rerank: Rerank | None = None
    """Judge of the candidates: `clip`, a CLIP model that compares pictures with the prompt (default), or `likelihood`,
    the model itself. Needs `best_of`."""
    size: str = "auto"
    """`auto`, the size that the model draws, such as `128x128` (width x height), or a whole multiple of it up to 2,048
    pixels a side: the pictures are then enlarged."""
    quality: Literal["auto", "standard"] = "auto"
    """Accepted without effect: a model has one quality."""
    background: Literal["transparent", "opaque", "auto"] = "auto"
    """Background of the pictures: `transparent` (needs a model that draws transparency, and png or webp), `opaque`
    (white), or `auto`, which is transparent if the model and the format allow it."""
    moderation: Literal["auto", "low"] = "auto"
    """Accepted without effect: the settings of the service say what is checked (`moderation` of the model's card)."""
    output_format: Literal["png", "jpeg", "webp"] = "png"
    """File format of the pictures and previews."""
    output_compression: int | None = Field(default=None, ge=0, le=100)
    """JPEG/WebP quality (default 90); 0 is the same as 1. PNG is lossless and accepts only 100."""
    response_format: Literal["b64_json", "url"] | None = None
    """`b64_json` returns pictures in the body. `url` returns links, if the service has a store and `stream` is off.
    Default: `b64_json`, unless the service is set to another."""
    stream: bool = False
    """Return server-sent events: previews, and each picture as soon as it is finished."""
    partial_images: int = Field(default=0, ge=0, lt=2**31)
    """Number of previews of each picture while it is drawn, at most the model's number of grid rows (`rows` of its
    card). Needs `stream`."""
    user: str | None = Field(default=None, max_length=256)
    """Name of your end user. Users of one address take turns in the queue on a service without API keys, and users of
    one key if the key is trusted."""
    safety_identifier: str | None = Field(default=None, max_length=256)
    """Takes the place of `user` if that is not given, and is returned."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Seed of the noise: the same request with the same seed gives the same bytes. A random seed is used if it is not
    given; the response has it either way."""
    first_index: int = Field(default=0, ge=0, lt=2**30)
    """Index of the first picture. With `n` 1 and the seed of an earlier request, it draws picture i of that request
    alone."""
    guidance_scale: float | None = Field(default=None, ge=1, le=100, allow_inf_nan=False)
    """Scale of classifier-free guidance; 1 turns it off (default: the model's)."""
    guidance_schedule: Literal["constant", "linear", "cosine"] | None = None
    """How the guidance scale changes over the codes: `constant`, or rising from 1
    (`linear`, `cosine`); default: the model's."""
    guided_codes: int | None = Field(default=None, ge=0, lt=2**31)
    """Number of codes, from the first, to which guidance is applied; 0 is all (default: the model's)."""
    temperature: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    """Sampling temperature; 0 always takes the most probable code (default: the model's)."""
    top_k: int | None = Field(default=None, ge=0, lt=2**31)
    """Sample from the k most probable codes; 0 is all (default: the model's)."""
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    """Sample from the most probable codes whose probabilities add up to this share; 1 is all (default: the
    model's)."""
    min_p: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    """Sample from codes at least this share as probable as the most probable one; 0 is all (default: the
    model's)."""
    translate: Translate | None = None
    """Translate the prompts into English before they are drawn: `auto` from the language that they are in, `fr`, `ko`,
    `de`, `es` or `ja` from that one (a tag with a region, such as `fr-CA`, is taken for its language), `off` not at all
    (default: the model's, `translate` of its card). A prompt in English gets the wording of the model's captions, and
    `en` does nothing else. A language that is not translated is refused."""
    negative_prompt: Prompt | None = None
    """Text to steer away from; it needs a `guidance_scale` above 1."""
    return_codes: bool = False
    """Return the codes of each picture, as a list of grid rows."""
    deadline: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds in which all pictures must be finished. The service sets the limit, which is also the default."""


class GenerationRequest(_Common):
    """Body of `POST /v1/images/generations`. JSON has types: `"1"` is no number, and 1 is not `true`."""

    model_config = ConfigDict(strict=True, json_schema_extra=_allow_nulls)

    prompt: Prompt
    """Text to draw, at most as long as the model's `max_prompt_tokens`."""


class EditFields(_Common):
    """Form fields of `POST /v1/images/edits`, besides the files `image` and `mask`."""

    prompt: Prompt
    """Text to draw, at most as long as the model's `max_prompt_tokens`."""
    keep_rows: int | None = Field(default=None, ge=0, lt=2**31)
    """Number of grid rows (rows of codes) that are kept, from the top; the rest is drawn. An alternative to a mask.
    Without both, the transparent part of the picture is drawn, or its lower half if nothing in it is transparent."""


class VariationFields(_Common):
    """Form fields of `POST /v1/images/variations`, besides the file `image`."""

    prompt: Prompt | None = None
    """Text to draw (default: the prompt in the picture's receipt; without a receipt, no prompt)."""
    keep_rows: int | None = Field(default=None, ge=0, lt=2**31)
    """Number of grid rows (rows of codes) that are kept, from the top (default: half of them)."""


class ExplanationFields(_Body):
    """Form fields of `POST /v1/images/explanations`, besides the file `image`."""

    model: str | None = None
    """Id or alias of the model that drew the picture (default: the one whose digest its receipt has)."""
    url: str | None = Field(default=None, max_length=2000)
    """URL of a picture that this service has stored (`response_format` `url`), instead of the file `image`."""
    layers: str | None = Field(default=None, max_length=200)
    """Layers to show, such as `3` or `1-4,8`, numbered from 1 (default: all)."""
    heads: str | None = Field(default=None, max_length=200)
    """Heads of these layers to show, likewise (default: all)."""
    response_format: Literal["html", "json"] = "html"
    """`html` returns a page that loads nothing, `json` the numbers, averaged over the layers and heads."""


Fields = GenerationRequest | EditFields | VariationFields

SAMPLING = ("guidance_scale", "guidance_schedule", "guided_codes", "temperature", "top_k", "top_p", "min_p")


def sampling_of(fields: Fields) -> dict[str, Any]:
    """The sampling parameters that a request sets; the model's defaults apply to the others."""
    return {name: value for name in SAMPLING if (value := getattr(fields, name)) is not None}
