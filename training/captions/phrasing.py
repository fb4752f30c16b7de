"""Prompts of the evaluation, in two phrasings: that of training, or a natural one that never occurs in training.

Prompts that are training captions measure what a model has learned, but not whether it generalises to other wordings.
So the natural phrasing has frames and words for styles of its own. They are kept apart from `training.captions.draw`,
because the measure is valid only while they are not trained on: no frame may exist on both sides, which a test checks.
Both sides share only the words for what a picture shows: names, synonyms and skin tones.
"""

import random
from typing import Any, Literal

from dalle.translate.nouns import countable, with_article, with_the
from training.captions.naming import country_of, said, straight, synonyms
from training.captions.wording import Style, style_of

__all__ = ["Phrasing", "prompt_for"]

Phrasing = Literal["training", "natural"]

# The fields are those of training.captions.frames.
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
    """The prompt for a pair's picture.

    In the training phrasing, it is the pair's first caption. The natural prompt is a function of the metadata and of
    `number`, the number of the pair in its split: one of the frames of this module, with a synonym half of the time if
    the name has one, and with other words for the style half of the time if the style has any. Every prompt names the
    style of a pair that has one.
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
