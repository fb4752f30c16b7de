"""Jobs that an engine has received and not finished, and their pictures."""

import dataclasses
from collections.abc import Callable, Mapping

from torch import Tensor

from dalle.decoder.sampling import SamplingParams
from dalle.pipeline import DALLE, PromptRequest
from dalle.translation import TranslatedPrompt
from serving.attributes import PICTURE
from serving.engine.pictures import kept_codes
from serving.engine.schedule import Scheduled
from serving.jobs import Event, Job
from serving.tracing import JobSpan

__all__ = ["OpenJob", "OpenPicture", "pictures_of", "request_of"]


@dataclasses.dataclass(eq=False, kw_only=True)
class OpenJob:
    """A job that an engine has received."""

    job: Job
    request: PromptRequest
    """Request for the first picture, without the codes that are kept of a given one."""
    post: Callable[[Event | None], None]
    """Sends an event to the caller, from any thread; None says that the engine has failed."""
    arrived: float
    """When the job arrived, on the monotonic clock."""
    num_open: int
    """Pictures still to be drawn, candidates included."""
    translated: TranslatedPrompt | None = None
    """The prompts that are drawn, if they were translated."""
    span: JobSpan | None = None
    """Its span; None if traces are off."""
    previewed: bool = False
    """Whether a preview has been sent."""
    finished: "dict[int, tuple[OpenPicture, Tensor]]" = dataclasses.field(default_factory=dict)
    """Pictures that are compared with others, by index, with their codes (N,)."""
    cancelled_at: int | None = None
    """Number of the engine's steps when the job was cancelled: set by any thread, read before every step."""


@dataclasses.dataclass(eq=False, kw_only=True)
class OpenPicture(Scheduled):
    """One picture of a job."""

    open_job: OpenJob
    request: PromptRequest
    num_kept: int
    """Kept codes in front of the first one to draw; they cost no step."""
    queued: float
    """When the picture was queued, the last time if it has given its slots up, on the monotonic clock."""
    num_previews: int = 0
    """Previews sent so far."""
    started: float = 0.0
    """When the picture got slots, on the monotonic clock; 0 before."""
    prefilled: float = 0.0
    """When its slots were filled, on the same clock; 0 before."""

    def add_span(
        self, name: str, start: float, end: float, attributes: Mapping[str, int] | None = None, error: str | None = None
    ) -> None:
        """Add the span of a phase of this picture, if traces are on: see `JobSpan.add`."""
        if self.open_job.span is not None:
            self.open_job.span.add(name, start, end, {PICTURE: self.request.index, **(attributes or {})}, error)


def request_of(model: DALLE, job: Job, translated: TranslatedPrompt) -> PromptRequest:
    """Tokenize a job's prompts, as they are drawn, into the request for its first picture, without the codes kept of a
    given one.

    Raises `DalleError` for a caller's mistake: see `serving.refusals`.
    """
    params = SamplingParams.from_dict(model.sampling.to_dict() | job.params)
    return model.request(
        translated.prompt,
        params,
        seed=job.seed,
        negative_prompt=translated.negative_prompt,
        translation=translated.translation,
    )


def pictures_of(model: DALLE, open_job: OpenJob) -> list[OpenPicture]:
    """The pictures of a job, and then its candidates, which have no previews. Encodes a given picture to codes, so call
    this on the engine's thread."""
    job, request = open_job.job, open_job.request
    kept = None if job.given is None else kept_codes(model, job.given)
    num_codes = model.num_codes
    num_kept = 0 if kept is None else int((kept < 0).int().argmax())
    span, parts = num_codes - num_kept, 2 * job.num_previews + 1
    # evenly spaced from start to end, but half an interval before the first: it comes before the middle
    due = {num_kept + span * (2 * k + 1) // parts for k in range(job.num_previews)} - {num_kept}
    first = job.indices[-1] + 1
    candidates = range(first, first + (job.num_candidates or 0))
    return [
        OpenPicture(
            caller=job.caller,
            deadline=job.deadline,
            num_slots=request.num_slots,
            num_codes=num_kept,
            total_codes=num_codes,
            previews=[] if index in candidates else sorted(due),
            spare=job.spare or index in candidates,
            candidate=not job.spare and index in candidates,
            judged=job.num_candidates is not None,
            job=open_job,
            open_job=open_job,
            request=dataclasses.replace(request, index=index, kept=kept),
            num_kept=num_kept,
            queued=open_job.arrived,
        )
        for index in (*job.indices, *candidates)
    ]
