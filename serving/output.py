"""The output of a request: size and background of its pictures, and the fields that have no effect on them.

It stands apart from `errors` and `schemas`, which Ray Serve's proxy imports: its process loads no torch.
"""

import dataclasses
import re

from dalle.errors import ParameterError
from dalle.images import DrawnBackground, Mode, chosen_background, max_enlargement
from serving.errors import ApiError
from serving.schemas import HARMLESS, Fields

__all__ = ["Output", "output_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """Size and background of a request's pictures."""

    background: DrawnBackground
    enlargement: int
    """Whole factor between the model's size and the requested one."""
    height: int
    width: int

    @property
    def size(self) -> str:
        """The size, such as `512x512` (width x height)."""
        return f"{self.width}x{self.height}"


def output_of(fields: Fields, *, model: str, image_size: tuple[int, int], mode: Mode, lenient: bool = False) -> Output:
    """The output of a request to a model that draws pictures of image_size (height, width) in this mode.

    lenient: ignore fields that have no effect, instead of refusing them.
    Raises `ApiError` for a size, compression or background that is not possible.
    """
    if fields.without_effect and not lenient:
        name, value = next(iter(fields.without_effect.items()))
        if name in type(fields).model_fields:
            raise ApiError(400, f"{name} is {str(value)[:80]!r}: {HARMLESS[name]}", code="invalid_value", param=name)
        raise ApiError(400, f"{name} is not supported: {HARMLESS[name]}", code="unsupported_parameter", param=name)
    if fields.output_format == "png" and fields.output_compression not in (None, 100):
        message = f"output_compression is {fields.output_compression}, but png is lossless: choose jpeg or webp"
        raise ApiError(400, message, code="invalid_value", param="output_compression")
    try:
        background = chosen_background(fields.background, mode=mode, model=model, format=fields.output_format)
    except ParameterError as error:
        raise ApiError(400, str(error), code="invalid_value", param="background") from error
    factor = _enlargement(fields.size, model, image_size)
    return Output(
        background=background, enlargement=factor, height=factor * image_size[0], width=factor * image_size[1]
    )


def _enlargement(size: str, model: str, image_size: tuple[int, int]) -> int:
    """The factor between a model's image_size (height, width) and a requested size: 1 for `auto`."""
    height, width = image_size
    if size in ("", "auto"):
        return 1
    given = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    factor, largest = int(given[1]) // width if given else 0, max_enlargement(height, width)
    if (
        given is None
        or not 1 <= factor <= largest
        or (int(given[1]), int(given[2])) != (factor * width, factor * height)
    ):
        multiples = f", a multiple up to {largest * width}x{largest * height}," if largest > 1 else ""
        message = f"size is {size[:80]!r}; the model {model} draws {width}x{height}: send that{multiples} or auto"
        raise ApiError(400, message, code="invalid_value", param="size")
    return factor
