"""Metadata of pairs of the emoji data, and training captions drawn from it."""

import random
from typing import Any

from training.captions.draw import draw_caption
from training.captions.wording import STYLES
from training.emoji.sets import SETS, captions

__all__ = ["BURGER", "KEYWORDS", "PAIRS", "PANDA", "drawn", "metadata_of"]


def metadata_of(name: str, style: str, keywords: tuple[str, ...] = ()) -> dict[str, Any]:
    """The metadata of a pair of the emoji data."""
    (first, *_) = (one for one in SETS if one.style == style)
    return {
        "id": f"{first.name}/{name}",
        "captions": captions(first, name),
        "name_en": name,
        "style": style,
        "keywords_en": list(keywords),
    }


NAMES = (
    *("red heart", "hamburger", "owl", "red panda", "glasses", "hourglass not done", "thumbs up: dark skin tone"),
    *("man: medium skin tone, beard", "woman firefighter: light skin tone", "man running: facing right", "flag: Peru"),
    *("flag: United States", "keycap: 8", "man\u2019s shoe", "Japanese \u201cmonthly amount\u201d button", "Aquarius"),
    *("family: man, woman, boy", "ON! arrow", "A button (blood type)", "unicorn", "face with tears of joy"),
)
KEYWORDS = ("animal", "bamboo", "cute", "forest", "ON!")
PAIRS = [metadata_of(name, style, KEYWORDS) for name in NAMES for style in STYLES]
PANDA = metadata_of("red panda", "fluent 3d", KEYWORDS)
BURGER = metadata_of("hamburger", "twemoji")


def drawn(metadata: dict[str, Any], num: int = 2000, seed: int = 0) -> list[str]:
    """`num` training captions of a pair."""
    chance = random.Random(seed)
    return [draw_caption(metadata, chance) for _ in range(num)]
