"""Lines -> what they ask for, in shards: a pure function of the prompts, the model and the settings.

A line becomes an `Item`, or an `InvalidLine` with the reason. Items are validated as bodies of `POST
/v1/images/generations` are, by the same code, so that a line here and a request there mean the same. Consecutive lines
make a shard, the unit of work and of commitment. A picture's name is a digest of all that it is drawn from.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from dalle.checkpoint import ModelFacts
from dalle.decoder.request import NOT_TRAINED_FOR_GUIDANCE
from dalle.decoder.sampling import SamplingParams
from dalle.errors import ConfigError, NegativePromptError, ParameterError, PromptError
from dalle.images import Background, DrawnBackground, ImageFormat
from dalle.pipeline import MAX_PICTURES, check_prompts
from serving.background import background_of
from serving.batch.prompts import Line
from serving.errors import ApiError, check_output, field_error
from serving.schemas import GenerationRequest, sampling_of

__all__ = ["FIELDS", "InvalidLine", "Item", "Layout", "PlanSettings", "Planner", "Shard", "item_seed", "picture_key"]

Layout = Literal["files", "tar", "codes"]

MAX_ID = MAX_SHOWN = 1000
"""Characters of a line's name; and of what is told of a line that is refused."""
NEVER_OFFLINE = {
    "stream": "a batch does not stream",
    "partial_images": "a batch sends no previews",
    "deadline": "a batch takes the time it takes",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What decides, besides the prompts and the model, which pictures there will be and where."""

    seed: int = 0
    """Rows that have no seed get one of this and their id."""
    n: int = 1
    """Pictures of an item that does not say."""
    image_format: ImageFormat = "png"
    quality: int | None = None
    background: Background = "auto"
    """Background of pictures of an item that does not say."""
    layout: Layout = "files"
    signed: bool = False
    """Whether PNGs have a signed manifest of C2PA."""
    shard_size: int = 64
    """Pictures, at least, of a shard that is not the last."""

    def to_dict(self) -> dict[str, Any]:
        """All settings by name, but for the background `auto`: releases that knew no other wrote folders without it."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if (name, value) != ("background", "auto")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """A line that will be drawn."""

    line: int
    id: str
    prompt: str
    negative_prompt: str | None
    seed: int
    first_index: int
    n: int
    parameters: dict[str, Any]
    """All of `SamplingParams`, those of the model included; and `background` if the model draws transparency."""
    image_format: ImageFormat
    quality: int | None
    openai: dict[str, Any] | None
    """What its result in OpenAI's form needs to know; None if it is not wanted."""

    @property
    def sampling(self) -> SamplingParams:
        """The sampling parameters."""
        return SamplingParams.from_dict({key: self.parameters[key] for key in self.parameters.keys() - {"background"}})

    @property
    def background(self) -> DrawnBackground:
        """The background of the item's pictures: opaque if the model draws no transparency."""
        background: DrawnBackground = self.parameters.get("background", "opaque")
        return background


@dataclasses.dataclass(frozen=True, kw_only=True)
class InvalidLine:
    """A line that cannot be drawn, and why."""

    line: int
    id: str
    prompt: str
    code: str
    message: str
    param: str | None
    openai: dict[str, Any] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """Consecutive lines."""

    number: int
    entries: tuple[Item | InvalidLine, ...]
    digest: str
    """Of the entries, the model and the settings."""

    @property
    def name(self) -> str:
        return f"{self.number:06d}"

    @property
    def items(self) -> Iterator[Item]:
        return (entry for entry in self.entries if isinstance(entry, Item))

    @property
    def num_pictures(self) -> int:
        return sum(item.n for item in self.items)

    @property
    def num_invalid(self) -> int:
        return sum(isinstance(entry, InvalidLine) for entry in self.entries)

    @property
    def num_rows(self) -> int:
        """Rows of the engine that all pictures take: guided ones two each."""
        return sum(item.n * (2 if item.parameters["guidance_scale"] != 1 else 1) for item in self.items)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Shard":
        """The inverse of `to_json`."""
        values = json.loads(text)
        entries = tuple(InvalidLine(**one) if "code" in one else Item(**one) for one in values["entries"])
        return cls(number=values["number"], entries=entries, digest=values["digest"])


def item_seed(seed: int, item_id: str) -> int:
    """The seed of an item that has none: 31 bits of a digest of the batch's seed and the item's id."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{item_id}".encode()).digest()[:4]) >> 1


def picture_key(model_digest: str, item: Item, index: int) -> str:
    """32 hexadecimal digits of SHA-256 over all that decides a picture's bytes: its name."""
    parameters = sorted(item.parameters.items())
    drawn_from = [model_digest, item.prompt, item.negative_prompt, parameters, item.seed, index]
    text = json.dumps([*drawn_from, item.image_format, item.quality], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class _Body(GenerationRequest):
    """A line: a body, and the line's name."""

    id: str | None = Field(default=None, max_length=MAX_ID)

    @field_validator("id", mode="before")
    @classmethod
    def _number_as_text(cls, value: object) -> object:
        """A table with gaps has floats for numbers."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return str(value) if isinstance(value, int | float) else value


FIELDS = sorted(_Body.model_fields)
"""What a line may say."""


class Planner:
    """Turns lines into shards."""

    def __init__(self, facts: ModelFacts, model_id: str, settings: PlanSettings) -> None:
        """model_id: what lines may call the model."""
        self.facts = facts
        self.model_id = model_id
        self.settings = settings
        self._salt = json.dumps([facts.digest, settings.to_dict()])

    def shards(self, lines: Iterable[Line]) -> Iterator[Shard]:
        """All shards, in order. Only the last may have fewer pictures than a shard should have."""
        entries: list[Item | InvalidLine] = []
        number = size = 0
        for line in lines:
            entry = self.entry(line)
            entries.append(entry)
            size += self._size(line, entry)
            if size >= self.settings.shard_size:
                yield self._shard(number, entries)
                number, entries, size = number + 1, [], 0
        if entries:
            yield self._shard(number, entries)

    def _size(self, line: Line, entry: Item | InvalidLine) -> int:
        """Its pictures; of a refused line those that it asks for: mending it moves no other to the next shard."""
        if isinstance(entry, Item):
            return entry.n
        try:
            return min(max(1, int(line.fields.get("n", self.settings.n))), MAX_PICTURES)
        except (TypeError, ValueError, OverflowError):
            return self.settings.n

    def _shard(self, number: int, entries: list[Item | InvalidLine]) -> Shard:
        content = json.dumps([dataclasses.asdict(entry) for entry in entries], ensure_ascii=False)
        digest = hashlib.sha256((self._salt + content).encode()).hexdigest()
        return Shard(number=number, entries=tuple(entries), digest=digest)

    def entry(self, line: Line) -> Item | InvalidLine:
        """What a line asks for, or why it is refused."""
        try:
            if line.fault is not None:
                raise ApiError(400, line.fault, code="invalid_line")
            return self._item(line)
        except ApiError as error:
            code, message, param = error.code, error.message, error.param
        except PromptError as error:
            at_fault = "negative_prompt" if isinstance(error, NegativePromptError) else "prompt"
            code, message, param = "invalid_prompt", str(error), at_fault
        except (ParameterError, ConfigError) as error:
            code, message, param = "invalid_value", str(error), None
        except UnicodeEncodeError:
            code, message, param = "invalid_value", "a text has half a surrogate pair, which is no character", None
        except RecursionError:
            code, message, param = "invalid_value", "a value is nested too deep", None
        prompt, name = line.fields.get("prompt"), line.fields.get("id")
        return InvalidLine(
            line=line.number,
            id=(_shown(str(name)) if isinstance(name, str | int) else "") or f"line-{line.number}",
            prompt=_shown(prompt) if isinstance(prompt, str) else "",
            code=code,
            message=_shown(message),
            param=None if param is None else _shown(param),
            openai={} if line.openai else None,
        )

    def _item(self, line: Line) -> Item:
        body = self._body(line)
        params = SamplingParams.from_dict(self.facts.sampling.to_dict() | sampling_of(body))
        check_prompts(body.prompt, body.negative_prompt, params)
        if params.guided and not self.facts.guidance:
            raise ParameterError(f"guidance_scale is {params.guidance_scale}; {NOT_TRAINED_FOR_GUIDANCE}")
        self.facts.text_tokenizer.encode(body.prompt)
        try:
            if body.negative_prompt:
                self.facts.text_tokenizer.encode(body.negative_prompt)
        except PromptError as error:
            raise NegativePromptError(str(error).replace("the prompt", "the negative prompt", 1)) from error
        name = body.id or f"line-{line.number}"
        for text in (body.prompt, body.negative_prompt or "", name):
            if "\0" in text:
                raise ApiError(400, "a text has a NUL, which no PNG can carry", code="invalid_value")
        quality = self.settings.quality
        if body.output_compression is not None:
            quality = max(1, body.output_compression)  # the lowest of `encode_image` is 1, OpenAI's 0
        parameters = params.to_dict()
        background = background_of(body, self.model_id, self.facts.image_mode)
        if self.facts.image_mode == "RGBA":
            parameters["background"] = background
        return Item(
            line=line.number,
            id=name,
            prompt=body.prompt,
            negative_prompt=body.negative_prompt,
            seed=item_seed(self.settings.seed, name) if body.seed is None else body.seed,
            first_index=body.first_index,
            n=body.n,
            parameters=parameters,
            image_format=body.output_format,
            quality=None if body.output_format == "png" else quality,
            openai=self._openai(body) if line.openai else None,
        )

    def _body(self, line: Line) -> _Body:
        """The line as a body of the service. Raises `ApiError` as the service does."""
        settings = self.settings
        defaults = {"n": settings.n, "output_format": settings.image_format, "background": settings.background}
        values = defaults | line.fields
        try:
            body = _Body.model_validate(values)
        except ValidationError as error:
            raise field_error(list(error.errors()), FIELDS) from error
        for name, reason in NEVER_OFFLINE.items():
            if getattr(body, name):
                raise ApiError(400, f"{name} is not supported: {reason}", code="unsupported_parameter", param=name)
        if body.model not in (None, self.model_id, self.facts.name):
            message = f"there is no model {body.model!r} here; this batch is drawn by {self.model_id}"
            raise ApiError(404, message, code="model_not_found", param="model")
        if body.n > MAX_PICTURES:
            raise ApiError(400, f"n is {body.n}; the limit is {MAX_PICTURES}", code="invalid_value", param="n")
        check_output(body, self.model_id, self.facts.image_size)
        return body

    def _openai(self, body: GenerationRequest) -> dict[str, Any]:
        height, width = self.facts.image_size
        return {
            "model": body.model,
            "response_format": body.response_format,
            "return_codes": body.return_codes,
            "safety_identifier": body.safety_identifier,
            "num_text_tokens": len(self.facts.text_tokenizer.tokenize(body.prompt)),
            "size": f"{width}x{height}",
        }


def _shown(text: str) -> str:
    """A text from a line, fit to be written."""
    return text[:MAX_SHOWN].encode(errors="replace").decode()
