"""Which codes of a given picture are kept: `kept_codes` on files as callers send them."""

import io
from pathlib import Path

import pytest
import torch
from PIL import ExifTags, Image

from dalle import DALLE
from dalle.errors import ImageError
from serving.jobs import Given
from serving.pictures import kept_codes

ON_ITS_SIDE = 6
"""EXIF orientation of a camera held upright: turned clockwise when it is shown."""


@pytest.fixture(scope="module")
def model(model_folder: Path) -> DALLE:
    return DALLE.load(model_folder)


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


def drawn(model: DALLE, image: bytes, mask: bytes) -> list[list[int]]:
    return (kept_codes(model, Given(image=image, mask=mask)).view(4, 4) < 0).nonzero().tolist()


def test_a_mask_is_held_against_the_picture_as_it_is_seen(model: DALLE) -> None:
    """24 x 16 pixels in the file, 16 x 24 when shown; of these the middle 16 x 16 are taken."""
    image = file_of(picture(24, 16), ON_ITS_SIDE)
    assert drawn(model, image, file_of(mask(16, 24, (15, 4)))) == [[0, 3]]
    with pytest.raises(ImageError, match="the mask is 16 x 24 and the picture 24 x 16"):
        drawn(model, image, file_of(mask(24, 16, (0, 0))))


def test_a_mask_may_lie_on_its_side_too(model: DALLE) -> None:
    # the pixel at (4, 0) of the file is shown at (15, 4)
    image = file_of(picture(24, 16), ON_ITS_SIDE)
    assert drawn(model, image, file_of(mask(24, 16, (4, 0)), ON_ITS_SIDE)) == [[0, 3]]
