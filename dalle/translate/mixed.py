"""Prompts in two languages: the English in them stays in its place, and the rest is translated.

    red panda and 고양이   ->  red panda and cat         un chat with a hat  ->  a cat with a hat

A prompt is such a mixture if it has small words of English (`and`, `with`, `a`), and words that English lacks. Names of
styles and other English nouns among words of another language are none: `un chat, style black line icon`.
"""

from collections.abc import Callable
from typing import Literal

from dalle.translate.clauses import Part
from dalle.translate.english import WORD
from dalle.translate.languages import script_of

__all__ = ["SMALL", "WordKind", "mixture_of", "of_two_scripts"]

WordKind = Literal["english", "foreign", "both"]
SMALL = frozenset("and with without of the wearing holding from under behind".split())
"""Words that make a part of a prompt English."""
ARTICLES = frozenset({"a", "an"})


def mixture_of(text: str, kind_of: Callable[[str], WordKind], *, needs_small_word: bool = True) -> list[Part] | None:
    """The parts of a prompt in English and in another language, in their order; None if it is in one language.

    kind_of: what a word in lower case is. Words of both languages belong to the part that they stand in.
    needs_small_word: whether a prompt without small words of English is none.
    """
    words = [*WORD.finditer(text)]
    said = [word[0].lower() for word in words]
    kinds = [kind_of(word) for word in said]
    is_english: list[bool | None] = [None if kind == "both" else kind == "english" for kind in kinds]
    for number in reversed(range(len(words) - 1)):  # `a hat`, and what the first word belongs to
        if is_english[number] is None and (said[number] in ARTICLES or all(one is None for one in is_english[:number])):
            is_english[number] = is_english[number + 1]
    for number in range(1, len(words)):
        if is_english[number] is None:
            is_english[number] = is_english[number - 1]
    has_small = any(kind and word in SMALL | ARTICLES for kind, word in zip(is_english, said, strict=True))
    if (needs_small_word and not has_small) or all(is_english) or not any(is_english):
        return None
    cuts = [
        word.start() for word, one, before in zip(words[1:], is_english[1:], is_english, strict=False) if one != before
    ]
    places = zip([0, *cuts], [*cuts, len(text)], strict=True)
    starts = [0, *(next(i for i, word in enumerate(words) if word.start() == cut) for cut in cuts)]
    return [
        Part(text[start:end], is_english=bool(is_english[number]))
        for (start, end), number in zip(places, starts, strict=True)
    ]


def of_two_scripts(word: str) -> WordKind:
    """What a word is in a Korean or Japanese prompt: English in Latin letters."""
    scripts = {script_of(character) for character in word}
    return "english" if scripts == {"other"} else "foreign"
