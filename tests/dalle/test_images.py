"""Pictures: conversion to tensors and back, files read and written, contact sheets."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageFont

from dalle.errors import ImageError, ParameterError
from dalle.images import (
    LABEL_LINES,
    _label_lines,
    contact_sheet,
    encode_image,
    load_image,
    to_pil,
    to_tensor,
)
from tests.support.pictures import random_picture, saved


def _png_header(width: int, height: int) -> bytes:
    """A PNG with a header that declares a size, and without pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(b"")
    chunks = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, pixels)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_tensor_is_channels_first_in_minus_one_to_one() -> None:
    image = Image.new("RGB", (3, 2), (255, 0, 51))
    tensor = to_tensor(image)
    assert (tensor.dtype, tensor.shape) == (torch.float32, (3, 2, 3))
    assert tensor[:, 1, 2].tolist() == pytest.approx([1.0, -1.0, -0.6])


def test_every_value_survives_the_round_trip() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(3).reshape(16, 16, 3))
    assert to_pil(to_tensor(ramp)).tobytes() == ramp.tobytes()
    assert to_pil(to_tensor(random_picture())).tobytes() == random_picture().tobytes()


def test_to_pil_clamps_and_rounds_to_the_nearest() -> None:
    values = torch.tensor([-9.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 0.0, 9.0])
    tensor = values.expand(3, 1, 5).clone().requires_grad_()
    assert np.asarray(to_pil(tensor))[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert to_pil(tensor.bfloat16()).size == (5, 1)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(1, 3, 4, 4), torch.zeros(5, 4, 3), torch.zeros(3, 4, 4, dtype=torch.uint8)]
)
def test_to_pil_refuses_other_shapes_and_types(tensor: torch.Tensor) -> None:
    with pytest.raises(ImageError, match=r"float tensor \(3 or 4, H, W\), not torch"):
        to_pil(tensor)


def test_to_pil_refuses_what_is_not_finite() -> None:
    with pytest.raises(ImageError, match="not finite"):
        to_pil(torch.full((3, 2, 2), float("nan")))


def test_load_takes_paths_bytes_and_streams(tmp_path: Path) -> None:
    image, path = random_picture(), tmp_path / "a.png"
    image.save(path)
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        loaded = load_image(source)
        assert (loaded.mode, loaded.tobytes()) == ("RGB", image.tobytes())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_load_honours_exif_orientation(orientation: int) -> None:
    upright = random_picture()
    how_stored = {
        **{2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM},
        **{5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE},
        **{8: Image.Transpose.ROTATE_270},
    }
    stored = upright.transpose(how_stored[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_image(saved(stored, exif=exif))
    assert loaded.size == upright.size
    assert loaded.tobytes() == upright.tobytes()
    assert loaded.info == {}


def test_other_modes() -> None:
    deep = Image.fromarray(np.array([[0, 257, 32768, 65535]], dtype=np.uint16))
    assert np.asarray(load_image(saved(deep)))[0, :, 1].tolist() == [0, 1, 128, 255]
    assert load_image(saved(Image.new("1", (1, 1), 1))).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(saved(Image.new("CMYK", (8, 8)), "JPEG")).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(ImageError, match="32-bit greys"):
        load_image(saved(Image.new("F", (1, 1), 0.5), "TIFF"))


def test_size_is_a_centre_crop_and_a_resize() -> None:
    image = Image.new("RGB", (30, 10), "red")
    image.paste("blue", (10, 0, 20, 10))
    square = load_image(saved(image), size=(10, 10))
    assert set(square.get_flattened_data()) == {(0, 0, 255)}
    assert load_image(saved(image), size=(3, 8)).size == (8, 3)
    assert load_image(saved(random_picture()), size=(5, 7)).tobytes() == random_picture().tobytes()
    with pytest.raises(ParameterError, match=r"size is \(0, 4\)"):
        load_image(saved(image), size=(0, 4))


@pytest.mark.parametrize(("width", "height"), [(10_000, 7_000), (11_000, 11_000), (60_000, 60_000)])
@pytest.mark.filterwarnings("error")
def test_decompression_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    with pytest.raises(ImageError, match="pixels; the limit is 67108864 in all"):
        load_image(_png_header(width, height))
    with pytest.raises(ImageError, match="pixels; the limit is 1000 in all"):
        load_image(_png_header(width, height), max_pixels=1000)


def test_max_pixels_is_the_callers_limit(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    random_picture(5, 7).save(path)
    assert load_image(path, max_pixels=35).size == (7, 5)
    with pytest.raises(ImageError, match=r"large\.png has 5 x 7 pixels; the limit is 34"):
        load_image(path, max_pixels=34)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_file_is_refused_by_name(format: str, tmp_path: Path) -> None:
    path = tmp_path / "cut.bin"
    content = saved(random_picture(64, 64), format)
    assert load_image(content).size == (64, 64)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"cut\.bin"):
        load_image(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_not_a_picture_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="the picture is damaged, or not a PNG, JPEG"):
        load_image(content)
    path = tmp_path / "note.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"note\.png is damaged, or not"), path.open("rb") as stream:
        load_image(stream)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png cannot be read"):
        load_image(tmp_path / "none.png")


def test_encoded_formats() -> None:
    image = Image.linear_gradient("L").convert("RGB")
    png = encode_image(image, format="png")
    assert load_image(png).tobytes() == image.tobytes()
    for format in ("jpeg", "webp"):
        small, large = (encode_image(image, format=format, quality=quality) for quality in (5, 95))
        assert len(small) < len(large)
        assert Image.open(io.BytesIO(large)).format == format.upper()
        error = np.abs(np.asarray(load_image(large), int) - np.asarray(image, int)).mean()
        assert error < 2
    assert load_image(encode_image(Image.new("RGBA", (8, 8)), format="jpeg")).getpixel((0, 0)) == (255, 255, 255)


def test_png_carries_unicode_text() -> None:
    text = {"prompt": "판다 👩‍👩‍👧‍👦 " * 1500, "empty": "", "lines": "a\r\nb\0c"}
    with Image.open(io.BytesIO(encode_image(random_picture(), format="png", text=text))) as image:
        assert image.text == text  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"format": "bmp"}, "'bmp'; it must be png, jpeg or webp"),
        ({"format": "png", "quality": 90}, "PNG is lossless"),
        ({"format": "jpeg", "quality": 0}, r"quality is 0; it must be in 1\.\.100"),
        ({"format": "webp", "quality": 101}, r"quality is 101"),
        ({"format": "jpeg", "text": {"prompt": "x"}}, "only PNG carries text, not jpeg: prompt"),
        ({"format": "png", "text": {"": "x"}}, r"1\.\.79 characters"),
        ({"format": "png", "text": {"k" * 80: "x"}}, r"1\.\.79 characters"),
        ({"format": "png", "text": {"판다": "x"}}, "latin-1"),
        ({"format": "png", "text": {"prompt": "\ud800"}}, "surrogates"),
    ],
)
def test_encode_refuses(options: Any, reason: str) -> None:
    with pytest.raises(ParameterError, match=reason):
        encode_image(random_picture(), **options)


def test_encode_refuses_a_picture_larger_than_the_format() -> None:
    with pytest.raises(ImageError, match="1 x 20000 pixels cannot be written as webp"):
        encode_image(Image.new("RGB", (20_000, 1)), format="webp")


def test_contact_sheet_is_near_square_and_holds_every_picture() -> None:
    colours = ["red", "lime", "blue", "black", "yellow"]
    sheet = contact_sheet([Image.new("RGB", (10, 20), colour) for colour in colours])
    pixels = np.asarray(sheet)
    assert sheet.size == (3 * 18 + 8, 2 * 28 + 8)
    for i, colour in enumerate(colours):
        row, column = divmod(i, 3)
        cell = pixels[8 + row * 28 :, 8 + column * 18 :][:20, :10]
        assert (cell == np.asarray(Image.new("RGB", (10, 20), colour))).all()
    assert sheet.getpixel((0, 0)) == sheet.getpixel((60, 40)) == (255, 255, 255)
    assert contact_sheet([random_picture()] * 5, columns=9).size == (5 * 15 + 8, 5 + 16)


def test_labels_are_drawn_under_their_own_picture_only() -> None:
    pictures = [Image.new("RGB", (120, 40), "white")] * 4
    long = "a red panda eating bamboo in the rain, " * 10
    for i in range(4):
        labels = [long if i == j else "" for j in range(4)]
        ink = ImageChops.invert(contact_sheet(pictures, labels=labels, columns=2)).getbbox()
        assert ink is not None
        left, top, right, bottom = ink
        cell_height = 40 + LABEL_LINES * 16 + 8
        cell_left, cell_top = 8 + i % 2 * 128, 8 + i // 2 * cell_height
        assert cell_left <= left < right <= cell_left + 120
        assert cell_top + 40 <= top < bottom <= cell_top + cell_height


def test_label_lines_fit_and_say_when_something_is_cut() -> None:
    font = ImageFont.load_default(12)
    for label in ["a red panda eating bamboo", "x" * 10_000, "words and words " * 700, "seed 7\nprompt one\n\nlast"]:
        lines = _label_lines(label, font, 96)
        assert len(lines) <= LABEL_LINES
        assert all(line and font.getlength(line) <= 96 for line in lines)
        assert lines[-1].endswith("…") == (len(label) > 100)
    assert _label_lines("seed 7\nprompt one\n\nlast", font, 96) == ["seed 7", "prompt one", "last"]
    assert " ".join(_label_lines("a red panda eating bamboo", font, 96)) == "a red panda eating bamboo"
    assert _label_lines("", font, 96) == []


def test_contact_sheet_refuses() -> None:
    with pytest.raises(ParameterError, match="at least one picture"):
        contact_sheet([])
    with pytest.raises(ParameterError, match="1 labels for 2 pictures"):
        contact_sheet([random_picture()] * 2, labels=["a"])
    with pytest.raises(ParameterError, match="columns is 0"):
        contact_sheet([random_picture()], columns=0)
