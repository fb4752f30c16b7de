"""Training captions: phrases that people might type for a pair's picture, drawn at random from its metadata.

Prompts are worded in other ways than the captions of a data set. So each picture is trained with many captions. One
third are the pair's own first caption, which stays the wording that the model knows best. The others are phrases that
vary in four ways: the name of the picture, the name of its style if any, the frame around both, and the typing.

The evaluation has frames of its own, in `training.captions.phrasing`; none of them may be added to training.
"""

import dataclasses
import random
import re
from collections.abc import Sequence
from typing import Any

from dalle.translate.nouns import countable, is_plural, plural, with_article, with_the
from training.captions.frames import (
    AROUND_WRAPPED,
    ASKABLE,
    ASKING,
    MARKS_AFTER,
    NOT_ASKABLE,
    OF_EMOJI,
    OF_ICONS,
    OF_STYLES,
    OF_TRADE_NAMES,
    PLAIN,
    SEPARATORS,
    TRADE_NAMES,
    WITH_ONE,
    WITHOUT_EMOJI,
    WRAPPED,
)
from training.captions.naming import country_of, said, straight, synonyms, telling_keywords
from training.captions.wording import Style, style_of

__all__ = ["all_captions", "draw_caption"]

FIRST_CAPTION = 1 / 3
"""Share of captions that are the pair's first caption, unchanged."""
OWN_CAPTION = 0.05
"""Share of captions that are one of the pair's other captions, before typing is varied."""
WITHOUT_STYLE = 0.25
"""Share of captions that name no style."""
KEYWORD_CAPTION = 0.06
"""Share of captions that have keywords, after the name or instead of it."""
SYNONYM = 0.4
"""Share of names that are replaced by a synonym, among names that have one."""
PLURAL = 0.05
"""Share of countable names that are in the plural."""
OTHER_STYLE_WORDS = 0.4
"""Share of styles that are named by other words than their own name."""
ASKED = 0.15
"""Share of framed phrases that are worded as a request: draw ..."""
WRAPPED_ALONE, WRAPPED_WITH_STYLE = 0.5, 0.1
"""Shares of framed phrases that say `a picture of` or the like: of those without and of those with a style."""
TYPO = 0.025
"""Share of captions with a typing error."""
NUM_FOR_TOKENIZER = 6
"""Captions that are drawn for each pair to train the text tokenizer."""

NEIGHBOURS = dict(zip("qwertyuiopasdfghjklzxcvbnm", "wertyuioposdfghjklkxcvbnmn", strict=True))
"""The key beside each letter on an English keyboard."""


def draw_caption(metadata: dict[str, Any], chance: random.Random) -> str:
    """Draws one caption of a pair, as a function of its metadata and the state of the random generator.

    It uses `captions` and, if the pair has them, `name_en`, `style` and `keywords_en`. A pair without a name has only
    its captions: half of the time they stay unchanged; otherwise they vary slightly.
    """
    own: list[str] = metadata["captions"]
    if not metadata.get("name_en"):
        return _own_caption(own, chance)
    if chance.random() < FIRST_CAPTION:
        return own[0]
    rest = 1 - FIRST_CAPTION
    if chance.random() < OWN_CAPTION / rest:
        return _typed(straight(chance.choice(own[1:] or own)), chance)
    style = style_of(metadata)
    if style is not None and chance.random() < WITHOUT_STYLE / rest:
        style = None
    if chance.random() < KEYWORD_CAPTION / rest and (keywords := telling_keywords(metadata)):
        return _typed(_with_keywords(metadata, keywords, style, chance), chance)
    wraps = WRAPPED if "emoji" in own[0] else WITHOUT_EMOJI
    return _typed(_framed(_naming(metadata, style, chance), style, wraps, chance), chance)


def all_captions(metadata: dict[str, Any]) -> list[str]:
    """The phrases of a pair that the text tokenizer is trained on: its captions, name and keywords, and some training
    captions, drawn with a seed that depends on the pair alone."""
    name = [metadata["name_en"]] if metadata.get("name_en") else []
    chance = random.Random(f"tokenizer/{metadata.get('id', '')}/{metadata['captions'][0]}")
    drawn = [draw_caption(metadata, chance) for _ in range(NUM_FOR_TOKENIZER)] if name else []
    return [*metadata["captions"], *name, *metadata.get("keywords_en", []), *drawn]


# -- the name


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Naming:
    """A name of the picture, and its form in a sentence."""

    name: str
    """The bare name."""
    thing: str
    """The name with or without an article, or its plural."""
    one: bool
    """Whether the name can take the article `a`."""


def _naming(metadata: dict[str, Any], style: Style | None, chance: random.Random) -> _Naming:
    name = metadata["name_en"]
    others = synonyms(name)
    if others and chance.random() < SYNONYM:
        name = chance.choice(others)
    elif (country := country_of(name)) and style is not None and not style.medium:
        name = country  # a round flag of Peru
    else:
        ways = said(name)
        name = ways[0] if chance.random() < 0.4 else chance.choice(ways)
    # names of icons are words without grammar, such as `undo` and `controls forward`, which take no article
    one = countable(name) and not metadata.get("style", "").endswith("icon")
    if one and chance.random() < PLURAL and (many := plural(name)):
        return _Naming(name=name, thing=many, one=False)
    luck = chance.random()
    if one and luck < 0.4:
        thing = with_article(name)
    elif luck > (0.5 if name.startswith("flag of ") else 0.94) and (one or is_plural(name) or "flag of " in name):
        thing = with_the(name)
    else:
        thing = name
    return _Naming(name=name, thing=thing, one=one)


def _with_keywords(metadata: dict[str, Any], keywords: list[str], style: Style | None, chance: random.Random) -> str:
    """The name with one to three keywords, or at least two keywords without the name, and the style."""
    chosen = chance.sample(keywords, k=min(len(keywords), chance.randint(1, 3)))
    with_name = len(chosen) < 2 or chance.random() < 0.7
    parts = [*([said(metadata["name_en"])[0]] if with_name else []), *chosen]
    if style is not None:
        ending = f"{style.name} style {style.medium}".strip() if style.medium else style.name
        parts.append(ending if chance.random() < 0.5 else _style_words(style, chance))
    return chance.choice(SEPARATORS).join(parts)


# -- the frame


def _style_words(style: Style, chance: random.Random) -> str:
    return chance.choice(style.others) if style.others and chance.random() < OTHER_STYLE_WORDS else style.name


def _framed(naming: _Naming, style: Style | None, wraps: Sequence[str], chance: random.Random) -> str:
    """The name and the style in a frame, worded as a request or as a `picture of` it, or neither."""
    asked = chance.random() < ASKED
    wrapped = chance.random() < (WRAPPED_ALONE if style is None else WRAPPED_WITH_STYLE)
    words = {"name": naming.name, "thing": naming.thing}
    if style is None:
        frames: Sequence[str] = wraps if wrapped else PLAIN
    else:
        called = _style_words(style, chance)
        picture = f"{called} {style.medium}".strip()
        words |= {"style": called, "a_style": with_article(called), "medium": style.medium}
        words |= {"picture": picture, "a_picture": with_article(picture)}
        if wrapped and style.medium:
            words["thing"] = chance.choice(wraps).format(**words)
            frames = AROUND_WRAPPED if asked else (*AROUND_WRAPPED, *MARKS_AFTER)
        elif style.medium:
            frames = (*ASKABLE, *OF_STYLES, *(WITH_ONE if naming.one else ()))
            if not asked:
                frames = (*frames, *MARKS_AFTER, *NOT_ASKABLE, *OF_EMOJI)
                frames = (*frames, *OF_TRADE_NAMES) if called.startswith(TRADE_NAMES) else frames
        else:
            frames = ASKABLE if asked else (*ASKABLE, *MARKS_AFTER, *NOT_ASKABLE, *OF_ICONS)
    phrase = chance.choice(frames).format(**words)
    return chance.choice(ASKING).format(it=phrase) if asked else phrase


# -- typing


def _typed(phrase: str, chance: random.Random) -> str:
    """The phrase with variations of typing: capitals, curly quotes, a final mark and, rarely, a typing error."""
    rest = 1 - FIRST_CAPTION
    if chance.random() < TYPO / rest:
        phrase = _mistyped(phrase, chance)
    phrase = _cased(phrase, chance)
    if re.search(r"[\w)]$", phrase):
        luck = chance.random()
        phrase += "." if luck < 0.08 else "!" if luck < 0.11 else ""
    if chance.random() < 0.3:
        phrase = re.sub(r'"([^"]*)"', "\u201c\\1\u201d", phrase.replace("'", "\u2019"))
    return phrase


def _cased(phrase: str, chance: random.Random) -> str:
    luck = chance.random()
    if luck < 0.5:
        return phrase
    if luck < 0.7:
        return phrase.lower()
    if luck < 0.88:
        return phrase[:1].upper() + phrase[1:]
    if luck < 0.97:
        return re.sub(r"(^|(?<=[\s(]))\w", lambda letter: letter[0].upper(), phrase)
    return phrase.upper()


def _mistyped(phrase: str, chance: random.Random) -> str:
    """The phrase with one error in one word of at least four letters: two letters swapped, or one letter left out,
    doubled, or replaced by its neighbour on the keyboard."""
    words = [match.span() for match in re.finditer(r"[A-Za-z]{4,}", phrase)]
    if not words:
        return phrase
    start, end = chance.choice(words)
    at = chance.randrange(start + 1, end - 1)
    here, after = phrase[at], phrase[at + 1]
    wrong = chance.choice([after + here, after, here * 2 + after, NEIGHBOURS[here.lower()] + after])
    return phrase[:at] + wrong + phrase[at + 2 :]


def _own_caption(own: list[str], chance: random.Random) -> str:
    """One of the pair's own captions: half of the time unchanged, otherwise with other capitals, without its article or
    full stop, or after `a picture of`."""
    caption = own[0] if chance.random() < 0.5 else chance.choice(own)
    if chance.random() < 0.5:
        return caption
    if chance.random() < 0.3:
        caption = re.sub(r"^(an?|the) (?=\w)", "", caption, flags=re.IGNORECASE)
    if chance.random() < 0.15 and not re.match(r"(picture|image|photo|drawing|an? \w+ of)\b", caption, re.IGNORECASE):
        lower = caption[:1].lower() + caption[1:] if caption[1:2].islower() or caption[1:2] == " " else caption
        caption = f"a picture of {lower}"
    luck = chance.random()
    if luck < 0.4:
        caption = caption.lower() if luck < 0.2 else caption[:1].upper() + caption[1:]
    if chance.random() < 0.3:
        caption = caption[:-1] if caption.endswith(".") else f"{caption}." if caption[-1:].isalnum() else caption
    return caption
