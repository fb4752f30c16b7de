"""What lies behind a picture: nothing, where a model draws transparency, or white.

`transparent` keeps a picture's alpha, `opaque` lays the picture over white. `auto` is transparent wherever that can be:
for a model that draws transparency, in a format that holds it.
"""

from typing import Literal, get_args

from PIL import Image

from dalle.errors import ParameterError
from dalle.images import ImageFormat, Mode, to_mode

__all__ = ["BACKGROUNDS", "Background", "DrawnBackground", "choose_background", "with_background"]

Background = Literal["transparent", "opaque", "auto"]
"""What may be asked for."""
DrawnBackground = Literal["transparent", "opaque"]
"""What a picture has."""
BACKGROUNDS: tuple[Background, ...] = get_args(Background)
WITHOUT_ALPHA: frozenset[ImageFormat] = frozenset({"jpeg"})


def choose_background(background: str, *, model: str, mode: Mode, image_format: ImageFormat = "png") -> DrawnBackground:
    """The background that a picture gets, for one of `BACKGROUNDS` that is asked for.

    model, mode: the model's name, and the mode of its pictures: RGBA if it draws transparency.
    Raises `ParameterError` for another value, and for `transparent` where a picture cannot be.
    """
    if background not in BACKGROUNDS:
        raise ParameterError(f"background is {background[:80]!r}; it must be transparent, opaque or auto")
    if background == "transparent" and mode == "RGB":
        raise ParameterError(
            f"background is 'transparent', but the model {model} draws no transparency: it must be opaque or auto"
        )
    if background == "transparent" and image_format in WITHOUT_ALPHA:
        raise ParameterError(
            f"background is 'transparent', but {image_format} has no transparency: the formats that have it are png "
            "and webp"
        )
    can_be_transparent = mode == "RGBA" and image_format not in WITHOUT_ALPHA
    return "transparent" if background != "opaque" and can_be_transparent else "opaque"


def with_background(image: Image.Image, background: DrawnBackground) -> Image.Image:
    """A picture as it is drawn, RGB or RGBA, with its background: RGB, transparency over white, for an opaque one."""
    return image if background == "transparent" else to_mode(image, "RGB")
