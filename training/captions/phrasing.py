"""How the evaluation asks: as training does, or in natural words that training never used.

A model that is asked in its own training captions shows what it has learned, and not whether it understands. So the
natural phrasing has frames and words for styles of its own. They stand here, apart from `training.captions.draw`,
because the measure is worth something only as long as nobody trains on them: a frame that is added to one side must not
exist on the other, and a test compares the two. Both share only the words for what is to be seen: names, synonyms, skin
tones.
"""

import random
from typing import Any, Literal

from training.captions.grammar import countable, with_article, with_the
from training.captions.naming import country_of, said, straight, synonyms
from training.captions.wording import Style, style_of

__all__ = ["Phrasing", "prompt_for"]

Phrasing = Literal["training", "natural"]

# The fields are those of the frames in training.captions.draw.
OF_EMOJI = (
    "{a_style} version of {thing}",
    "{thing} rendered in {style}",
    "{thing}, but in {style}",
    "how would {thing} look as {a_picture}?",
    "i'd love to see {thing} done in {style}",
    "{thing} with {a_style} look",
    "{a_picture} depicting {thing}",
    "{a_picture} that shows {thing}",
    "{style} version: {thing}",
    "something in {style} depicting {thing}",
)
OF_ICONS = (
    "{thing} turned into {a_style}",
    "{a_style} depicting {thing}",
    "{a_style} that shows {thing}",
    "how would {thing} look as {a_style}?",
    "i'd love to see {thing} done as {a_style}",
    "{thing}, but as {a_style}",
    "{thing} rendered as {a_style}",
)
WITHOUT_STYLE = (
    "something that shows {thing}",
    "how would {thing} look?",
    "i'd love to see {thing}",
    "{thing} rendered nicely",
)


def prompt_for(metadata: dict[str, Any], number: int, phrasing: Phrasing = "training") -> str:
    """The prompt that asks for a pair's picture.

    In the phrasing of training it is the pair's first caption. The natural one is a function of the metadata and of
    `number`, the pair's in its split: a synonym half of the time if there is one, the style in other words half of the
    time if there are any, in one of the frames of this module. Every prompt names the style that the pair has.
    """
    caption: str = metadata["captions"][0]
    if phrasing == "training":
        return caption
    chance = random.Random(f"phrasing/{number}")
    if not metadata.get("name_en"):
        return chance.choice(WITHOUT_STYLE).format(thing=straight(caption).rstrip("."))
    style = style_of(metadata)
    thing = _thing(metadata, style, chance)
    if style is None:
        return chance.choice(WITHOUT_STYLE).format(thing=thing)
    called = chance.choice(style.held_out) if style.held_out and chance.random() < 0.5 else style.name
    picture = f"{called} {style.medium}".strip()
    return chance.choice(OF_EMOJI if style.medium else OF_ICONS).format(
        thing=thing,
        style=called,
        a_style=with_article(called),
        a_picture=with_article(picture),
    )


def _thing(metadata: dict[str, Any], style: Style | None, chance: random.Random) -> str:
    name = metadata["name_en"]
    others = synonyms(name)
    if others and chance.random() < 0.5:
        name = chance.choice(others)
    elif (country := country_of(name)) and style is not None and not style.medium:
        return country
    else:
        name = chance.choice(said(name))
    if name.startswith("flag of "):
        return with_the(name)
    return with_article(name) if countable(name) and not metadata.get("style", "").endswith("icon") else name
