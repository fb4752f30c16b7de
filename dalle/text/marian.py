"""`MarianTokenizer`: the text tokenizer of a Marian model (opus-mt), SentencePiece's pieces with ids of their own.

The text ids (T,) of a prompt are `token ... token [end] [PAD] ... [PAD]`. SentencePiece (Kudo 2018, arXiv 1804.10959)
splits a text into pieces; the vocabulary, which is another file and has the pieces of both languages, gives the ids.
Pieces that it lacks are unknown. A text may begin with the code of a target language, such as `>>eng<<`, if the
vocabulary has it.

The tokenizer is one JSON file in a translator directory. `dalle.interop` makes it from the files of a Marian model.
"""

import base64
import binascii
import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import tokenizers
import torch

from dalle.config import Config, require, require_at_least
from dalle.errors import CheckpointError, ParameterError
from dalle.text.padded import read_config
from dalle.text.replacements import Replacements
from dalle.text.tokenizer import PromptTokenizer, check_prompt

__all__ = ["MarianTokenizer", "MarianTokenizerConfig"]

SPACE = "\u2581"
CODE = re.compile(r">>.*?<<", re.DOTALL)
"""A language's code, at the beginning of a text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MarianTokenizerConfig(Config):
    """Configuration of a Marian model's text tokenizer."""

    replacements: str
    """SentencePiece's table of replacements, in base64; see `Replacements`."""
    pieces: str
    """Text of a `tokenizer.json` of the `tokenizers` package: a unigram model that splits a text into pieces."""
    vocabulary: tuple[str, ...]
    """Pieces in the order of their ids."""
    text_length: int
    pad_id: int
    end_id: int
    unknown_id: int
    """Id of pieces that the vocabulary lacks."""

    def __post_init__(self) -> None:
        require_at_least(self, 2, "text_length")
        for name in ("pad_id", "end_id", "unknown_id"):
            value, size = getattr(self, name), len(self.vocabulary)
            require(0 <= value < size, f"{name} {value} is not in the vocabulary of {size}")


class MarianTokenizer(PromptTokenizer):
    """Converts text to ids and back, with padding on the right."""

    kind = "marian"

    def __init__(self, config: MarianTokenizerConfig) -> None:
        """Raises `CheckpointError` for a model of pieces that cannot be read."""
        self.config = config
        self.text_length, self.vocab_size = config.text_length, len(config.vocabulary)
        self._special = {config.pad_id, config.end_id, config.unknown_id}
        # no text is tokenized to a special token, even if it spells one
        self._ids = {piece: id_ for id_, piece in enumerate(config.vocabulary) if id_ not in self._special}
        try:
            self._replacements = Replacements(base64.b64decode(config.replacements, validate=True))
        except binascii.Error as error:
            raise CheckpointError(f"its replacements are not base64: {error}") from error
        try:
            self._unigram = tokenizers.Tokenizer.from_str(config.pieces)
        except Exception as error:  # the package raises bare Exception
            raise CheckpointError(f"its pieces are not a model of the tokenizers package: {error}") from error

    def tokenize(self, text: str) -> list[int]:
        return [self._ids.get(piece, self.config.unknown_id) for piece in self._split(text)]

    def unknown(self, text: str) -> list[str]:
        pieces = (piece.strip(SPACE) for piece in self._split(text) if piece not in self._ids)
        return [piece for piece in pieces if piece]

    def _split(self, text: str) -> Iterator[str]:
        check_prompt(text)
        if code := CODE.match(text):
            yield code.group()
            text = text[code.end() :]
        yield from self._unigram.encode(self._replacements.apply(text), add_special_tokens=False).tokens

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """The text of ids, without padding, end and unknown pieces.

        Raises `ParameterError` for an id outside the vocabulary.
        """
        ids = ids.tolist() if isinstance(ids, torch.Tensor) else list(ids)
        last = self.vocab_size - 1
        for position, token in enumerate(ids):
            if not isinstance(token, int) or not 0 <= token <= last:
                raise ParameterError(f"the text id at position {position} is {token!r}; it must be one of 0..{last}")
        pieces = [self.config.vocabulary[token] for token in ids if token not in self._special]
        return "".join(pieces).replace(SPACE, " ").strip()

    @property
    def max_tokens(self) -> int:
        return self.text_length - 1

    def pad(self, tokens: list[int]) -> list[int]:
        """Lay out the first T - 1 tokens as text ids (T,)."""
        ids = [*tokens[: self.max_tokens], self.config.end_id]
        return ids + [self.config.pad_id] * (self.text_length - len(ids))

    @functools.cached_property
    def content(self) -> bytes:
        return json.dumps(self.config.to_dict(), ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        return cls(read_config(path, MarianTokenizerConfig))
