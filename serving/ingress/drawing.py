"""From a parsed request to its pictures: validated against its model, sent as a job, and collected into an answer."""

import asyncio
import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Literal, Self
from uuid import uuid4

from fastapi import FastAPI

from dalle.defaults import Translate
from dalle.errors import DalleError, PromptError
from dalle.pipeline import NEEDS_GUIDANCE
from serving.backend import Backend
from serving.candidates import judge_of_request
from serving.errors import ApiError, to_http
from serving.ingress.answers import Answer
from serving.ingress.given import prepare, prompt_of
from serving.ingress.middleware import describe_prompt
from serving.ingress.spans import JobSpan
from serving.ingress.uploads import Upload
from serving.jobs import Accepted, Drawn, Event, Given, Job, ModelInfo, Refused
from serving.output import output_of
from serving.refusals import refusal_from
from serving.schemas import MAX_PROMPT_LENGTH, EditFields, Fields, GenerationRequest, VariationFields, sampling_of
from serving.settings import LimitSettings, Settings
from serving.tracing import Tracing

__all__ = ["Asked", "Drawing", "Kind", "draw_whole", "find_model", "prepare_drawing"]

Kind = Literal["image_generation", "image_edit"]
FIELDS = {one.__name__: one for one in (GenerationRequest, EditFields, VariationFields)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A request for pictures as it was parsed, with everything that its answer depends on."""

    fields: Fields
    upload: Upload | None
    kind: Kind
    """Prefix of the names of its events."""
    caller: str
    user: str | None
    base_url: str
    """The service's URL, as the caller reached it."""

    def to_json(self) -> str:
        """Everything but the files of the upload."""
        values = {
            "type": type(self.fields).__name__,
            "fields": self.fields.model_dump(mode="json") | self.fields.without_effect,
            "kind": self.kind,
            "caller": self.caller,
            "user": self.user,
            "base_url": self.base_url,
        }
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, upload: Upload | None) -> Self:
        """The inverse of `to_json`."""
        values = json.loads(text)
        fields = FIELDS[values.pop("type")].model_validate(values.pop("fields"))
        return cls(fields=fields, upload=upload, **values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """A request that is ready to be drawn."""

    backend: Backend
    info: ModelInfo
    job: Job
    answer: Answer
    tracing: Tracing | None
    log: dict[str, Any]
    """Entries for the access log."""

    def events(self) -> AsyncGenerator[Event]:
        """The events of the job. Leaving early cancels it."""
        if self.tracing is None:
            return self.backend.draw(self.info.id, self.job)
        span = JobSpan(self.tracing, self.info, self.answer.fields, self.job)
        job = dataclasses.replace(self.job, trace=span.headers)
        return span.follow(job, self.backend.draw(self.info.id, job))


async def find_model(backend: Backend, settings: Settings, name: str | None) -> ModelInfo:
    """The model of this id or alias, the default without one. Raises `ApiError` 404, and 503 if it is not loaded
    yet."""
    chosen = settings.aliases.get(name, name) if name else backend.names[0]
    if chosen not in backend.names:
        known = ", ".join(backend.names)
        raise ApiError(404, f"there is no model {name!r}; there are {known}", code="model_not_found", param="model")
    found = next((info for info in await backend.models() if info.id == chosen), None) or await backend.load(chosen)
    if found is not None:
        return found
    message = f"the model {chosen} is not loaded yet; try again in a moment"
    raise ApiError(503, message, code="not_ready", param="model", headers={"Retry-After": "2"})


async def prepare_drawing(app: FastAPI, asked: Asked, *, job_id: str | None = None) -> Drawing:
    """Validate a request against its model and the settings, and make its job. Raises `ApiError`."""
    settings: Settings = app.state.settings
    fields, callers = asked.fields, app.state.callers
    limits: LimitSettings = callers.limits
    info = await find_model(app.state.backend, settings, fields.model)
    output = output_of(
        fields,
        model=info.id,
        image_size=(info.height, info.width),
        mode=info.image_mode,
        lenient=settings.lenient,
    )
    _check(fields, info, limits)
    rerank = judge_of_request(fields, model=info.id, judges=info.rerank, max_best_of=limits.max_best_of)
    translate = _translate(fields, info)
    as_urls = _as_urls(fields, settings)
    prompt, given = fields.prompt, None
    if asked.upload is not None:
        prompt, given = await asyncio.to_thread(_read, asked.upload, fields, info, limits.max_image_pixels)
        if fields.best_of is not None and rerank == "clip" and prompt is None:
            message = "there is no prompt, and clip compares pictures with one: send a prompt, or rerank likelihood"
            raise ApiError(400, message, code="invalid_value", param="rerank")
    job = Job(
        id=job_id or f"job_{uuid4().hex}",
        owner=asked.caller,
        caller=callers.turn(asked.caller, asked.user),
        prompt=prompt,
        negative_prompt=fields.negative_prompt,
        params=sampling_of(fields),
        seed=secrets.randbelow(2**31) if fields.seed is None else fields.seed,
        indices=tuple(range(fields.first_index, fields.first_index + fields.n)),
        num_candidates=None if fields.best_of is None else fields.best_of - fields.n,
        rerank=rerank,
        translate=translate,
        translate_prompt=fields.prompt is not None,
        given=given,
        deadline=time.time() + (fields.deadline or limits.deadline),
        num_previews=fields.partial_images,
        output_format=fields.output_format,
        quality=_quality(fields),
        background=output.background,
        enlargement=output.enlargement,
    )
    log = {"job": job.id, "model": info.id, "n": fields.n, "seed": job.seed}
    return Drawing(
        backend=app.state.backend,
        info=info,
        job=job,
        answer=Answer(
            fields,
            info,
            job,
            asked.kind,
            output=output,
            store=app.state.store if as_urls else None,
            base_url=settings.public_url or asked.base_url,
        ),
        tracing=app.state.tracing,
        log=log | describe_prompt(prompt, whole=settings.log_prompts),
    )


async def draw_whole(
    drawing: Drawing, events: AsyncGenerator[Event], on_event: Callable[[Event], Awaitable[None]] | None = None
) -> dict[str, Any] | None:
    """Draw a request, and return the body of its response; None if the events end early, since nobody waits for them.

    on_event: called with each event, in order.
    Raises `ApiError` if the job is refused or stopped.
    """
    drawn = []
    async with contextlib.aclosing(events):
        async for event in events:
            if on_event is not None:
                await on_event(event)
            if isinstance(event, Refused):
                raise to_http(event)
            if isinstance(event, Accepted):
                drawing.answer.accepted = event
            if isinstance(event, Drawn):
                drawn.append(event)
    if len(drawn) < len(drawing.job.indices):
        return None
    return await drawing.answer.whole(drawn)


def _check(fields: Fields, info: ModelInfo, limits: LimitSettings) -> None:
    """Validate fields whose limits depend on the model or the service. Raises `ApiError`."""
    if fields.n > limits.max_n:
        raise ApiError(400, f"n is {fields.n}; the limit is {limits.max_n}", code="invalid_value", param="n")
    if fields.deadline is not None and fields.deadline > limits.deadline:
        message = f"deadline is {fields.deadline} s; the limit is {limits.deadline:g} s"
        raise ApiError(400, message, code="invalid_value", param="deadline")
    if (rows := getattr(fields, "keep_rows", None)) is not None and rows >= info.grid_rows:
        message = f"keep_rows is {rows}; it must be below {info.grid_rows}, the model's number of grid rows"
        raise ApiError(400, message, code="invalid_value", param="keep_rows")
    if fields.partial_images > info.grid_rows:
        message = f"partial_images is {fields.partial_images}; the model {info.id} has {info.grid_rows} grid rows"
        raise ApiError(400, message, code="invalid_value", param="partial_images")
    if fields.negative_prompt is not None and (fields.guidance_scale or info.sampling["guidance_scale"]) == 1:
        raise ApiError(400, NEEDS_GUIDANCE, code="invalid_value", param="negative_prompt")
    if fields.partial_images and not fields.stream:
        raise ApiError(400, "partial_images needs stream", code="invalid_value", param="partial_images")


def _translate(fields: Fields, info: ModelInfo) -> Translate:
    """The language that a request's prompts are translated from. Raises `ApiError` for one that is not possible."""
    chosen = fields.translate or info.translate
    if chosen == "off":
        return chosen
    fault = info.translation_fault
    if fault is None and chosen not in ("auto", "en", *info.translates):
        fault = f"prompts of the model {info.id} are translated from {', '.join(info.translates)}"
    if fault is not None:
        message = f"translate is {chosen}; {fault}; off draws prompts as they are"
        raise ApiError(400, message, code="unsupported_value", param="translate")
    return chosen


def _as_urls(fields: Fields, settings: Settings) -> bool:
    """Whether a request is answered with URLs. Raises `ApiError` if it asks for URLs that are not possible."""
    if fields.response_format == "url" and (settings.store is None or fields.stream):
        reason = "a stream contains its pictures" if fields.stream else "this service stores no pictures"
        message = f"response_format url is not possible: {reason}; send b64_json"
        raise ApiError(400, message, code="unsupported_value", param="response_format")
    return (fields.response_format or settings.response_format) == "url" and not fields.stream


def _quality(fields: Fields) -> int | None:
    """Quality for `encode_image`, whose lowest is 1, where OpenAI's is 0."""
    if fields.output_format == "png" or fields.output_compression is None:
        return None
    return max(1, fields.output_compression)


def _read(upload: Upload, fields: Fields, info: ModelInfo, max_pixels: int) -> tuple[str | None, Given]:
    """The prompt of the fields, or else of the picture's receipt; and the prepared picture. Raises `ApiError`."""
    prompt = fields.prompt
    try:
        if prompt is None:
            prompt = prompt_of(upload.image, max_pixels=max_pixels)
        if prompt is not None and len(prompt) > MAX_PROMPT_LENGTH:
            raise PromptError(f"the prompt has {len(prompt)} characters; the limit is {MAX_PROMPT_LENGTH}")
        keep_rows = getattr(fields, "keep_rows", None)
        given = prepare(
            upload.image,
            upload.mask,
            keep_rows,
            info,
            own_mask=isinstance(fields, EditFields),
            max_pixels=max_pixels,
        )
        return prompt, given
    except DalleError as error:
        raise to_http(refusal_from(error)) from error
