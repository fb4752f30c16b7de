"""The words and phrases of `words.tsv` and `templates.tsv`."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from dalle.translate.languages import LANGUAGES
from training.captions.wording import STYLES
from training.translation.grammar import Adjective

__all__ = ["Template", "WordKind", "WordList", "nouns_of", "styles_of", "templates_of", "words_of"]

FOLDER = Path(__file__).parent
WordKind = Literal["colour", "adjective", "tail", "style", "noun"]


@dataclasses.dataclass(frozen=True)
class Template:
    """A phrase with fields, in English and in another language."""

    english: str
    other: str
    held_out: bool
    """Whether it is kept for validation."""


WordList = Sequence[Adjective]


def _rows(name: str) -> list[list[str]]:
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


@functools.cache
def words_of(language: str, kind: WordKind) -> WordList:
    """All words of a kind, one entry for each variant."""
    column = 2 + [*LANGUAGES].index(language)
    return [
        Adjective(row[1], variant) for row in _rows("words.tsv") if row[0] == kind for variant in row[column].split("/")
    ]


@functools.cache
def nouns_of() -> Mapping[str, Mapping[str, Sequence[str]]]:
    """Everyday nouns that CLDR has at most inside longer names: their names by language, by English noun."""
    nouns = [row for row in _rows("words.tsv") if row[0] == "noun"]
    return {row[1]: {code: row[2 + i].split("/") for i, code in enumerate(LANGUAGES)} for row in nouns}


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
