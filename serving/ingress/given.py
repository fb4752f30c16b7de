"""Pictures that callers send: read, turned upright, cropped and resized to a model's size, with the codes to keep.

All of this happens in the ingress, before a job is sent, so that no file of a caller holds up an engine. The functions
decode files and block: call them in a thread.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from dalle.errors import ImageError, ParameterError
from dalle.images import load_image, open_image
from dalle.receipt import Receipt
from serving.jobs import Given, Kept, ModelInfo
from serving.refusals import MaskError

__all__ = ["prepare", "prompt_of"]


def prepare(
    image: bytes,
    mask: bytes | None,
    keep_rows: int | None,
    info: ModelInfo,
    *,
    own_mask: bool = False,
    max_pixels: int,
) -> Given:
    """Crop and resize a picture for a model, and choose the codes to keep.

    With a mask, codes with a transparent pixel in it are drawn and all others are kept; with `keep_rows`, so many upper
    grid rows are kept. Without both, an edit takes the picture itself as its mask if it has transparent pixels, and
    otherwise the upper half of the grid rows is kept. Transparency that is kept stays transparent if the model draws
    transparency, and lies over white if not.

    own_mask: whether the picture may be its own mask.
    max_pixels: height times width beyond which a file is refused before it is decoded.
    Raises `ImageError` for a picture that cannot be used, `MaskError` for such a mask, `ParameterError` for a value of
    `keep_rows` outside the picture.
    """
    rows, columns = info.grid_rows, info.num_codes // info.grid_rows
    keep = np.ones((rows, columns), dtype=bool)
    kept: Kept = "upper_half" if keep_rows is None else "keep_rows"
    if mask is not None:
        kept, keep = "mask", ~_transparent(image, mask, info, max_pixels)
        if keep.all():
            raise MaskError("the mask has no transparent pixel: there is nothing to draw")
    elif own_mask and keep_rows is None and _has_transparency(image, max_pixels):
        kept, keep = "transparency", ~_transparent(image, image, info, max_pixels)
    if keep.all():
        kept = "upper_half" if keep_rows is None else "keep_rows"
        num_kept = rows // 2 if keep_rows is None else keep_rows
        if not 0 <= num_kept < rows:
            raise ParameterError(f"keep_rows is {num_kept}; it must be in 0..{rows - 1}")
        keep[num_kept:] = False
    fitted = load_image(image, size=(info.height, info.width), max_pixels=max_pixels, mode=info.image_mode)
    return Given(pixels=fitted.tobytes(), mode=info.image_mode, keep=tuple(keep.flatten().tolist()), kept=kept)


def _has_transparency(image: bytes, max_pixels: int) -> bool:
    with open_image(image, max_pixels=max_pixels) as opened:
        return bool(opened.has_transparency_data)


def _transparent(image: bytes, mask: bytes, info: ModelInfo, max_pixels: int) -> "np.ndarray[tuple[int, int], Any]":
    """(rows, columns) bool: which codes have a transparent pixel in the mask, cropped like the picture."""
    with open_image(image, max_pixels=max_pixels) as opened:
        width, height = _upright_size(opened)
    with _open_mask(mask, max_pixels) as opened_mask:
        # both upright: a mask is painted over the picture as a viewer shows it
        upright = ImageOps.exif_transpose(opened_mask)
        if upright.size != (width, height):
            raise MaskError(
                f"the mask is {upright.height} x {upright.width} and the picture {height} x {width}: "
                "they must be of one size"
            )
        if not upright.has_transparency_data:
            raise MaskError("the mask has no transparency: mark what to draw with transparent pixels")
        holes = np.asarray(upright.convert("RGBA").getchannel("A")) == 0
    # the largest centred rectangle of the model's aspect ratio, which `load_image` crops
    scale = min(width / info.width, height / info.height)
    above = _overlaps(info.grid_rows, height, scale * info.height)
    beside = _overlaps(info.num_codes // info.grid_rows, width, scale * info.width)
    return (above @ holes.astype(np.float32) @ beside.T) > 0


@contextlib.contextmanager
def _open_mask(mask: bytes, max_pixels: int) -> Iterator[Image.Image]:
    try:
        with open_image(mask, max_pixels=max_pixels) as opened:
            yield opened
    except MaskError:
        raise
    except ImageError as error:
        raise MaskError(str(error).replace("the picture", "the mask", 1)) from error


def _overlaps(num_codes: int, num_pixels: int, length: float) -> "np.ndarray[tuple[int, int], Any]":
    """(num_codes, num_pixels) float32 along one axis: 1 where a pixel overlaps a code, of the codes that divide the
    `length` pixels in the middle."""
    edges = (num_pixels - length) / 2 + length * np.arange(num_codes + 1) / num_codes
    pixels, tolerance = np.arange(num_pixels), 1e-6
    reaches = (pixels < edges[1:, None] - tolerance) & (pixels + 1 > edges[:-1, None] + tolerance)
    return reaches.astype(np.float32)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after the EXIF orientation is applied, read from the header alone."""
    on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return image.size[::-1] if on_its_side else image.size


def prompt_of(image: bytes, *, max_pixels: int) -> str | None:
    """The prompt in the receipt of a PNG; None if it has no receipt, or cannot be read."""
    try:
        with open_image(image, formats=("PNG",), max_pixels=max_pixels) as opened:
            return Receipt.from_text(opened.text).prompt or None  # type: ignore[attr-defined]
    except ImageError:
        return None
