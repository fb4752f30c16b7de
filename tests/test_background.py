"""What lies behind a picture: what may be asked for, and what a picture gets."""

import pytest
from PIL import Image

from dalle.background import BACKGROUNDS, choose_background, with_background
from dalle.errors import ParameterError
from dalle.images import ImageFormat, Mode


@pytest.mark.parametrize(
    ("mode", "image_format", "chosen"),
    [
        ("RGBA", "png", ["transparent", "opaque", "transparent"]),
        ("RGBA", "webp", ["transparent", "opaque", "transparent"]),
        ("RGBA", "jpeg", ["jpeg has no transparency: the formats that have it are png and webp", "opaque", "opaque"]),
        ("RGB", "png", ["the model lively draws no transparency: it must be opaque or auto", "opaque", "opaque"]),
        ("RGB", "jpeg", ["the model lively draws no transparency: it must be opaque or auto", "opaque", "opaque"]),
    ],
)
def test_a_background_is_chosen_by_model_and_format(mode: Mode, image_format: ImageFormat, chosen: list[str]) -> None:
    for asked, expected in zip(BACKGROUNDS, chosen, strict=True):
        try:
            found: str = choose_background(asked, model="lively", mode=mode, image_format=image_format)
        except ParameterError as error:
            found = str(error).removeprefix("background is 'transparent', but ")
        assert found == expected


def test_another_value_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ParameterError, match="background is 'pink'; it must be transparent, opaque or auto"):
        choose_background("pink", model="clear", mode="RGBA")


def test_opaque_is_over_white() -> None:
    drawn = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    drawn.putpixel((1, 0), (0, 0, 0, 127))
    assert with_background(drawn, "transparent") is drawn
    opaque = with_background(drawn, "opaque")
    assert opaque.mode == "RGB" and list(opaque.get_flattened_data()) == [(255,) * 3, (128,) * 3]
