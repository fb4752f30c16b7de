"""Captions with what they name: thing, style and group. A caption fits every picture that has all that it names.

Most are the training captions of `training.captions.draw`; one in four of these names no style. A few name only the
style or the group of the picture, so that a CLIP model can be asked for these alone.
"""

import dataclasses
import random
from collections.abc import Mapping
from typing import Any

from dalle.translate.nouns import with_article
from training.captions.draw import draw_caption
from training.captions.wording import Style, style_of

__all__ = ["GROUP_FRAMES", "STYLE_FRAMES", "Caption", "describing", "drawn_caption", "group_prompts", "style_prompts"]

ATTRIBUTE_CAPTION = 0.05
"""Share of captions that name only the style or only the group."""
STYLE_FRAMES = ("{picture}", "{a_picture}", "{style} style", "in {style} style", "something in {style} style")
GROUP_FRAMES = ("{group}", "something of {group}", "a picture of {group}", "the group {group}")


@dataclasses.dataclass(frozen=True)
class Caption:
    """A caption, and what it names."""

    text: str
    thing: bool = True
    """Whether it names what the picture shows."""
    style: bool = False
    """Whether it names the picture's style."""
    group: bool = False
    """Whether it names the picture's group, such as food & drink."""


def drawn_caption(metadata: dict[str, Any], chance: random.Random) -> Caption:
    """Draws a caption of a pair, as a function of its metadata and the state of the random generator."""
    style, group = style_of(metadata), metadata.get("group")
    if metadata.get("name_en") and chance.random() < ATTRIBUTE_CAPTION:
        if group and (style is None or chance.random() < 0.5):
            return Caption(chance.choice(group_prompts(group)), thing=False, group=True)
        if style is not None:
            return Caption(chance.choice(style_prompts(style)), thing=False, style=True)
    return describing(metadata, draw_caption(metadata, chance))


def describing(metadata: Mapping[str, Any], caption: str) -> Caption:
    """A caption that names what the picture of a pair shows, and the style if one of the style's words is in it."""
    style = style_of(dict(metadata))
    return Caption(caption, style=style is not None and any(word in caption.lower() for word in _words(style)))


def _words(style: Style) -> tuple[str, ...]:
    return (style.name, *style.others, *style.held_out)


def style_prompts(style: Style) -> list[str]:
    """Phrases that name a style and nothing else."""
    found = []
    for called in (style.name, *style.others):
        picture = f"{called} {style.medium}".strip()
        words = {"style": called, "picture": picture, "a_picture": with_article(picture)}
        found += [frame.format(**words) for frame in STYLE_FRAMES]
    return found


def group_prompts(group: str) -> list[str]:
    """Phrases that name a group of pictures and nothing else."""
    ways = dict.fromkeys((group, group.replace(" & ", " and ")))
    return [frame.format(group=way) for way in ways for frame in GROUP_FRAMES]
