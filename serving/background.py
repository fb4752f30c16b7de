"""What lies behind the pictures of a request: the one question of a body's that needs the library to be answered.

`errors` and `schemas` do without the library: Ray Serve's proxy imports them, and its process stays light.
"""

from dalle.errors import ParameterError
from dalle.images import DrawnBackground, Mode, chosen_background
from serving.errors import ApiError
from serving.schemas import Fields

__all__ = ["background_of"]


def background_of(fields: Fields, model: str, mode: Mode) -> DrawnBackground:
    """The background that a request's pictures get of a model whose pictures have this mode. Raises `ApiError`."""
    try:
        return chosen_background(fields.background, mode=mode, model=model, format=fields.output_format)
    except ParameterError as error:
        raise ApiError(400, str(error), code="invalid_value", param="background") from error
