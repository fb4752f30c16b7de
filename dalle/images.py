"""Reading, converting and writing pictures: files and bytes to PIL, PIL to tensors and back, PIL to bytes.

Picture tensors are float32 of shape (C, H, W) or (B, C, H, W) in [-1, 1] throughout the library. Three channels are
red, green and blue. Four channels are red, green and blue premultiplied by alpha, then alpha; a fully transparent pixel
is -1 in every channel. PIL images are RGB, or RGBA with straight alpha. Sizes are (height, width), as in tensors.
Colour profiles are not applied.
"""

import io
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from dalle.defaults import Background
from dalle.errors import DalleError, ImageError, ParameterError

__all__ = [
    "MAX_PIXELS",
    "Background",
    "DrawnBackground",
    "ImageFormat",
    "ImageSource",
    "Mode",
    "chosen_background",
    "composite",
    "contact_sheet",
    "encode_image",
    "enlarge",
    "has_transparency",
    "load_image",
    "max_enlargement",
    "open_image",
    "premultiplied",
    "to_mode",
    "to_pil",
    "to_rgb",
    "to_rgba",
    "to_tensor",
    "with_background",
]

ImageSource = str | os.PathLike[str] | bytes | BinaryIO
ImageFormat = Literal["png", "jpeg", "webp"]
Mode = Literal["RGB", "RGBA"]
DrawnBackground = Literal["transparent", "opaque"]

MAX_PIXELS = 64 * 2**20
MAX_ENLARGED_SIDE = 2048
# Pillow's other readers stay off: some run external programs, and many are rarely tested with hostile files.
READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
LOSSY_QUALITY = 90
GUTTER = 8
LABEL_LINES = 4
CHECKERS = (255, 232)
"""Grey levels of the checkerboard that shows transparency in a contact sheet."""


def to_tensor(image: Image.Image, *, channels: int = 3) -> torch.Tensor:
    """Convert a picture to float32 of shape (channels, H, W) in [-1, 1]. With 3 channels transparency is composited
    over white; with 4 it is kept, and colours are premultiplied by alpha."""
    assert channels in (3, 4), channels
    if channels == 3:
        pixels = torch.from_numpy(np.array(to_rgb(image)))
        return rearrange(pixels, "h w c -> c h w").float() / 127.5 - 1
    return premultiplied(rearrange(torch.from_numpy(np.array(to_rgba(image))), "h w c -> c h w"))


def premultiplied(pixels: torch.Tensor) -> torch.Tensor:
    """Convert straight RGBA (..., 4, H, W), uint8, to float32 in [-1, 1] with colours premultiplied by alpha."""
    scaled = pixels.float() / 255
    colours, alpha = scaled[..., :3, :, :], scaled[..., 3:, :, :]
    return 2 * torch.cat([colours * alpha, alpha], dim=-3) - 1


def composite(images: torch.Tensor, background: float | torch.Tensor = 1.0) -> torch.Tensor:
    """Composite images (..., C, H, W) in [-1, 1] over a background: (..., 3, H, W). Images of 3 channels are returned
    unchanged.

    background: a grey level in [0, 1], by default white; or colours in [0, 1] that broadcast to (..., 3, H, W).
    """
    if images.shape[-3] == 3:
        return images
    colours, alpha = images[..., :3, :, :], images[..., 3:, :, :]
    return colours + (1 - alpha) * background


def to_pil(tensor: torch.Tensor) -> Image.Image:
    """The inverse of `to_tensor`: (3, H, W) or (4, H, W) of any float type, clamped to [-1, 1] and rounded to the
    nearest of 256 levels, becomes an RGB or RGBA image.

    Raises `ImageError` for another shape or type, and for values that are not finite.
    """
    if tensor.ndim != 3 or tensor.shape[0] not in (3, 4) or not tensor.is_floating_point():
        raise ImageError(f"a picture is a float tensor (3 or 4, H, W), not {tensor.dtype} {tuple(tensor.shape)}")
    if not tensor.isfinite().all():
        raise ImageError("the picture has values that are not finite")
    scaled = (tensor.detach().float().clamp(-1, 1) + 1) * 127.5
    if len(scaled) == 4:
        # alpha is rounded first: colours are divided by the alpha that is stored
        alpha = scaled[3:].round()
        colours = torch.where(alpha > 0, scaled[:3] * 255 / alpha.clamp_min(1), 0.0)
        scaled = torch.cat([colours.clamp_max(255), alpha])
    pixels = scaled.round().to(torch.uint8)
    return Image.fromarray(rearrange(pixels, "c h w -> h w c").contiguous().cpu().numpy())


@contextmanager
def open_image(
    source: ImageSource, *, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = READABLE
) -> Iterator[Image.Image]:
    """Open a file in a `with` statement, as a PIL image whose header is read and whose pixels are not decoded yet.

    max_pixels: height x width beyond which the file is rejected before any pixel is decoded.
    Raises `ImageError`, with the file's name and the reason, for a file that cannot be read, and for any other
    exception in the body: Pillow's decoders fail on damaged files with many types of exception.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    name = source if isinstance(source, str | os.PathLike) else getattr(source, "name", "the picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of another limit than ours
            opened = Image.open(stream, formats=formats)
        with opened as image:
            if image.width * image.height > max_pixels:
                raise ImageError(f"{name} has {image.height} x {image.width} pixels; the limit is {max_pixels} in all")
            yield image
    except DalleError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is damaged, or not a {', '.join(formats)}") from error
    except Image.DecompressionBombError as error:  # Pillow has a limit of its own, and its message only that
        count = next(iter(re.findall(r"\((\d+) pixels\)", str(error))), "too many")
        limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise ImageError(f"{name} has {count} pixels; the limit is {limit} in all") from error
    except Exception as error:
        if "MAX_TEXT" in str(error):
            limit = PngImagePlugin.MAX_TEXT_CHUNK
            raise ImageError(
                f"{name} has texts or a colour profile of more than {limit} bytes, which is the limit"
            ) from error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error  # the name is said once
        raise ImageError(f"{name} cannot be read: {reason}") from error


def load_image(
    source: ImageSource, *, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS, mode: Mode = "RGB"
) -> Image.Image:
    """Load the first frame of a PNG, JPEG, WebP, GIF, BMP or TIFF as an upright picture without metadata.

    EXIF orientation is applied.
    mode: RGB composites transparency over white; RGBA keeps it, and a picture without transparency becomes opaque.
    size: (height, width) of the result: the largest centred rectangle of these proportions is resized (Lanczos).
    max_pixels: height x width beyond which a file is rejected before it is decoded.
    Raises `ImageError` for a file that cannot be read, `ParameterError` for a size below 1.
    """
    if size is not None and min(size) < 1:
        raise ParameterError(f"size is {size}; height and width must be at least 1")
    with open_image(source, max_pixels=max_pixels) as image:
        picture = to_mode(ImageOps.exif_transpose(image), mode)
        picture.info = {}
        return picture if size is None else ImageOps.fit(picture, size[::-1], Image.Resampling.LANCZOS)


def encode_image(
    image: Image.Image,
    *,
    format: ImageFormat,
    quality: int | None = None,
    text: Mapping[str, str] | None = None,
) -> bytes:
    """Encode a picture as the bytes of an image file. PNG and WebP keep the transparency of an RGBA picture; for JPEG
    it is composited over white.

    quality: JPEG/WebP quality, 1..100 (default 90); PNG is lossless and takes none.
    text: text chunks of a PNG, written as UTF-8 (iTXt); keys are 1..79 Latin-1 characters. JPEG and WebP take none.
    Raises `ParameterError` for an invalid format, quality or text, `ImageError` for a picture larger than the format
    allows.
    """
    if format not in ("png", "jpeg", "webp"):
        raise ParameterError(f"format is {format!r}; it must be png, jpeg or webp")
    if format == "png":
        if quality is not None:
            raise ParameterError(f"quality is {quality}, but PNG is lossless: leave it out, or choose jpeg or webp")
        options: dict[str, Any] = {"pnginfo": _png_text(text or {})}
    else:
        if text:
            raise ParameterError(f"only PNG carries text, not {format}: {', '.join(text)}")
        quality = LOSSY_QUALITY if quality is None else quality
        if not 1 <= quality <= 100:
            raise ParameterError(f"quality is {quality}; it must be in 1..100")
        options = {"quality": quality}
    buffer = io.BytesIO()
    try:
        to_mode(image, "RGBA" if image.mode == "RGBA" and format != "jpeg" else "RGB").save(buffer, format, **options)
    except (OSError, ValueError) as error:
        size = f"{image.height} x {image.width}"
        raise ImageError(f"a picture of {size} pixels cannot be written as {format}: {error}") from error
    return buffer.getvalue()


def chosen_background(background: str, *, mode: Mode, model: str, format: ImageFormat = "png") -> DrawnBackground:
    """Resolve the parameter `background` for a model that draws in `mode` and a file in `format`: `auto` is transparent
    where the model and the format both support it, and opaque otherwise; `opaque` is white.

    Raises `ParameterError` for `transparent` where the model, which is named, or the format has no transparency, and
    for any other value.
    """
    if background not in get_args(Background):
        raise ParameterError(f"background is {background[:80]!r}; it must be transparent, opaque or auto")
    if background == "transparent" and mode == "RGB":
        raise ParameterError(
            f"background is 'transparent', but the model {model} draws no transparency: choose opaque or auto"
        )
    if background == "transparent" and format == "jpeg":
        raise ParameterError(
            f"background is 'transparent', but {format} has no transparency: choose png or webp, which have it, or "
            "another background"
        )
    return "opaque" if background == "opaque" or mode == "RGB" or format == "jpeg" else "transparent"


def with_background(image: Image.Image, background: DrawnBackground) -> Image.Image:
    """Apply a background to a picture that a model drew, RGB or RGBA: an opaque one is RGB, composited over white."""
    return image if background == "transparent" else to_rgb(image)


def enlarge(image: Image.Image, factor: int) -> Image.Image:
    """Enlarge a picture by a whole factor, with Lanczos' filter, which keeps edges sharp. Raises `ParameterError` for a
    factor below 1, and for a result with a side above 2,048 pixels."""
    if factor == 1:
        return image
    if not 1 < factor <= (largest := max_enlargement(image.height, image.width)):
        raise ParameterError(
            f"a picture of {image.height} x {image.width} pixels cannot be enlarged {factor} times; the factor must be "
            f"in 1..{largest}"
        )
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.LANCZOS)


def max_enlargement(height: int, width: int) -> int:
    """The largest factor by which `enlarge` enlarges a picture of this size."""
    return max(1, MAX_ENLARGED_SIDE // max(height, width))


def contact_sheet(
    images: Sequence[Image.Image], *, labels: Sequence[str] | None = None, columns: int | None = None
) -> Image.Image:
    """Arrange pictures in a grid on white, in reading order; the grid is near-square unless `columns` is given.

    An RGBA picture lies on a light checkerboard, whose squares are a sixteenth of its shorter side, at least 4 pixels.
    labels: one for each picture, drawn under it, wrapped to the cell and truncated with an ellipsis after four lines.
        The font is Pillow's own, which has little more than ASCII: other letters are drawn as boxes.
    Raises `ParameterError` for no pictures, for another number of labels, and for columns below 1.
    """
    if not images:
        raise ParameterError("a contact sheet needs at least one picture")
    if labels is not None and len(labels) != len(images):
        raise ParameterError(f"{len(labels)} labels for {len(images)} pictures; give one for each")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    if columns < 1:
        raise ParameterError(f"columns is {columns}; it must be at least 1")
    columns = min(columns, len(images))
    width, height = max(image.width for image in images), max(image.height for image in images)
    font_size = max(12, width // 20)
    font = ImageFont.load_default(font_size)
    lines: list[list[str]] = [[] for _ in images]
    if labels is not None:
        width = max(width, 8 * font_size)
        lines = [_label_lines(label, font, width) for label in labels]
    line_height = math.ceil(font_size * 1.3)
    label_height = max(map(len, lines)) * line_height
    cell_width, cell_height = width + GUTTER, height + label_height + GUTTER
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * cell_width + GUTTER, rows * cell_height + GUTTER), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, label) in enumerate(zip(images, lines, strict=True)):
        left, top = GUTTER + i % columns * cell_width, GUTTER + i // columns * cell_height
        picture = Image.alpha_composite(_checkerboard(image.size), image) if image.mode == "RGBA" else image
        sheet.paste(to_rgb(picture), (left + (width - image.width) // 2, top + (height - image.height) // 2))
        for j, line in enumerate(label):
            draw.text((left + width / 2, top + height + (j + 0.5) * line_height), line, "black", font, anchor="mm")
    return sheet


def _checkerboard(size: tuple[int, int]) -> Image.Image:
    """A checkerboard of `size` (width, height) pixels as opaque RGBA, light in the upper left corner."""
    side = max(4, min(size) // 16)
    columns, rows = (np.arange(length) // side for length in size)
    greys = np.array(CHECKERS, dtype=np.uint8)[(rows[:, None] + columns) % 2]
    return Image.fromarray(greys).convert("RGBA")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGB: transparency is composited over white, 16-bit greys are scaled. Raises
    `ImageError` for 32-bit greys, whose range is unknown."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips everything above 255 to white.
        return Image.fromarray(np.round(np.asarray(image, np.float32) / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(f"a picture of mode {image.mode} (32-bit greys) has no known range; give 8 or 16 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def to_rgba(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGBA with straight alpha; one without transparency becomes opaque. Raises
    `ImageError` as `to_rgb` does."""
    if image.mode == "RGBA":
        return image
    return image.convert("RGBA") if image.has_transparency_data else to_rgb(image).convert("RGBA")


def to_mode(image: Image.Image, mode: Mode) -> Image.Image:
    """Convert a picture of any mode with `to_rgb` or `to_rgba`. Raises `ImageError` as they do."""
    return to_rgb(image) if mode == "RGB" else to_rgba(image)


def has_transparency(image: Image.Image) -> bool:
    """Whether any pixel of the picture is not fully opaque."""
    if not image.has_transparency_data:
        return False
    return bool((np.asarray(image.convert("RGBA").getchannel("A")) < 255).any())


def _png_text(text: Mapping[str, str]) -> PngInfo:
    info = PngInfo()
    for key, value in text.items():
        try:
            if not 1 <= len(key.encode("latin-1")) <= 79 or "\0" in key:
                raise ValueError("keys have 1..79 characters, none of them NUL")
            info.add_itxt(key, value)
        except ValueError as error:  # UnicodeEncodeError is one
            raise ParameterError(f"PNG cannot carry the text {key[:80]!r}: {error}") from error
    return info


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _label_lines(label: str, font: Font, width: int) -> list[str]:
    """Wrap a label into at most LABEL_LINES lines that fit the width; the last ends in an ellipsis if text was cut."""
    lines = list(islice(_wrapped(label, font, width), LABEL_LINES + 1))
    if len(lines) > LABEL_LINES:
        last = lines[LABEL_LINES - 1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        lines[LABEL_LINES - 1 :] = [last + "…"]
    return lines


def _wrapped(label: str, font: Font, width: int) -> Iterator[str]:
    for paragraph in label.splitlines():
        rest = " ".join(paragraph.split())
        while rest:
            end = 1
            while end < len(rest) and font.getlength(rest[: end + 1]) <= width:
                end += 1
            if end < len(rest) and rest[end] != " " and " " in rest[:end]:
                end = rest.rindex(" ", 0, end)
            yield rest[:end]
            rest = rest[end:].lstrip()
