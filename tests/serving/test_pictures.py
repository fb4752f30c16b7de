"""Given pictures: reading callers' files, masks, kept codes, and previews."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from dalle import DALLE
from dalle.errors import ImageError, ParameterError
from dalle.images import encode_image, to_rgb, with_background
from serving.engine.pictures import kept_codes, preview
from serving.ingress.given import prepare, prompt_of
from serving.jobs import ModelInfo
from serving.refusals import MaskError

ON_ITS_SIDE = 6
"""EXIF orientation of a camera held upright: turned clockwise when it is shown."""


@pytest.fixture(scope="module")
def info(model: DALLE) -> ModelInfo:
    return ModelInfo(
        id="lively",
        digest=model.digest,
        height=16,
        width=16,
        grid_rows=4,
        num_codes=16,
        max_prompt_tokens=11,
        image_mode="RGB",
        sampling={},
        created=0,
    )


@pytest.fixture(scope="module")
def clear_info(clear: DALLE, info: ModelInfo) -> ModelInfo:
    return dataclasses.replace(info, id="clear", digest=clear.digest, image_mode="RGBA")


def file_of(image: Image.Image, orientation: int = 1) -> bytes:
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    return file.getvalue()


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray((torch.rand(height, width, 3) * 255).byte().numpy())


def mask(width: int, height: int, hole: tuple[int, int]) -> Image.Image:
    image = Image.new("RGBA", (width, height), "white")
    image.putpixel(hole, (0, 0, 0, 0))
    return image


def drawn(info: ModelInfo, image: bytes, mask: bytes) -> list[list[int]]:
    """Rows and columns of the codes that are drawn."""
    keep = torch.tensor(prepare(image, mask, None, info, max_pixels=10**7).keep)
    return (~keep).view(info.grid_rows, -1).nonzero().tolist()


def test_a_mask_is_held_against_the_picture_as_it_is_seen(info: ModelInfo) -> None:
    """24 x 16 pixels in the file, 16 x 24 when shown; of these the middle 16 x 16 are taken."""
    image = file_of(picture(24, 16), ON_ITS_SIDE)
    assert drawn(info, image, file_of(mask(16, 24, (15, 4)))) == [[0, 3]]
    with pytest.raises(MaskError, match="the mask is 16 x 24 and the picture 24 x 16"):
        drawn(info, image, file_of(mask(24, 16, (0, 0))))


def test_a_mask_may_lie_on_its_side_too(info: ModelInfo) -> None:
    # the pixel at (4, 0) of the file is shown at (15, 4)
    image = file_of(picture(24, 16), ON_ITS_SIDE)
    assert drawn(info, image, file_of(mask(24, 16, (4, 0)), ON_ITS_SIDE)) == [[0, 3]]


@pytest.mark.parametrize(
    ("size", "hole", "codes"),
    [
        (16, (5, 5), [[1, 1]]),
        (1600, (401, 799), [[1, 1]]),  # one pixel of 160,000
        (1600, (400, 1599), [[3, 1]]),
        (15, (3, 0), [[0, 0], [0, 1]]),  # 3.75 pixels a code: this one reaches into two
        (2, (0, 1), [[2, 0], [2, 1], [3, 0], [3, 1]]),
    ],
)
def test_a_code_is_drawn_if_the_smallest_part_of_it_is_transparent(
    info: ModelInfo, size: int, hole: tuple[int, int], codes: list[list[int]]
) -> None:
    assert drawn(info, file_of(picture(size, size)), file_of(mask(size, size, hole))) == codes


def test_what_is_cropped_away_is_not_drawn(info: ModelInfo) -> None:
    image = file_of(picture(32, 16))
    with pytest.raises(ImageError, match="nothing to draw"):
        drawn(info, image, file_of(mask(32, 16, (7, 0))))
    assert drawn(info, image, file_of(mask(32, 16, (8, 0)))) == [[0, 0]]


def test_a_mask_needs_transparency(info: ModelInfo) -> None:
    with pytest.raises(MaskError, match="has no transparency"):
        drawn(info, file_of(picture(16, 16)), file_of(picture(16, 16)))
    with pytest.raises(MaskError, match="the mask is damaged"):
        drawn(info, file_of(picture(16, 16)), b"no picture")
    with pytest.raises(ImageError, match="the picture is damaged") as caught:
        drawn(info, b"no picture", file_of(picture(16, 16)))
    assert not isinstance(caught.value, MaskError)


def test_rows_are_kept_from_the_top(info: ModelInfo) -> None:
    image = file_of(picture(16, 16))
    assert prepare(image, None, 3, info, max_pixels=256).keep == (True,) * 12 + (False,) * 4
    assert prepare(image, None, None, info, max_pixels=256).keep == (True,) * 8 + (False,) * 8
    with pytest.raises(ParameterError, match=r"keep_rows is 4; it must be in 0\.\.3"):
        prepare(image, None, 4, info, max_pixels=256)
    with pytest.raises(ImageError, match="the limit is 255"):
        prepare(image, None, 3, info, max_pixels=255)


def test_kept_codes_are_those_of_the_picture(model: DALLE, info: ModelInfo) -> None:
    given = picture(16, 16)
    codes = kept_codes(model, prepare(file_of(given), None, 2, info, max_pixels=256)).view(4, 4)
    assert codes[:2].equal(model.encode(given)[:2]) and (codes[2:] == -1).all()


def test_transparency_is_kept_for_a_model_that_draws_it(
    model: DALLE, clear: DALLE, info: ModelInfo, clear_info: ModelInfo
) -> None:
    image = Image.new("RGBA", (16, 16), (200, 0, 0, 90))
    image.paste((0, 0, 250, 0), (0, 4, 16, 16))
    given = prepare(file_of(image), None, 2, clear_info, max_pixels=256)
    assert (given.mode, given.pixels) == ("RGBA", image.tobytes())
    assert kept_codes(clear, given).view(4, 4)[:2].equal(clear.encode(image)[:2])
    over_white = prepare(file_of(image), None, 2, info, max_pixels=256)
    assert (over_white.mode, over_white.pixels) == ("RGB", to_rgb(image).tobytes())
    assert kept_codes(model, over_white).view(4, 4)[:2].equal(model.encode(to_rgb(image))[:2])
    opaque = prepare(file_of(picture(16, 16)), None, 2, clear_info, max_pixels=256)
    assert opaque.mode == "RGBA" and set(opaque.pixels[3::4]) == {255}


def test_the_transparency_of_a_picture_is_no_mask(clear_info: ModelInfo) -> None:
    clear_picture, holes = Image.new("RGBA", (16, 16)), mask(16, 16, (5, 5))
    given = prepare(file_of(clear_picture), file_of(holes), None, clear_info, max_pixels=256)
    assert [place for place, kept in enumerate(given.keep) if not kept] == [5], "the mask alone says what is drawn"
    assert set(given.pixels) == {0}
    assert prepare(file_of(clear_picture), None, 3, clear_info, max_pixels=256).keep == (True,) * 12 + (False,) * 4


def test_what_is_still_to_come_is_grey_and_opaque(model: DALLE, clear: DALLE) -> None:
    codes = torch.arange(6)
    to_come = np.array([[row * 4 + column >= 6 for column in range(4)] for row in range(4)]).repeat(4, 0).repeat(4, 1)
    for one in (model, clear):
        image = preview(one, codes)
        pixels = np.asarray(image)
        assert image.mode == one.image_mode
        assert (pixels[to_come] == [235, 235, 235, 255][: pixels.shape[-1]]).all()
        assert (pixels[~to_come] != 235).any()
    alpha = np.asarray(preview(clear, codes))[..., 3]
    assert alpha[~to_come].min() < 128, "what is drawn is as transparent as it is"
    assert (np.asarray(with_background(preview(clear, codes), "opaque"))[to_come] == 235).all()


def test_the_prompt_of_a_receipt_is_read_within_the_limit_of_pixels(model: DALLE) -> None:
    (drawn_one,) = model.generate("a red panda", n=1, seed=1)
    file = encode_image(drawn_one.image, format="png", text=drawn_one.receipt.to_text())
    assert prompt_of(file, max_pixels=256) == "a red panda"
    assert prompt_of(file, max_pixels=255) is None
    assert prompt_of(file_of(picture(16, 16)), max_pixels=256) is None
