"""`WordList`: words and phrases that a prompt must not have.

Prompt and words are compared without regard to case, width and form of characters, and with any white space between
words. A word does not match inside a longer one. Scripts without spaces between words have no such boundaries, so their
words match anywhere.
"""

import hashlib
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from dalle.errors import ConfigError
from serving.settings import read_setting

__all__ = ["WordList"]

WITHOUT_SPACES = (
    *("CJK ", "HIRAGANA ", "KATAKANA", "HALFWIDTH KATAKANA ", "BOPOMOFO ", "HANGUL "),
    *("THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN "),
)
"""First words of the Unicode names of characters that stand beside other words without a space. Korean has spaces, but
joins particles to words."""


class WordList:
    """Words and phrases, at least one; raises `ConfigError` without any."""

    def __init__(self, words: Iterable[str], name: str = "the word list") -> None:
        """name: name of the list in messages."""
        self._words = sorted({plain for word in words if (plain := _normalized(word))})
        if not self._words:
            raise ConfigError(f"{name} has no words: write one word or phrase a line, or leave out the setting")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file: a word or phrase a line, in UTF-8; lines that begin with `#` are comments. Raises `ConfigError`
        for a file that is missing, cannot be read, is not UTF-8, or has no words."""
        try:
            lines = read_setting(path).removeprefix("\ufeff").splitlines()
        except FileNotFoundError as error:
            raise ConfigError(f"safety.words is {path}: there is no such file") from error
        except UnicodeDecodeError as error:
            message = f"the word list {path} is not UTF-8 (byte {error.start}): save it in UTF-8"
            raise ConfigError(message) from error
        except OSError as error:
            raise ConfigError(f"the word list {path} cannot be read: {error.strerror or error}") from error
        return cls((line for line in lines if not line.lstrip().startswith("#")), f"the word list {path}")

    @property
    def digest(self) -> str:
        """SHA-256 of the words, in hexadecimal digits: the same for lists that block the same."""
        return hashlib.sha256("\n".join(self._words).encode()).hexdigest()

    def blocks(self, text: str) -> bool:
        """Whether a text has one of the words."""
        plain = _normalized(text)
        return any(_has(plain, word) for word in self._words)


def _normalized(text: str) -> str:
    """Unicode's compatibility form without case (NFKC, case-folded) and without invisible characters, with single
    spaces."""
    visible = "".join(one for one in text if unicodedata.category(one) != "Cf")
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    return " ".join(folded.split())


def _has(text: str, word: str) -> bool:
    """Whether a text has a word, with a boundary on both sides."""
    start = text.find(word)
    while start >= 0:
        end = start + len(word)
        joined_before = start > 0 and _joins(text[start - 1]) and _joins(word[0])
        joined_after = end < len(text) and _joins(text[end]) and _joins(word[-1])
        if not joined_before and not joined_after:
            return True
        start = text.find(word, start + 1)
    return False


def _joins(character: str) -> bool:
    """Whether a character beside another one such belongs to the same word."""
    part_of_word = unicodedata.category(character)[0] in "LMN"
    return part_of_word and not unicodedata.name(character, "").startswith(WITHOUT_SPACES)
