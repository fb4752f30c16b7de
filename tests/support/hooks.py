"""Hooks as an operator would write them: functions that judge prompts and pictures, some of them wrong."""

import os
import time

from PIL import Image

__all__ = [
    "blocks_dark_pictures",
    "blocks_every_picture",
    "blocks_every_second_picture",
    "blocks_pandas",
    "dies",
    "fails",
    "hangs",
    "no_function",
    "passes_every_picture",
    "says_nothing",
    "takes_its_time",
]

no_function = "a text"
_num_judged = 0


def blocks_pandas(prompt: str) -> bool:
    return "panda" in prompt


def blocks_every_picture(picture: Image.Image) -> bool:
    return True


def passes_every_picture(picture: Image.Image) -> bool:
    print("a hook may print")
    return False


def blocks_dark_pictures(picture: Image.Image) -> bool:
    """Blocks pictures with a mean below the middle."""
    assert picture.mode == "RGB"
    red, green, blue = picture.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))  # type: ignore[misc]
    return (red + green + blue) / 3 < 128


def blocks_every_second_picture(picture: Image.Image) -> bool:
    global _num_judged
    _num_judged += 1
    return _num_judged % 2 == 0


def fails(judged: object) -> bool:
    raise LookupError("the rules are lost")


def says_nothing(judged: object) -> None:
    """Forgets to return a verdict."""


def hangs(judged: object) -> bool:
    time.sleep(3600)
    return False


def takes_its_time(prompt: str) -> bool:
    time.sleep(1.5)
    return False


def dies(judged: object) -> bool:
    os._exit(1)
