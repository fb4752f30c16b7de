"""`word_by_word`: what is left of a sentence that no sentence of the network is accepted for.

Known names and words of one clear English become English, and small words go or become `and`, `with`, `of`; French and
Spanish adjectives move in front of their noun. All else is kept as it is, and reported. The baseline that a translator
is compared with knows names only: `Lexicon.look_up`.
"""

import dataclasses
import re
from typing import Literal

from dalle.translate.grammar import ADJECTIVES_FOLLOW, FUNCTION_WORDS, JOINING, NEGATIONS, SMALL_WORDS, STYLE
from dalle.translate.languages import folded, words_in
from dalle.translate.lexicon import Lexicon

__all__ = ["word_by_word"]

Kind = Literal["name", "attribute", "other"]


@dataclasses.dataclass
class _Token:
    gap: str
    """What stands in front of it."""
    text: str
    kind: Kind


def word_by_word(text: str, lexicon: Lexicon) -> tuple[str, tuple[str, ...]]:
    """A cleaned text with the English of its names and of its words that have one, and the words that are kept."""
    tokens: list[_Token] = []
    kept: list[str] = []
    at = 0
    for piece in lexicon.pieces(text):
        gap, at = _without_particle(text[at : piece.start], lexicon.language, is_first=at == 0), piece.end
        if piece.kind != "word":
            tokens.append(_Token(gap, piece.english, "name" if piece.kind == "name" else "other"))
            kept += [piece.english] * (piece.kind == "unknown")
            continue
        said = [piece.english] if lexicon.language == "ja" else _split(piece.english, lexicon.language)
        for number, word in enumerate(said):
            english = (lexicon.name(word) if number else None) or _english(word, lexicon)
            is_attribute = bool(english) and folded(word, lexicon.language) not in _not_attributes(lexicon.language)
            kept += [word] * (english is None)
            kind: Kind = ("name" if 0 < number == len(said) - 1 else "attribute") if is_attribute else "other"
            tokens.append(_Token(" " if number else gap, word if english is None else english, kind))
    if lexicon.language in ADJECTIVES_FOLLOW:
        tokens = _style_last(_attributes_first(tokens))
    rest = _without_particle(text[at:], lexicon.language, is_first=at == 0)
    blank = " " if lexicon.language == "ja" else ""
    joined = "".join(f"{token.gap}{blank}{token.text}{blank}" for token in tokens) + rest
    return re.sub(r"\s+", " ", re.sub(r"\s+([,.;!?)])", r"\1", joined)).strip(), tuple(kept)


def _split(text: str, language: str) -> list[str]:
    return [text[word.start : word.end] for word in words_in(text, language)]


def _not_attributes(language: str) -> set[str]:
    return {*SMALL_WORDS[language], *JOINING[language], *NEGATIONS[language], *STYLE[language]}


def _english(word: str, lexicon: Lexicon) -> str | None:
    """The one English of a word; empty if it is left out, None if there are none or several."""
    key = folded(word, lexicon.language)
    if key in STYLE[lexicon.language]:
        return "style"
    if key.isdigit():
        return key
    if lexicon.name(word) is not None:
        return None  # it is a name by itself, and something else within a sentence
    for known in (NEGATIONS, JOINING, SMALL_WORDS):
        if key in known[lexicon.language]:
            return known[lexicon.language][key]
    licences = [one - FUNCTION_WORDS for one in lexicon.licences(word) if one - FUNCTION_WORDS]
    common = set.intersection(*licences) if licences else set()
    return common.pop() if len(common) == 1 else None


def _without_particle(gap: str, language: str, *, is_first: bool) -> str:
    """What stands between two pieces, with Korean particles of the word in front of it left out, or as English."""
    found = re.match(r"\w+", gap)
    if language != "ko" or is_first or found is None:
        return gap
    english = JOINING[language].get(found[0], "")
    return f" {english}{gap[found.end() :]}" if english else gap[found.end() :]


def _attributes_first(tokens: list[_Token]) -> list[_Token]:
    """Attributes that follow a name, moved in front of it."""
    found: list[_Token] = []
    number = 0
    while number < len(tokens):
        end = number + 1
        while tokens[number].kind == "name" and end < len(tokens) and _follows(tokens[end]):
            end += 1
        name, attributes = tokens[number], tokens[number + 1 : end]
        moved = [*attributes, name]
        found += [_Token(name.gap if index == 0 else " ", one.text, one.kind) for index, one in enumerate(moved)]
        number = end
    return found


def _style_last(tokens: list[_Token]) -> list[_Token]:
    """The word `style` moved behind its name: `style minimaliste` is `minimalist style`."""
    at = next((number for number, token in enumerate(tokens[:-1]) if token.text == "style"), None)
    if at is None:
        return tokens
    style, following = tokens[at], tokens[at + 1]
    return [
        *tokens[:at],
        _Token(style.gap, following.text, following.kind),
        *tokens[at + 2 :],
        _Token(" ", "style", "other"),
    ]


def _follows(token: _Token) -> bool:
    return token.kind == "attribute" and token.gap == " "
