"""Renderer of pictures of packages: each becomes a WebP of 128 x 128 pixels in RGBA, as a pure function of its job.

SVG files are rendered by resvg, as other renderers lack the filters of fluent-emoji or the masks of circle-flags. They
are rendered at twice the size and halved with a box filter, for antialiasing.
"""

import dataclasses
import io
from pathlib import Path
from typing import Literal

import resvg_py
from PIL import Image, ImageOps

from dalle.errors import DataError
from training.pairs.shard_writer import encode_webp

__all__ = ["SIZE", "RenderJob", "render"]

SIZE = 128
"""Side of the finished pictures in pixels."""
CLIP_ART_WIDTH = 256
"""Width in pixels at which a page of clip art is rendered first."""
MAX_CLIP_ART_WIDTH = 6 * CLIP_ART_WIDTH
"""Largest width in pixels at which a page with a small drawing is rendered again."""
SMALL_CLIP_ART = 100
"""A drawing is small if its longer side has fewer pixels than this."""
CLIP_ART_SIDE = 240
"""Longer side of a clip art drawing in pixels, in the square of 2 x SIZE pixels before the last filter; the rest of the
square is a transparent margin."""
DPI = 96.0
"""Pixels per inch for lengths in inches and millimetres in clip art."""


@dataclasses.dataclass(frozen=True)
class RenderJob:
    """One picture to render."""

    id: str
    """Id of the picture, for error messages."""
    source: str | Path
    """The text of an SVG that states its size, or the path of a file."""
    kind: Literal["svg", "clip art", "picture"]
    """`svg`: text of an SVG; `clip art`: path of an SVG file; `picture`: path of a raster image."""
    mirrored: bool = False
    """Mirror the rendered picture."""


def render(job: RenderJob) -> bytes:
    """Renders the picture of a job as a lossless WebP. Raises `DataError` if it cannot be rendered."""
    try:
        match job.kind:
            case "svg":
                image = _drawn(svg_string=str(job.source))
            case "clip art":
                image = _framed(_clip_art(job.source))
            case "picture":
                with Image.open(job.source) as file:
                    image = _square(file.convert("RGBA"))
    except (ValueError, OSError) as error:
        raise DataError(f"{job.id} cannot be drawn: {error}") from error
    if job.mirrored:
        image = ImageOps.mirror(image)
    filter = Image.Resampling.LANCZOS if image.width % SIZE else Image.Resampling.BOX
    return encode_webp(image.resize((SIZE, SIZE), filter))


def _drawn(
    *, svg_string: str | None = None, svg_path: str | None = None, width: int | None = None, dpi: float = 0.0
) -> Image.Image:
    # text is not rendered, as the available fonts differ between machines
    data = resvg_py.svg_to_bytes(svg_string=svg_string, svg_path=svg_path, width=width, dpi=dpi, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(data))).convert("RGBA")


def _clip_art(path: str | Path) -> Image.Image:
    """The drawing on a page of clip art, cropped, in RGBA. A page with a small drawing is rendered again at a larger
    size."""
    drawn = _inked(_drawn(svg_path=str(path), width=CLIP_ART_WIDTH, dpi=DPI))
    if max(drawn.size) < SMALL_CLIP_ART:
        width = min(CLIP_ART_WIDTH**2 // max(drawn.size), MAX_CLIP_ART_WIDTH)
        drawn = _inked(_drawn(svg_path=str(path), width=width, dpi=DPI))
    return drawn


def _inked(image: Image.Image) -> Image.Image:
    box = image.getchannel("A").getbbox()
    if box is None:
        raise ValueError("nothing is drawn")
    return image.crop(box)


def _framed(drawn: Image.Image) -> Image.Image:
    """The drawing, resized and centred in a transparent square with a margin."""
    scale = CLIP_ART_SIDE / max(drawn.size)
    width, height = (max(1, round(side * scale)) for side in drawn.size)
    return _square(drawn.resize((width, height), Image.Resampling.LANCZOS), 2 * SIZE)


def _square(image: Image.Image, side: int | None = None) -> Image.Image:
    """The picture, centred in a transparent square. side: of the square in pixels; default: the picture's longer
    side."""
    side = side or max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
