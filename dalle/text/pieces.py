"""The tokens of a prompt as pieces of its text: where each is among the T text ids, and which of them make a word."""

import dataclasses
from collections.abc import Sequence

from dalle.text.tokenizer import PromptTokenizer

__all__ = ["Piece", "pieces_of", "words_of"]

UNFINISHED = "\ufffd"
"""What a tokenizer decodes the first bytes of a character to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """One token of a prompt."""

    text: str
    """Its part of the text, with the spaces around it. The token that ends a character of several tokens has it whole;
    the others before it are empty."""
    id: int
    place: int
    """Its index among the T text ids of the prompt."""
    word: int
    """Number of its word in the prompt, from 0."""


def pieces_of(tokenizer: PromptTokenizer, tokens: Sequence[int]) -> list[Piece]:
    """The pieces of a prompt's tokens, which `tokenize` gave, without those that do not fit into T ids.

    A word begins after a space, and before and after punctuation.
    """
    # padding does not look at tokens, so numbers that no vocabulary has show where it puts each
    marks = tokenizer.pad([-1 - number for number in range(len(tokens))])
    places = {-1 - mark: place for place, mark in enumerate(marks) if mark < 0}
    texts, before = [], ""
    for number in range(len(tokens)):
        whole = tokenizer.decode(list(tokens[: number + 1])).rstrip(UNFINISHED)
        texts.append(whole[len(before) :] if whole.startswith(before) else tokenizer.decode([tokens[number]]))
        before = whole
    words = _words(texts)
    return [
        Piece(text=text, id=tokens[number], place=places[number], word=words[number])
        for number, text in enumerate(texts)
        if number in places
    ]


def _words(texts: Sequence[str]) -> list[int]:
    """The number of each piece's word."""
    words, so_far, last, empty = list[int](), "", "", 0
    for text in texts:
        if not text:  # it begins a character, which belongs to the word of the next piece
            empty += 1
            continue
        apart = text[0].isspace() or so_far[-1:].isspace() or _is_mark(text) != _is_mark(last)
        is_new = not words or (bool(so_far.strip()) and apart)
        word = (words[-1] if words else -1) + is_new
        so_far, last = ("" if is_new else so_far) + text, text
        words += [word] * (empty + 1)
        empty = 0
    return words + [words[-1] if words else 0] * empty


def words_of(pieces: Sequence[Piece]) -> list[str]:
    """The words that pieces make, without spaces around them, in the order of their numbers."""
    words = [""] * (1 + max((piece.word for piece in pieces), default=-1))
    for piece in pieces:
        words[piece.word] += piece.text
    return [word.strip() or "\u2423" for word in words]


def _is_mark(text: str) -> bool:
    """Whether a piece is punctuation alone."""
    return bool(text.strip()) and not any(character.isalnum() for character in text)
