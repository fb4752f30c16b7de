"""A caller's mistake that the library finds, as a refusal: for the ingress and the engine alike.

It stands apart from `errors` and `jobs`, which do without the library: Ray Serve's proxy imports them, and its process
stays light.
"""

from dalle.errors import DalleError, ImageError, NegativePromptError, ParameterError, PromptError
from serving.jobs import Refused

__all__ = ["MaskError", "refusal_from"]


class MaskError(ImageError):
    """A mask that cannot be used."""


def refusal_from(error: DalleError) -> Refused:
    """The refusal, with status 400, that tells a caller about a mistake."""
    code, param = {
        PromptError: ("invalid_prompt", "prompt"),
        NegativePromptError: ("invalid_prompt", "negative_prompt"),
        MaskError: ("invalid_image", "mask"),
        ParameterError: ("invalid_value", None),
        ImageError: ("invalid_image", "image"),
    }.get(type(error), ("invalid_request", None))
    return Refused(status=400, code=code, message=str(error), param=param)
