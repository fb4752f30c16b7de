"""The words and phrases of `words.tsv` and `templates.tsv`."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from dalle.translate.languages import LANGUAGES
from training.captions.wording import STYLES

__all__ = [
    "Adjective",
    "Template",
    "WordKind",
    "WordList",
    "nouns_of",
    "plurals_of",
    "styles_of",
    "templates_of",
    "words_of",
]

FOLDER = Path(__file__).parent
ONE = re.compile(
    r"\{(?:no|not)2?\}|pas \{de2?\}|없|なし|いない|がない|no hay"
    r"|\} (?:mange|tient|chevauche|isst|hält|reitet|come|sostiene|monta) "
)
"""Templates that say that a thing is not there, or what one thing does."""
WordKind = Literal["colour", "adjective", "number", "tail", "relation", "style", "noun"]


@dataclasses.dataclass(frozen=True)
class Adjective:
    """A word around names in English and in one other language, written as in `words.tsv`."""

    english: str
    other: str


@dataclasses.dataclass(frozen=True)
class Template:
    """A phrase with fields, in English and in another language."""

    english: str
    other: str
    held_out: bool
    """Whether it is kept for validation."""

    @functools.cached_property
    def num_things(self) -> int:
        """How many noun phrases it has; a country is none."""
        if "{country}" in self.english:
            return 0
        return next((count for count in (3, 2) if f"{count}}}" in self.english), 1)

    @functools.cached_property
    def has_one(self) -> bool:
        """Whether its things are no plurals and have no numbers, as they are not there, or for the form of the verb."""
        return ONE.search(self.other) is not None


WordList = Sequence[Adjective]


def _rows(name: str) -> list[list[str]]:
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


@functools.cache
def words_of(language: str, kind: WordKind) -> WordList:
    """All words of a kind, one entry for each variant."""
    column = 2 + [*LANGUAGES].index(language)
    return [
        Adjective(row[1], variant)
        for row in _rows("words.tsv")
        if row[0] == kind and row[column] != "-"
        for variant in row[column].split("/")
    ]


@functools.cache
def nouns_of() -> Mapping[str, Mapping[str, Sequence[str]]]:
    """Everyday nouns that CLDR has at most inside longer names: their names by language, by English noun."""
    nouns = [row for row in _rows("words.tsv") if row[0] == "noun"]
    return {
        row[1]: {code: [name.partition("|")[0] for name in row[2 + i].split("/")] for i, code in enumerate(LANGUAGES)}
        for row in nouns
    }


@functools.cache
def plurals_of(language: str) -> Mapping[str, str]:
    """The plurals of nouns that no rule gives, by the singular."""
    parts = [word.other.partition("|") for word in words_of(language, "noun")]
    return {one: many for one, _, many in parts if many}


@functools.cache
def templates_of(language: str) -> Sequence[Template]:
    """The templates of a language, those for validation among them."""
    return [
        Template(english.removeprefix("*"), other, english.startswith("*"))
        for code, english, other in _rows("templates.tsv")
        if code == language
    ]


@functools.cache
def styles_of() -> Sequence[str]:
    """Names of the default model's styles and other words for them, which are the same in every language."""
    return [word for style in STYLES.values() for word in (style.name, *style.others)]
