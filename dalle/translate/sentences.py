"""Lexicon and network together: sentences into English whose content words all come from words of the source.

1. A sentence that as a whole is a known name becomes that name's English.
2. Otherwise known names and unknown words are replaced by slots, and the network translates the rest. Its sentence is
   accepted if it has every slot once, if each of its content words may come from a word of its own in the source (see
   `Lexicon.licences`), and if each word of the source that has few translations has become one of them. The slots are
   then filled: with the names' English, and with unknown words as they were.
3. A sentence that is not accepted is looked up instead: known names in English, the rest kept.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from dalle.translate.languages import clean
from dalle.translate.lexicon import SLOTS, Lexicon, Piece

__all__ = ["FUNCTION_WORDS", "Sentence", "translate"]

FUNCTION_WORDS = frozenset("a an the of in on at with and or for to from by".split())
"""English words that a translation may have whatever the source says."""
CLEAR = 4
"""A word of the source that may become at most so many English words must have become one of them."""
ENGLISH_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
ARTICLE = re.compile(r"\b(a|an) (?=\S)", re.IGNORECASE)
VOWEL = re.compile(r"(?!(?:uni([^mn]|$)|u[tks]\w|ewe|ufo\b|eu|one\b|once\b))[aeiou]|hour\b|heir\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A translated sentence."""

    source: str
    english: str
    unknown: tuple[str, ...]
    """Words of the source that are kept as they were, since neither lexicon nor network knows them."""
    by: Literal["name", "network", "look-up"]
    """What translated it: the lexicon as one name, the network with the lexicon's names, or the lexicon alone."""


def translate(
    sources: Sequence[str], lexicon: Lexicon, network: Callable[[Sequence[str]], Sequence[str]]
) -> list[Sentence]:
    """Translate sentences of the lexicon's language into English.

    network: translates a batch of sentences, in each of which up to eight slots may stand for words.
    """
    cleaned = [clean(source) for source in sources]
    prepared = [_masked(text, lexicon) for text in cleaned]
    names = [lexicon.name(text) for text in cleaned]
    waiting = [index for index, name in enumerate(names) if name is None and prepared[index] is not None]
    answers = dict(zip(waiting, network([_text(prepared[index]) for index in waiting]) if waiting else [], strict=True))
    found = []
    for index, source in enumerate(sources):
        text, name = cleaned[index], names[index]
        if name is not None:
            found.append(Sentence(source, name, (), "name"))
            continue
        english = _filled(answers[index], prepared[index], lexicon) if index in answers else None
        by: Literal["network", "look-up"] = "network" if english is not None else "look-up"
        unknown = tuple(piece.english for piece in lexicon.pieces(text) if piece.kind == "unknown")
        if english is None:
            english = lexicon.look_up(text)
            unknown = tuple(piece.english for piece in lexicon.pieces(text) if piece.kind in ("unknown", "word"))
        found.append(Sentence(source, english, unknown, by))
    return found


@dataclasses.dataclass(frozen=True)
class _Masked:
    text: str
    slots: tuple[Piece, ...]
    rest: str


def _text(masked: _Masked | None) -> str:
    assert masked is not None
    return masked.text


def _masked(text: str, lexicon: Lexicon) -> _Masked | None:
    """The sentence with slots; None if it needs more slots than there are. Words in a row that are unknown share one,
    with what is between them."""
    slots: list[Piece] = []
    for piece in lexicon.pieces(text):
        if piece.kind == "word":
            continue
        last = slots[-1] if slots else None
        if last and last.kind == piece.kind != "name" and not text[last.end : piece.start].strip(" -"):
            slots[-1] = Piece(last.start, piece.end, piece.kind, text[last.start : piece.end])
        else:
            slots.append(piece)
    if len(slots) > len(SLOTS):
        return None
    parts, rest, at = [], [], 0
    for slot, piece in zip(SLOTS, slots, strict=False):
        parts += [text[at : piece.start], slot]
        rest.append(text[at : piece.start])
        at = piece.end
    return _Masked("".join([*parts, text[at:]]), tuple(slots), " ".join([*rest, text[at:]]))


def _filled(english: str, masked: _Masked | None, lexicon: Lexicon) -> str | None:
    """The network's sentence with its slots filled; None if it is not accepted."""
    assert masked is not None
    used = sorted(character for character in english if character in SLOTS)
    if used != list(SLOTS[: len(masked.slots)]):
        return None
    licences = [found - FUNCTION_WORDS for found in lexicon.licences(masked.rest)]
    words = Counter(word for word in ENGLISH_WORD.findall(english.lower()) if word not in FUNCTION_WORDS)
    as_they_are = Counter(ENGLISH_WORD.findall(masked.rest.lower()))
    if not (words or masked.slots):
        return None
    if any(count > as_they_are[word] + sum(word in found for found in licences) for word, count in words.items()):
        return None
    # a Japanese word may be cut where its script changes, so that a part of it is not translated by itself
    if lexicon.language != "ja" and any(0 < len(found) <= CLEAR and found.isdisjoint(words) for found in licences):
        return None
    for slot, piece in zip(SLOTS, masked.slots, strict=False):
        english = english.replace(slot, piece.english)
    return ARTICLE.sub(lambda found: _article(found[1], english[found.end() :]), english)


def _article(article: str, following: str) -> str:
    right = "an" if VOWEL.match(following) else "a"
    return f"{right.capitalize() if article[0].isupper() else right} "
