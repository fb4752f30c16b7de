"""Refusals of callers' mistakes that the library finds, for the ingress and the engine.

It stands apart from `errors` and `jobs`, which Ray Serve's proxy imports: its process loads no torch.
"""

from dalle.errors import DalleError, ImageError, NegativePromptError, ParameterError, PromptError
from serving.jobs import Refused
from serving.safety.errors import ModerationError

__all__ = ["MaskError", "refusal_from"]


class MaskError(ImageError):
    """A mask that cannot be used."""


KINDS: dict[type, tuple[str, str | None]] = {
    PromptError: ("invalid_prompt", "prompt"),
    NegativePromptError: ("invalid_prompt", "negative_prompt"),
    MaskError: ("invalid_image", "mask"),
    ParameterError: ("invalid_value", None),
    ImageError: ("invalid_image", "image"),
}
"""Code and parameter of a refusal by the class of the error, which holds for its subclasses too."""


def refusal_from(error: DalleError) -> Refused:
    """The refusal of a caller's mistake: status 400, with the error's message; and the one of a safety check."""
    if isinstance(error, ModerationError):
        return error.refused
    code, param = next((KINDS[kind] for kind in type(error).__mro__ if kind in KINDS), ("invalid_request", None))
    return Refused(status=400, code=code, message=str(error), param=param)
