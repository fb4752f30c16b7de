"""Jobs that have come to an engine: who waits for them, what they need of it, and how far their pictures are."""

import dataclasses
from collections.abc import Callable

from dalle.decoder.sampling import SamplingParams
from dalle.errors import DalleError, ImageError, NegativePromptError, ParameterError, PromptError
from dalle.pipeline import DALLE, PromptRequest
from serving.engine.pictures import MaskError, kept_codes
from serving.engine.schedule import Scheduled
from serving.jobs import Event, Job, Refused

__all__ = ["OpenJob", "OpenPicture", "pictures_of", "refusal_of", "request_of"]


@dataclasses.dataclass(eq=False)
class OpenJob:
    """A job that has come."""

    job: Job
    post: Callable[[Event | None], None]
    """None says that the engine has failed."""
    arrived: float
    request: PromptRequest | None = None
    """Of its first picture, without what is kept of a given one."""
    num_open: int = 0
    """Pictures still to be drawn."""
    previewed: bool = False
    cancelled_at: int | None = None
    """Number of steps when its cancellation was asked for: set by any thread, read before every step."""


@dataclasses.dataclass(eq=False, kw_only=True)
class OpenPicture(Scheduled):
    """One picture of a job."""

    owner: OpenJob
    request: PromptRequest
    num_kept: int
    """Codes given in front, which cost no step."""
    num_previews: int = 0
    started: float = 0.0


def request_of(model: DALLE, job: Job) -> PromptRequest:
    """What the engine needs to draw a job's pictures, but for their indices and what is kept of a given one.

    Raises `DalleError` for a caller's mistake: see `refusal_of`.
    """
    params = SamplingParams.from_dict(model.sampling.to_dict() | job.params)
    return model.request(job.prompt, params, seed=job.seed, negative_prompt=job.negative_prompt)


def pictures_of(model: DALLE, one: OpenJob) -> list[OpenPicture]:
    """The pictures of a job, on the engine's thread: codes of a given picture are made here."""
    job, request = one.job, one.request
    assert request is not None
    kept = None if job.given is None else kept_codes(model, job.given)
    num_codes = model.num_codes
    num_kept = 0 if kept is None else int((kept < 0).int().argmax())
    span, parts = num_codes - num_kept, 2 * job.num_previews + 1
    # between the start and the end, with half a distance before the first: it comes before the middle
    due = {num_kept + span * (2 * k + 1) // parts for k in range(job.num_previews)} - {num_kept}
    return [
        OpenPicture(
            caller=job.caller,
            deadline=job.deadline,
            rows=2 if request.params.guided else 1,
            num_codes=num_kept,
            total_codes=num_codes,
            previews=sorted(due),
            owner=one,
            request=dataclasses.replace(request, index=index, kept=kept),
            num_kept=num_kept,
        )
        for index in job.indices
    ]


def refusal_of(error: DalleError) -> Refused:
    """What a caller's mistake is to the caller."""
    code, param = {
        PromptError: ("invalid_prompt", "prompt"),
        NegativePromptError: ("invalid_prompt", "negative_prompt"),
        MaskError: ("invalid_image", "mask"),
        ParameterError: ("invalid_value", None),
        ImageError: ("invalid_image", "image"),
    }.get(type(error), ("invalid_request", None))
    return Refused(status=400, code=code, message=str(error), param=param)
