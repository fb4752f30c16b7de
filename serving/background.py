"""The background of a request's pictures: the one check of a body's field that needs the library.

It stands apart from `errors` and `schemas`, which Ray Serve's proxy imports: its process loads no torch.
"""

from dalle.errors import ParameterError
from dalle.images import DrawnBackground, Mode, chosen_background
from serving.errors import ApiError
from serving.schemas import Fields

__all__ = ["background_of"]


def background_of(fields: Fields, model: str, mode: Mode) -> DrawnBackground:
    """The background of a request's pictures, for a model that draws in this mode. Raises `ApiError`."""
    try:
        return chosen_background(fields.background, mode=mode, model=model, format=fields.output_format)
    except ParameterError as error:
        raise ApiError(400, str(error), code="invalid_value", param="background") from error
