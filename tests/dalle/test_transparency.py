"""Transparency of pictures: conversion, files, backgrounds and contact sheets."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dalle.errors import ParameterError
from dalle.images import (
    CHECKERS,
    ImageFormat,
    Mode,
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
from tests.support.pictures import random_picture, saved


def _every_colour_and_alpha() -> Image.Image:
    """Every pair of a red (columns) and an alpha (rows); green and blue are other ramps."""
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
    image = random_picture()
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
    assert not has_transparency(opaque) and not has_transparency(random_picture())
    opaque.putpixel((1, 0), (1, 2, 3, 254))
    assert has_transparency(opaque)
    palette = Image.new("P", (1, 1))
    palette.info["transparency"] = 0
    assert has_transparency(palette) and has_transparency(Image.new("LA", (1, 1), (0, 0)))


def test_any_mode_becomes_rgba() -> None:
    image = _every_colour_and_alpha()
    assert to_rgba(image) is image
    opaque = to_rgba(random_picture())
    assert opaque.mode == "RGBA" and opaque.getchannel("A").getextrema() == (255, 255)
    assert opaque.convert("RGB").tobytes() == random_picture().tobytes()
    assert to_rgba(Image.new("LA", (1, 1), (7, 9))).getpixel((0, 0)) == (7, 7, 7, 9)
    assert to_rgba(Image.fromarray(np.array([[65535]], dtype=np.uint16))).getpixel((0, 0)) == (255,) * 4
    assert (to_mode(image, "RGB").mode, to_mode(random_picture(), "RGBA").mode) == ("RGB", "RGBA")


def test_load_keeps_transparency_if_it_is_asked_to() -> None:
    image = _every_colour_and_alpha()
    assert load_image(saved(image), mode="RGBA").tobytes() == image.tobytes()
    assert load_image(saved(image)).tobytes() == to_rgb(image).tobytes()
    assert load_image(saved(random_picture()), mode="RGBA").getchannel("A").getextrema() == (255, 255)
    # transparent green must not appear where resizing mixes it with red
    sides = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    sides.paste((255, 0, 0, 255), (32, 0, 64, 64))
    small = np.asarray(load_image(saved(sides), size=(8, 8), mode="RGBA"))
    assert small[..., 1].max() == 0 and small[:, 0, 3].max() == 0 and small[:, 7, 3].min() == 255


def test_transparency_goes_over_white() -> None:
    rgba = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    rgba.putpixel((1, 0), (0, 0, 0, 127))
    palette = Image.new("P", (1, 1))
    palette.putpalette([9, 9, 9])
    assert np.asarray(load_image(saved(rgba)))[0].tolist() == [[255] * 3, [128] * 3]
    assert load_image(saved(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(saved(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3))).getpixel((0, 0)) == (255,) * 3
    assert to_tensor(Image.new("LA", (1, 1), (0, 0))).flatten().tolist() == [1.0] * 3


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


def test_a_transparent_picture_lies_on_a_checkerboard_in_a_contact_sheet() -> None:
    clear, half = Image.new("RGBA", (64, 64)), Image.new("RGBA", (64, 64), (0, 0, 0, 127))
    opaque = random_picture(64, 64)
    sheet = np.asarray(contact_sheet([clear, half, opaque.convert("RGBA"), opaque], columns=4))
    first, second, third, fourth = (sheet[8:72, 8 + 72 * i :][:, :64] for i in range(4))
    light, dark = CHECKERS
    assert (first[:4, :4] == light).all() and (first[:4, 4:8] == dark).all() and (first[4:8, :4] == dark).all()
    assert (first == dark).mean() == 0.5
    assert set(np.unique(second)) == {round(light * 128 / 255), round(dark * 128 / 255)}
    assert np.array_equal(third, np.asarray(opaque)) and np.array_equal(fourth, np.asarray(opaque))
    assert (sheet[:8] == 255).all() and (sheet[:, 72:80] == 255).all(), "around them it is white"
