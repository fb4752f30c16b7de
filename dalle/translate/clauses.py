"""Parts of a sentence: where it is cut, and whether attributes, negations and marks stay where they were.

    un chat noir, un chien blanc  ->  a white black cat, dog       refused: `white` belongs to the dog's clause

A clause ends at a comma or another mark, and at a word such as `and`, `with` or `in`. Within a Korean or Japanese
clause, a word belongs to the names beside it. The checks read sentences with slots in place of names.
"""

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable

from dalle.translate.grammar import (
    ARTICLES,
    ENGLISH_JOINING,
    ENGLISH_NEGATIONS,
    ENGLISH_POSITIONS,
    FUNCTION_WORDS,
    JOINING,
    NEGATION_FOLLOWS,
    NEGATIONS,
    POSITIONS,
)
from dalle.translate.languages import Word, folded, without_particle, words_in
from dalle.translate.lexicon import SLOTS, Lexicon

__all__ = [
    "ENGLISH_WORD",
    "Part",
    "attributes_stay",
    "has_marks",
    "marks_stay",
    "negations_stay",
    "parts_of",
    "positions_stay",
    "slots_stay_apart",
]

ENGLISH_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
MARK = re.compile(r"""[,;:.!?()\[\]{}"\u00ab\u00bb\u3001\u3002\u300c\u300d/|+&](?:\s|$)?|\s[-\u2013\u2014]\s""")
KEPT_MARKS = re.compile(r"[()\[\]{}\"\u00ab\u00bb\u300c\u300d]")
ENGLISH_MARKS = str.maketrans({"\u3001": ", ", "\u3002": ". ", "\u300c": '"', "\u300d": '"'})


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a sentence: a text to translate, or what stands between two of them, in English already."""

    text: str
    is_english: bool = False


def parts_of(text: str, lexicon: Lexicon, *, at_phrases: bool = False) -> list[Part]:
    """The parts of a cleaned sentence, in the order of the English: marks and joining words as English, and between
    them the texts to translate. An article begins a part; names and phrases of the lexicon are never cut.

    at_phrases: whether a phrase that begins with a joining word, such as `con un sombrero`, begins a part too.
    """
    language = lexicon.language
    found: list[Part] = []
    start = at = 0

    def cut(end: int, english: str, following: int) -> None:
        nonlocal start
        found.extend((Part(text[start:end].strip()), Part(english, is_english=True)))
        start = following

    for piece in (*lexicon.pieces(text), None):
        gap = text[at : len(text) if piece is None else piece.start]
        particle = re.match(r"\w*", gap)
        if language == "ko" and at > 0 and particle and particle[0] in JOINING[language]:
            cut(at, f" {JOINING[language][particle[0]]} ", at + particle.end())
        for mark in MARK.finditer(gap):
            blank = " " if gap[: mark.start()].endswith(" ") else ""
            cut(at + mark.start(), blank + mark[0].translate(ENGLISH_MARKS), at + mark.end())
        if piece is None:
            break
        key = folded(text[piece.start : piece.end], language) if piece.kind == "word" else ""
        if language in NEGATION_FOLLOWS and key in NEGATIONS[language] and text[start : piece.start].strip():
            negated = Part(text[start : piece.start].strip())
            rest = parts_of(text[piece.end :].strip().removeprefix("の"), lexicon, at_phrases=at_phrases)
            head = next((index for index, part in enumerate(rest) if part.is_english), len(rest))
            english = Part(f" {NEGATIONS[language][key]} ", is_english=True)
            return _said([*found, *rest[:head], english, negated, *rest[head:]])
        joining = JOINING[language].get(key) or (language not in NEGATION_FOLLOWS and NEGATIONS[language].get(key))
        if joining:
            cut(piece.start, f" {joining} ", piece.end)
        elif at_phrases and key.partition(" ")[0] in JOINING[language] and text[start : piece.start].strip():
            cut(piece.start, " ", piece.start)
        elif key in ARTICLES.get(language, ()) and text[start : piece.start].strip():
            cut(piece.start, "-" if text[piece.start - 1] == "-" else " ", piece.start)
        at = piece.end
    return _said([*found, Part(text[start:].strip())])


def _said(parts: Iterable[Part]) -> list[Part]:
    return [part for part in parts if part.text]


# -- what is checked of a network's sentence


@dataclasses.dataclass(frozen=True)
class _Said:
    """A word of the source: what it may become, and what stands in its clause."""

    licence: frozenset[str]
    slots: frozenset[str]
    others: frozenset[str]
    """English that the other words of its clause may become."""


def attributes_stay(source: str, english: str, lexicon: Lexicon) -> bool:
    """Whether each colour, adjective and the like of an English sentence stands in a clause with a slot or a noun of
    the clause that has it in the source."""
    clauses = _clauses(source, lexicon.language)
    if len(clauses) == 1 and lexicon.language not in NEGATION_FOLLOWS:
        return True
    said = [word for clause in clauses for word in _words(clause, lexicon)]
    for clause in _clauses(english, "en"):
        slots = frozenset(character for character in clause if character in SLOTS)
        words = {*ENGLISH_WORD.findall(clause.lower())} - FUNCTION_WORDS
        attributes = words & lexicon.attributes
        nouns = {word for word in words - attributes if any(word in one.licence for one in said)}
        if not (slots or nouns):
            continue
        for attribute in attributes:
            holders = [one for one in said if attribute in one.licence]
            if holders and not any(_belongs(one, slots, nouns) for one in holders):
                return False
    return True


def _belongs(word: _Said, slots: frozenset[str], nouns: set[str]) -> bool:
    is_alone = not word.slots and not word.others
    return is_alone or bool(word.slots & slots) or bool((word.others | word.licence) & nouns)


def slots_stay_apart(source: str, english: str, slots: Collection[str], language: str) -> bool:
    """Whether slots that a mark or a joining word separates are separated in English, too."""
    together = [{*clause} & {*slots} for clause in _clauses(english, "en")]
    own = {slot: number for number, clause in enumerate(_clauses(source, language)) for slot in clause if slot in slots}
    return all(len({own[slot] for slot in some}) < 2 for some in together)


def _clauses(text: str, language: str) -> list[str]:
    """A sentence with slots, cut at marks and joining words."""
    joining = ENGLISH_JOINING if language == "en" else JOINING[language]
    cuts = [(mark.start(), mark.end()) for mark in MARK.finditer(text)]
    cuts += [(word.start, word.end) for word in words_in(text, language) if word.key in joining]
    found, at = [], 0
    for start, end in sorted(cuts):
        found.append(text[at:start])
        at = max(at, end)
    return [*found, text[at:]]


def _words(clause: str, lexicon: Lexicon) -> list[_Said]:
    words = words_in(clause, lexicon.language)
    licences = [frozenset(one) for one in lexicon.licences(clause)]
    found = []
    for number, word in enumerate(words):
        others = frozenset[str]().union(*(one for index, one in enumerate(licences) if index != number))
        found.append(_Said(licences[number], _slots_of(clause, word, lexicon.language), others))
    return found


def _slots_of(clause: str, word: Word, language: str) -> frozenset[str]:
    """The slots that a word of a clause may describe."""
    before = [character for character in clause[: word.start] if character in SLOTS]
    after = [character for character in clause[word.end :] if character in SLOTS]
    return frozenset((*before[-1:], *after[:1]) if language in NEGATION_FOLLOWS else (*before, *after))


def negations_stay(source: str, english: str, language: str) -> bool:
    """Whether an English sentence has a negation if the source has one, and in front of the same slot."""
    words = words_in(source, language)
    negations = [word for word in words if word.key in NEGATIONS[language]]
    said = [found for found in ENGLISH_WORD.finditer(english.lower()) if found[0] in ENGLISH_NEGATIONS]
    if len(said) < len(negations):
        return False
    for word in negations:
        before, after = source[: word.start], source[word.end :]
        beside = next(
            (one for one in (reversed(before) if language in NEGATION_FOLLOWS else after) if one in SLOTS), None
        )
        following = {next((one for one in english[found.end() :] if one in SLOTS), None) for found in said}
        if beside is not None and beside not in following:
            return False
    return True


def positions_stay(source: str, english: str, language: str) -> bool:
    """Whether an English sentence has as many words for a place, such as `under`, as the source has."""
    places = [word for word in words_in(source, language) if without_particle(word.key) in POSITIONS.get(language, ())]
    said = [word for word in ENGLISH_WORD.findall(english.lower()) if word in ENGLISH_POSITIONS]
    return len(said) >= len(places)


def has_marks(text: str) -> bool:
    """Whether a text has brackets, quotes or emoji, which stay in its translation."""
    return bool(KEPT_MARKS.search(text)) or any(unicodedata.category(character) == "So" for character in text)


def marks_stay(source: str, english: str) -> bool:
    """Whether an English sentence has the brackets and quotes of the source."""
    return Counter(KEPT_MARKS.findall(source)) == Counter(KEPT_MARKS.findall(english))
