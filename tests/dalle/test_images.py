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
    CHECKERS,
    LABEL_LINES,
    ImageFormat,
    Mode,
    _label_lines,
    chosen_background,
    composite,
    contact_sheet,
    encode_image,
    has_transparency,
    load_image,
    premultiplied,
    to_mode,
    to_pil,
    to_rgb,
    to_rgba,
    to_tensor,
    with_background,
)


def _random_picture(height: int = 5, width: int = 7) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and has no pixels."""
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
    assert to_pil(to_tensor(_random_picture())).tobytes() == _random_picture().tobytes()


def test_to_pil_clamps_and_rounds_to_the_nearest() -> None:
    values = torch.tensor([-9.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 0.0, 9.0])
    tensor = values.expand(3, 1, 5).clone().requires_grad_()
    assert np.asarray(to_pil(tensor))[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert to_pil(tensor.bfloat16()).size == (5, 1)


def _every_colour_and_alpha() -> Image.Image:
    """A red of every value in each column, an alpha of every value in each row; green and blue are other ramps."""
    value, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    return Image.fromarray(np.stack([value, 255 - value, value // 2, alpha], axis=-1))


def test_every_alpha_survives_the_round_trip_and_so_does_every_colour_that_is_seen() -> None:
    image = _every_colour_and_alpha()
    tensor = to_tensor(image, channels=4)
    assert (tensor.dtype, tensor.shape) == (torch.float32, (4, 256, 256))
    assert (tensor[:, 0] == -1).all(), "what is transparent is -1 in every channel"
    assert (tensor[:3] <= tensor[3:]).all(), "no premultiplied colour is above its alpha"
    expected = np.array(image)
    expected[0] = 0
    again = to_pil(tensor)
    assert again.mode == "RGBA" and np.array_equal(np.asarray(again), expected)
    assert torch.equal(to_tensor(again, channels=4), tensor)


def test_an_opaque_picture_is_the_same_with_four_channels() -> None:
    image = _random_picture()
    tensor = to_tensor(image, channels=4)
    assert (tensor[3] == 1).all() and torch.allclose(tensor[:3], to_tensor(image), atol=1e-6)
    assert to_pil(tensor).convert("RGB").tobytes() == image.tobytes()


def test_premultiplied_colours_are_scaled_by_alpha() -> None:
    pixels = torch.tensor([[255, 51, 0, 51], [200, 200, 200, 0], [9, 99, 199, 255]], dtype=torch.uint8)
    found = premultiplied(pixels.T[:, None])[:, 0].T
    expected = [[-0.6, -0.92, -1, -0.6], [-1] * 4, [9 / 127.5 - 1, 99 / 127.5 - 1, 199 / 127.5 - 1, 1]]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)
    batch = premultiplied(pixels.T[None, :, None])
    assert batch.shape == (1, 4, 1, 3) and torch.equal(batch[0, :, 0].T, found)


def test_composite_lays_premultiplied_colours_over_a_background() -> None:
    image = _every_colour_and_alpha()
    over_white = composite(to_tensor(image, channels=4))
    assert over_white.shape == (3, 256, 256)
    assert np.abs(np.asarray(to_pil(over_white), int) - np.asarray(to_rgb(image), int)).max() <= 1
    clear, half = torch.full((4, 1, 1), -1.0), torch.tensor([-1.0, -1, -1, 0])[:, None, None]
    assert composite(clear, 0.25).flatten().tolist() == [-0.5] * 3
    assert composite(half, 1.0).flatten().tolist() == [0.0] * 3, "black with an alpha of a half, over white"
    colours = torch.tensor([0.0, 0.5, 1.0])[:, None, None]
    assert composite(clear[None], colours).flatten().tolist() == [-1, 0, 1]
    assert composite(over_white) is over_white


def test_transparency_is_asked_of_pixels() -> None:
    opaque = Image.new("RGBA", (2, 1), (1, 2, 3, 255))
    assert not has_transparency(opaque) and not has_transparency(_random_picture())
    opaque.putpixel((1, 0), (1, 2, 3, 254))
    assert has_transparency(opaque)
    palette = Image.new("P", (1, 1))
    palette.info["transparency"] = 0
    assert has_transparency(palette) and has_transparency(Image.new("LA", (1, 1), (0, 0)))


def test_any_mode_becomes_rgba() -> None:
    image = _every_colour_and_alpha()
    assert to_rgba(image) is image
    opaque = to_rgba(_random_picture())
    assert opaque.mode == "RGBA" and opaque.getchannel("A").getextrema() == (255, 255)
    assert opaque.convert("RGB").tobytes() == _random_picture().tobytes()
    assert to_rgba(Image.new("LA", (1, 1), (7, 9))).getpixel((0, 0)) == (7, 7, 7, 9)
    assert to_rgba(Image.fromarray(np.array([[65535]], dtype=np.uint16))).getpixel((0, 0)) == (255,) * 4
    assert (to_mode(image, "RGB").mode, to_mode(_random_picture(), "RGBA").mode) == ("RGB", "RGBA")


def test_load_keeps_transparency_if_it_is_asked_to() -> None:
    image = _every_colour_and_alpha()
    assert load_image(_saved(image), mode="RGBA").tobytes() == image.tobytes()
    assert load_image(_saved(image)).tobytes() == to_rgb(image).tobytes()
    assert load_image(_saved(_random_picture()), mode="RGBA").getchannel("A").getextrema() == (255, 255)
    # green that is transparent does not shine through where a resize mixes it with red
    sides = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    sides.paste((255, 0, 0, 255), (32, 0, 64, 64))
    small = np.asarray(load_image(_saved(sides), size=(8, 8), mode="RGBA"))
    assert small[..., 1].max() == 0 and small[:, 0, 3].max() == 0 and small[:, 7, 3].min() == 255


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
    image, path = _random_picture(), tmp_path / "a.png"
    image.save(path)
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        loaded = load_image(source)
        assert (loaded.mode, loaded.tobytes()) == ("RGB", image.tobytes())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_load_honours_exif_orientation(orientation: int) -> None:
    upright = _random_picture()
    how_stored = {
        **{2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM},
        **{5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE},
        **{8: Image.Transpose.ROTATE_270},
    }
    stored = upright.transpose(how_stored[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_image(_saved(stored, exif=exif))
    assert loaded.size == upright.size
    assert loaded.tobytes() == upright.tobytes()
    assert loaded.info == {}


def test_transparency_goes_over_white() -> None:
    rgba = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    rgba.putpixel((1, 0), (0, 0, 0, 127))
    palette = Image.new("P", (1, 1))
    palette.putpalette([9, 9, 9])
    assert np.asarray(load_image(_saved(rgba)))[0].tolist() == [[255] * 3, [128] * 3]
    assert load_image(_saved(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert (
        load_image(_saved(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3))).getpixel((0, 0)) == (255,) * 3
    )
    assert to_tensor(Image.new("LA", (1, 1), (0, 0))).flatten().tolist() == [1.0] * 3


def test_other_modes() -> None:
    deep = Image.fromarray(np.array([[0, 257, 32768, 65535]], dtype=np.uint16))
    assert np.asarray(load_image(_saved(deep)))[0, :, 1].tolist() == [0, 1, 128, 255]
    assert load_image(_saved(Image.new("1", (1, 1), 1))).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(_saved(Image.new("CMYK", (8, 8)), "JPEG")).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(ImageError, match="32-bit greys"):
        load_image(_saved(Image.new("F", (1, 1), 0.5), "TIFF"))


def test_size_is_a_centre_crop_and_a_resize() -> None:
    image = Image.new("RGB", (30, 10), "red")
    image.paste("blue", (10, 0, 20, 10))
    square = load_image(_saved(image), size=(10, 10))
    assert set(square.get_flattened_data()) == {(0, 0, 255)}
    assert load_image(_saved(image), size=(3, 8)).size == (8, 3)
    assert load_image(_saved(_random_picture()), size=(5, 7)).tobytes() == _random_picture().tobytes()
    with pytest.raises(ParameterError, match=r"size is \(0, 4\)"):
        load_image(_saved(image), size=(0, 4))


@pytest.mark.parametrize(("width", "height"), [(10_000, 7_000), (60_000, 60_000)])
def test_decompression_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    with pytest.raises(ImageError, match="limit"):
        load_image(_png_header(width, height))


def test_max_pixels_is_the_callers_limit(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    _random_picture(5, 7).save(path)
    assert load_image(path, max_pixels=35).size == (7, 5)
    with pytest.raises(ImageError, match=r"large\.png has 5 x 7 pixels; the limit is 34"):
        load_image(path, max_pixels=34)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_file_is_refused_by_name(format: str, tmp_path: Path) -> None:
    path = tmp_path / "cut.bin"
    content = _saved(_random_picture(64, 64), format)
    assert load_image(content).size == (64, 64)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"cut\.bin"):
        load_image(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_not_a_picture_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="the picture is damaged, or not in one of the formats PNG, JPEG"):
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


def test_png_and_webp_keep_transparency_and_jpeg_has_it_over_white() -> None:
    image = to_pil(to_tensor(_every_colour_and_alpha(), channels=4))
    files = {format: encode_image(image, format=format) for format in ("png", "webp", "jpeg")}
    assert load_image(files["png"], mode="RGBA").tobytes() == image.tobytes()
    kept = load_image(files["webp"], mode="RGBA")
    assert kept.getchannel("A").tobytes() == image.getchannel("A").tobytes(), "only the colours are lossy"
    with Image.open(io.BytesIO(files["jpeg"])) as opened:
        assert opened.mode == "RGB"
    for file in files.values():
        assert np.abs(np.asarray(load_image(file), int) - np.asarray(to_rgb(image), int)).mean() < 3
    assert files["jpeg"] == encode_image(to_rgb(image), format="jpeg")


@pytest.mark.parametrize(
    ("mode", "format", "chosen"),
    [
        ("RGBA", "png", ["transparent", "opaque", "transparent"]),
        ("RGBA", "webp", ["transparent", "opaque", "transparent"]),
        (
            "RGBA",
            "jpeg",
            ["jpeg has no transparency: choose png or webp, which have it, or another background", "opaque", "opaque"],
        ),
        ("RGB", "png", ["the model lively draws no transparency: choose opaque or auto", "opaque", "opaque"]),
        ("RGB", "jpeg", ["the model lively draws no transparency: choose opaque or auto", "opaque", "opaque"]),
    ],
)
def test_a_background_is_chosen_by_model_and_format(mode: Mode, format: ImageFormat, chosen: list[str]) -> None:
    for asked, expected in zip(("transparent", "opaque", "auto"), chosen, strict=True):
        try:
            found: str = chosen_background(asked, mode=mode, model="lively", format=format)
        except ParameterError as error:
            found = str(error).removeprefix("background is 'transparent', but ")
        assert found == expected


def test_another_value_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ParameterError, match="background is 'pink'; it must be transparent, opaque or auto"):
        chosen_background("pink", mode="RGBA", model="clear")


def test_opaque_is_over_white() -> None:
    drawn = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    drawn.putpixel((1, 0), (0, 0, 0, 127))
    assert with_background(drawn, "transparent") is drawn
    opaque = with_background(drawn, "opaque")
    assert opaque.mode == "RGB" and list(opaque.get_flattened_data()) == [(255,) * 3, (128,) * 3]


def test_png_carries_unicode_text() -> None:
    text = {"prompt": "판다 👩‍👩‍👧‍👦 " * 1500, "empty": "", "lines": "a\r\nb\0c"}
    with Image.open(io.BytesIO(encode_image(_random_picture(), format="png", text=text))) as image:
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
        encode_image(_random_picture(), **options)


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
    assert contact_sheet([_random_picture()] * 5, columns=9).size == (5 * 15 + 8, 5 + 16)


def test_a_transparent_picture_lies_on_a_checkerboard_in_a_contact_sheet() -> None:
    clear, half = Image.new("RGBA", (64, 64)), Image.new("RGBA", (64, 64), (0, 0, 0, 127))
    opaque = _random_picture(64, 64)
    sheet = np.asarray(contact_sheet([clear, half, opaque.convert("RGBA"), opaque], columns=4))
    first, second, third, fourth = (sheet[8:72, 8 + 72 * i :][:, :64] for i in range(4))
    light, dark = CHECKERS
    assert (first[:4, :4] == light).all() and (first[:4, 4:8] == dark).all() and (first[4:8, :4] == dark).all()
    assert (first == dark).mean() == 0.5
    assert set(np.unique(second)) == {round(light * 128 / 255), round(dark * 128 / 255)}
    assert np.array_equal(third, np.asarray(opaque)) and np.array_equal(fourth, np.asarray(opaque))
    assert (sheet[:8] == 255).all() and (sheet[:, 72:80] == 255).all(), "around them it is white"


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
        contact_sheet([_random_picture()] * 2, labels=["a"])
    with pytest.raises(ParameterError, match="columns is 0"):
        contact_sheet([_random_picture()], columns=0)
