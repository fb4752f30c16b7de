"""Rendering a picture of a package as 128 x 128 RGBA. Pure functions of a job, so that processes share them.

resvg draws; other renderers miss the filters of fluent-emoji and the masks of circle-flags. Halving with a box filter
afterwards is its antialiasing.
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
CLIP_ART_WIDTH = 256
MAX_CLIP_ART_WIDTH = 6 * CLIP_ART_WIDTH
SMALL_CLIP_ART = 100
CLIP_ART_SIDE = 240
"""Of the 2 x SIZE pixels before the last filter: the rest is a transparent margin."""
DPI = 96.0
"""What lengths in inches and millimetres mean to the clip art."""


@dataclasses.dataclass(frozen=True)
class RenderJob:
    """One picture to make."""

    id: str
    source: str | Path
    """The text of an SVG that says its own size, or a file."""
    kind: Literal["svg", "clip art", "picture"]
    mirrored: bool = False


def render(job: RenderJob) -> bytes:
    """The picture as a lossless WebP. Raises `DataError` if it cannot be drawn."""
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
    # Fonts differ from machine to machine: text is left out rather than drawn in whatever there is.
    data = resvg_py.svg_to_bytes(svg_string=svg_string, svg_path=svg_path, width=width, dpi=dpi, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(data))).convert("RGBA")


def _clip_art(path: str | Path) -> Image.Image:
    """What is drawn on a page, in RGBA; of small things on large pages, a larger drawing."""
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
    """A picture centred in a square with a margin."""
    scale = CLIP_ART_SIDE / max(drawn.size)
    width, height = (max(1, round(side * scale)) for side in drawn.size)
    return _square(drawn.resize((width, height), Image.Resampling.LANCZOS), 2 * SIZE)


def _square(image: Image.Image, side: int | None = None) -> Image.Image:
    """A picture centred in a transparent square, its longer side's if no side is given."""
    side = side or max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
