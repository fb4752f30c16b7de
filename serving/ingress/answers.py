"""The response to a job's events: one JSON body, or a stream of server-sent events."""

import asyncio
import base64
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from dalle.checkpoint.vocabulary import unknown_words
from dalle.ranking import Ranking
from serving.errors import internal_error, to_http
from serving.ingress.store import ImageStore
from serving.jobs import Accepted, Drawn, Event, Job, ModelInfo, Preview, Refused
from serving.output import Output
from serving.responses import ImageData, ImagesResponse, InputTokens, OutputTokens, Timing, TranslationCard, Usage
from serving.schemas import Fields

__all__ = ["Answer"]

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15.0
"""Silence after which a stream sends a comment, so that proxies keep the connection open."""


class Answer:
    """Builds the response to a request from the events of its job."""

    accepted: Accepted

    def __init__(
        self,
        fields: Fields,
        info: ModelInfo,
        job: Job,
        kind: str,
        *,
        output: Output,
        store: ImageStore | None,
        base_url: str,
    ) -> None:
        """store: where pictures are stored that are returned as URLs below base_url; None if the body has them."""
        self.fields = fields
        self.info = info
        self.job = job
        self.kind = kind
        self.output = output
        self.store = store
        self.base_url = base_url
        self.started = time.monotonic()
        self.created = int(time.time())

    @property
    def headers(self) -> dict[str, str]:
        return {
            "X-Job-Id": self.job.id,
            "X-Queue-Position": str(self.accepted.position),
            "X-Estimate-Seconds": f"{self.accepted.estimate:.3f}",
        } | ({"X-Ignored-Fields": ", ".join(self.fields.without_effect)} if self.fields.without_effect else {})

    @property
    def warnings(self) -> list[str]:
        """Reasons why the pictures may not show what the prompt says."""
        translated, vocabulary = self.accepted.translated, self.info.vocabulary
        prompt, found = self.job.prompt, []
        if translated is not None:
            prompt = translated.prompt
            found += [] if translated.warning is None else [translated.warning]
        if prompt is not None and vocabulary is not None and not vocabulary.knows(prompt):
            found.append(f"{unknown_words(prompt)}; GET /v1/models/{self.info.id} lists what it knows")
        return found

    def usage(self, num_pictures: int) -> Usage:
        """Token counts of this many pictures."""
        kept = self.accepted.num_kept_codes * num_pictures
        drawn = self.info.num_codes * num_pictures - kept
        text = self.accepted.num_text_tokens
        return Usage(
            input_tokens=text + kept,
            input_tokens_details=InputTokens(text_tokens=text, image_tokens=kept),
            output_tokens=drawn,
            output_tokens_details=OutputTokens(image_tokens=drawn),
            total_tokens=text + kept + drawn,
        )

    def timing(self, queue_seconds: float) -> Timing:
        total = time.monotonic() - self.started
        return Timing(queue=round(queue_seconds, 4), estimate=round(self.accepted.estimate, 4), total=round(total, 4))

    async def whole(self, drawn: list[Drawn]) -> dict[str, Any]:
        """The JSON body of a response that is not streamed."""
        drawn = sorted(drawn, key=lambda one: one.index if one.ranking is None else one.ranking.rank)
        body = ImagesResponse(
            created=self.created,
            id=self.job.id,
            model=self.info.id,
            data=[await self._data(one) for one in drawn],
            background=self.job.background,
            output_format=self.fields.output_format,
            size=self.output.size,
            enlargement=self.output.enlargement if self.output.enlargement > 1 else None,
            kept=None if self.job.given is None else self.job.given.kept,
            **_comparison(drawn[0].ranking),
            translation=TranslationCard.of(self.accepted.translated),
            ignored=list(self.fields.without_effect) or None,
            warnings=self.warnings or None,
            safety_identifier=self.fields.safety_identifier,
            seed=self.job.seed,
            system_fingerprint=self.accepted.fingerprint,
            usage=self.usage(len(drawn)),
            timing=self.timing(max(one.queue_seconds for one in drawn)),
        )
        return body.model_dump(mode="json", exclude_none=True)

    async def _data(self, one: Drawn) -> ImageData:
        codes = one.codes if self.fields.return_codes else None
        data = ImageData(seed=self.job.seed, index=one.index, codes=codes, **_place(one.ranking))
        data.revised_prompt = self._revised_prompt
        if self.store is not None:
            name = await asyncio.to_thread(self.store.put, one.image, self.fields.output_format)
            return data.model_copy(update={"url": f"{self.base_url.rstrip('/')}/files/{name}"})
        return data.model_copy(update={"b64_json": base64.b64encode(one.image).decode()})

    @property
    def _revised_prompt(self) -> str | None:
        """The English prompt that is drawn instead of the one that was sent."""
        translated = self.accepted.translated
        return None if translated is None or translated.prompt == self.job.prompt else translated.prompt

    async def stream(self, events: AsyncIterator[Event], stack: contextlib.AsyncExitStack) -> AsyncIterator[bytes]:
        """The job's events as server-sent events. `stack` is closed at the end in every case."""
        async with stack:
            try:
                async for event in _with_keep_alive(events):
                    if event is None:
                        yield b": keepalive\n\n"
                    elif isinstance(event, Refused):
                        yield _sse("error", to_http(event).body)
                        return
                    else:
                        yield self._event(event)
            except Exception:
                logger.exception("a stream has failed")
                yield _sse("error", internal_error().body)

    def _event(self, event: Event) -> bytes:
        assert isinstance(event, Preview | Drawn)
        data: dict[str, Any] = {
            "b64_json": base64.b64encode(event.image).decode(),
            "created_at": int(time.time()),
            "size": self.output.size,
            "quality": "auto",
            "background": self.job.background,
            "output_format": self.fields.output_format,
            "id": self.job.id,
            "seed": self.job.seed,
            "index": event.index,
            "image_index": event.index - self.job.indices[0],
            "num_codes": self.info.num_codes,
        }
        if isinstance(event, Preview):
            data |= {"partial_image_index": event.number, "codes_done": event.num_codes}
            return _sse(f"{self.kind}.partial_image", data)
        if (ranking := event.ranking) is not None:
            data |= {"image_index": ranking.rank - 1} | _place(ranking) | _comparison(ranking)
        data |= {
            "codes_done": self.info.num_codes,
            "usage": self.usage(1).model_dump(),
            "timing": self.timing(event.queue_seconds).model_dump(),
            "system_fingerprint": self.accepted.fingerprint,
        }
        if (card := TranslationCard.of(self.accepted.translated)) is not None:
            data |= {"translation": card.model_dump(exclude_none=True)}
        if self._revised_prompt is not None:
            data["revised_prompt"] = self._revised_prompt
        if self.warnings:
            data["warnings"] = self.warnings
        if self.fields.return_codes:
            data["codes"] = event.codes
        return _sse(f"{self.kind}.completed", data)


def _place(ranking: Ranking | None) -> dict[str, Any]:
    """A picture's place among the candidates, if there were any."""
    return {} if ranking is None else {"score": ranking.score, "rank": ranking.rank}


def _comparison(ranking: Ranking | None) -> dict[str, Any]:
    """How the candidates were compared, if there were any."""
    if ranking is None:
        return {}
    clip = {} if ranking.clip is None else {"clip": ranking.clip}
    return {"candidates": ranking.best_of, "rerank": ranking.rerank, **clip}


def _sse(kind: str, data: dict[str, Any]) -> bytes:
    typed = data if kind == "error" else {"type": kind, **data}
    return f"event: {kind}\ndata: {json.dumps(typed)}\n\n".encode()


async def _with_keep_alive(events: AsyncIterator[Event]) -> AsyncIterator[Event | None]:
    """The events, and None after every `KEEP_ALIVE_SECONDS` without one."""
    waiting: asyncio.Future[Event | None] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(events, None))
            done, _ = await asyncio.wait((waiting,), timeout=KEEP_ALIVE_SECONDS)
            if not done:
                yield None
                continue
            event, waiting = waiting.result(), None
            if event is None:
                return
            yield event
    finally:
        if waiting is not None:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
