"""Lines -> validated items, in shards: a pure function of the prompts, the model and the settings.

A line is validated by the same code as a body of `POST /v1/images/generations`, so that both accept the same fields
with the same meaning. A line that fails becomes an `InvalidLine` with the service's error code and message.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, field_validator

from dalle.checkpoint import ModelFacts
from dalle.checkpoint.translator import default_translate, prompt_translator
from dalle.decoder.request import NOT_TRAINED_FOR_GUIDANCE
from dalle.decoder.sampling import SamplingParams
from dalle.defaults import DEFAULT_RERANK, DEFAULT_TRANSLATOR, Rerank, Translate
from dalle.errors import ConfigError, NegativePromptError, ParameterError, PromptError
from dalle.images import Background, ImageFormat
from dalle.pipeline import MAX_PICTURES, check_prompts, negative_prompt_errors
from dalle.translate.prompts import PromptTranslator
from dalle.translation import TranslatedPrompt
from serving.batch.choices import Choices
from serving.batch.items import InvalidLine, Item, Layout, Shard
from serving.batch.prompts import Line
from serving.errors import ApiError, field_error
from serving.output import Output, output_of
from serving.schemas import GenerationRequest, sampling_of

__all__ = ["FIELDS", "LEFT_OUT", "PlanSettings", "Planner", "item_seed"]

MAX_KEPT = 65536
"""Translations that are kept in memory."""
MAX_ID = MAX_SHOWN = 1000
"""Limits in characters: of an item's id, and of each text in the report of an invalid line."""
UNSUPPORTED = {
    "stream": "a batch does not stream",
    "partial_images": "a batch sends no previews",
    "deadline": "a batch has no deadlines",
}
"""Fields of a request that a line may not use, with the reasons."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """The options that decide, with the prompts and the model, which pictures are drawn and where they are kept."""

    seed: int = 0
    """Seed of the batch. An item without a seed gets one computed from this and its id."""
    n: int = 1
    """Number of pictures per item, unless the item gives its own."""
    image_format: ImageFormat = "png"
    """Format of picture files, unless the item gives its own."""
    quality: int | None = None
    """Quality of JPEG and WebP, 1 to 100; None for the default of `encode_image`."""
    background: Background = "auto"
    """Background of pictures, unless the item gives its own."""
    layout: Layout = "files"
    signed: bool = False
    """Whether PNGs get a signed C2PA manifest."""
    shard_size: int = 64
    """Minimum number of pictures, or candidates, in every shard but the last."""
    best_of: int | None = None
    """Number of candidates per item, unless the item says; None for none."""
    rerank: Rerank | None = None
    """Judge of the candidates, unless the item says; None for the default one. It needs `best_of`."""
    clip: str | None = None
    """Name or directory of the CLIP model that judges; None for the default one."""
    translate: Translate | None = None
    """Language that prompts are translated from into English, unless the item says; None for the model's default."""
    translator: str | None = None
    """Name or directory of the translator; None for the default one."""
    safety: dict[str, Any] | None = None
    """Everything that decides what the safety checks block (`identity_of`); None if nothing is checked."""

    def to_dict(self) -> dict[str, Any]:
        """All settings by name, without the background if it is `auto`, and without safety, translation and candidates
        if there are none: earlier releases wrote no such keys. The CLIP model is left out: items have its digest."""
        values = dataclasses.asdict(self)
        del values["clip"]
        values["translate"] = self.translate or "off"
        if self.best_of is not None:
            values["rerank"] = self.rerank or DEFAULT_RERANK
        return {name: value for name, value in values.items() if LEFT_OUT.get(name, ...) != value}


LEFT_OUT: dict[str, Any] = {
    "background": "auto",
    "safety": None,
    "translate": "off",
    "translator": None,
    "best_of": None,
    "rerank": None,
}
"""Settings that are not written if they have these values."""


def item_seed(seed: int, item_id: str) -> int:
    """The seed of an item without one: 31 bits of a digest of the batch's seed and the item's id."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{item_id}".encode()).digest()[:4]) >> 1


class _Body(GenerationRequest):
    """The fields of a line: those of a request, and an id. Values can be text, as the cells of a CSV file are."""

    model_config = ConfigDict(strict=False)

    id: str | None = Field(default=None, max_length=MAX_ID)

    @field_validator("id", mode="before")
    @classmethod
    def _number_as_text(cls, value: object) -> object:
        """Turn a number into text: a column of integers with gaps is read as floats, 7.0 for 7."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return str(value) if isinstance(value, int | float) else value


FIELDS = sorted(_Body.model_fields)
"""Names of all fields that a line may have."""


class Planner:
    """Validates lines and groups them into shards."""

    def __init__(self, facts: ModelFacts, model_id: str, settings: PlanSettings) -> None:
        """model_id: the name by which lines may refer to the model, besides its own name. Raises `ParameterError` if
        the settings have prompts translated that cannot be, or candidates compared that cannot be, and
        `CheckpointError` for a translator or a CLIP model that is not there or damaged.
        """
        if settings.translate is None:
            default = default_translate(
                text_tokenizer=facts.text_tokenizer,
                prompt_language=facts.prompt_language,
                vocabulary=facts.vocabulary,
            )
            settings = dataclasses.replace(settings, translate=default)
        self.facts = facts
        self.model_id = model_id
        self.settings = settings
        if settings.translate != "off" or settings.translator is not None:
            _ = self._translator  # a mistake is found before any line is read
        self.choices = Choices(
            facts,
            model_id,
            n=settings.n,
            best_of=settings.best_of,
            rerank=settings.rerank,
            clip=settings.clip,
        )
        # the prompts are read three times
        self._translated = functools.lru_cache(MAX_KEPT)(self._translated_anew)
        self._salt = json.dumps([facts.digest, settings.to_dict()])

    def shards(self, lines: Iterable[Line]) -> Iterator[Shard]:
        """Yield all shards, in order. Each has at least `shard_size` pictures or candidates, except the last."""
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
        """The number of pictures of a line, or of its candidates. An invalid line counts with the number that it asks
        for, so that correcting it does not move the lines after it to other shards."""
        if isinstance(entry, Item):
            return len(entry.indices)
        asked = [
            _whole(line.fields.get("n", self.settings.n), self.settings.n),
            _whole(line.fields.get("best_of", self.settings.best_of), 1),
        ]
        return min(max(1, *asked), MAX_PICTURES)

    def _shard(self, number: int, entries: list[Item | InvalidLine]) -> Shard:
        content = json.dumps([_without_nothing(dataclasses.asdict(entry)) for entry in entries], ensure_ascii=False)
        digest = hashlib.sha256((self._salt + content).encode()).hexdigest()
        return Shard(number=number, entries=tuple(entries), digest=digest)

    def entry(self, line: Line) -> Item | InvalidLine:
        """Validate a line: returns the item that it asks for, or why it is invalid."""
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
            code, message, param = "invalid_value", "a text contains an unpaired surrogate (no character)", None
        except RecursionError:
            code, message, param = "invalid_value", "a value is nested too deeply", None
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
        drawn = self._translated(body.prompt, body.negative_prompt, body.translate or "off")
        assert drawn.prompt is not None
        if params.guided and not self.facts.guidance:
            raise ParameterError(f"guidance_scale is {params.guidance_scale}; {NOT_TRAINED_FOR_GUIDANCE}")
        tokens = self.facts.text_tokenizer.tokenize(drawn.prompt)
        self.facts.text_tokenizer.fit(tokens)
        if drawn.negative_prompt:
            with negative_prompt_errors():
                self.facts.text_tokenizer.encode(drawn.negative_prompt)
        name = body.id or f"line-{line.number}"
        if "\0" in name:
            raise ApiError(400, "the id has a NUL character: leave it out", code="invalid_value", param="id")
        quality = self.settings.quality
        if body.output_compression is not None:
            quality = max(1, body.output_compression)  # the lowest of `encode_image` is 1, OpenAI's 0
        parameters = params.to_dict()
        output = output_of(body, model=self.model_id, image_size=self.facts.image_size, mode=self.facts.image_mode)
        if self.facts.image_mode == "RGBA":
            parameters["background"] = output.background
        if output.enlargement > 1:
            parameters["enlargement"] = output.enlargement
        return Item(
            line=line.number,
            id=name,
            prompt=drawn.prompt,
            negative_prompt=drawn.negative_prompt,
            seed=item_seed(self.settings.seed, name) if body.seed is None else body.seed,
            first_index=body.first_index,
            n=body.n,
            parameters=parameters,
            image_format=body.output_format,
            quality=None if body.output_format == "png" else quality,
            openai=self._openai(body, output, len(tokens)) if line.openai else None,
            translation=None if drawn.translation is None else drawn.translation.to_dict(),
            choice=self.choices.choice(body),
        )

    def _translated_anew(self, prompt: str, negative_prompt: str | None, translate: Translate) -> TranslatedPrompt:
        """The prompts of an item as they are drawn."""
        if translate == "off":
            return TranslatedPrompt(prompt=prompt, negative_prompt=negative_prompt)
        return self._translator(prompt, negative_prompt, translate=translate)

    @functools.cached_property
    def _translator(self) -> PromptTranslator:
        translator = self.settings.translator
        return prompt_translator(
            DEFAULT_TRANSLATOR if translator is None else translator,
            name=self.facts.name,
            text_tokenizer=self.facts.text_tokenizer,
            prompt_language=self.facts.prompt_language,
            vocabulary=self.facts.vocabulary,
        )

    def _body(self, line: Line) -> _Body:
        """Validate a line as the body of a request to the service. Raises `ApiError`, as the service does."""
        settings = self.settings
        defaults = {
            "n": settings.n,
            "output_format": settings.image_format,
            "background": settings.background,
            "translate": settings.translate,
            "best_of": settings.best_of,
        }
        values = defaults | line.fields
        try:
            body = _Body.model_validate(values)
        except ValidationError as error:
            raise field_error(list(error.errors()), FIELDS) from error
        for name, reason in UNSUPPORTED.items():
            if getattr(body, name):
                raise ApiError(400, f"{name} is not supported: {reason}", code="unsupported_parameter", param=name)
        if body.model not in (None, self.model_id, self.facts.name):
            message = f"there is no model {body.model!r} here; this batch is drawn by {self.model_id}"
            raise ApiError(404, message, code="model_not_found", param="model")
        if body.n > MAX_PICTURES:
            raise ApiError(400, f"n is {body.n}; the limit is {MAX_PICTURES}", code="invalid_value", param="n")
        return body

    @staticmethod
    def _openai(body: GenerationRequest, output: Output, num_text_tokens: int) -> dict[str, Any]:
        return {
            "model": body.model,
            "response_format": body.response_format or "b64_json",
            "return_codes": body.return_codes,
            "safety_identifier": body.safety_identifier,
            "num_text_tokens": num_text_tokens,
            "size": output.size,
        }


def _whole(value: Any, default: int) -> int:
    """A value as a whole number; the default if it is none."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return default


def _without_nothing(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry without a translation and candidates that it does not have: earlier releases wrote no such keys."""
    return {name: value for name, value in entry.items() if name not in ("translation", "choice") or value is not None}


def _shown(text: str) -> str:
    """A text from a line, truncated and without unpaired surrogates, so that it can be written to a report."""
    return text[:MAX_SHOWN].encode(errors="replace").decode()
