"""`Lexicon`: the known names of one language with their English, and the words that a translation may use.

A sentence is cut into pieces: the longest known names, words that occur in the translator's training data, and words
that it cannot know. The first and the last kind are replaced by slots, which the network carries over to their place in
the English sentence. So a known name is never mistranslated, and an unknown word is kept as it is and never guessed.

    lexicon-fr.json.xz   names and words of French; and so on for each language

The names come from Unicode CLDR; the NOTICE beside the files has its licence.
"""

import dataclasses
import functools
import json
import lzma
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

from dalle.errors import CheckpointError
from dalle.translate.grammar import ARTICLES, FUNCTION_WORDS, JOINING, NEGATIONS, REQUEST_WORDS
from dalle.translate.languages import PARTICLES, Word, clean, folded, script_of, without_particle, words_in

__all__ = ["CLEAR", "SLOTS", "Lexicon", "Piece", "lexicon_file"]

SLOTS = tuple(chr(0xE000 + number) for number in range(8))
"""Characters of Unicode's private use area that stand for names and unknown words in the network's sentences."""
CLEAR = 4
"""A word that may become at most so many English words must have become one of them, and says what it means."""
PieceKind = Literal["name", "word", "unknown", "same"]
SURE_PARTICLES = ("에서", "으로", "이랑", "하고", "은", "는", "을", "를", "의", "와", "과")
"""Korean particles that few words end in."""
FINAL_MARKS = ".!?\u3002\uff01\uff1f "
MEASURE = re.compile(r"\d+(?:[.:/]\d+)+|(?<![^\W_])\d+[a-zA-Z]+(?![^\W_])")
"""Numbers that count nothing, such as `1.3`, `16:9` and `8k`."""
MAX_PLAIN = 12
"""Letters of the longest Japanese word around names that is looked for."""
MIN_PART = 3
"""Letters that each part of a German compound has at least."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a sentence."""

    start: int
    end: int
    kind: PieceKind
    """`name`: known, with its English; `word`: one that the network has learned; `unknown`: kept and reported;
    `same`: an emoji, a number that counts nothing, or a word in Latin letters among Korean or Japanese ones, which
    English has as it is."""
    english: str
    """English of a name; the text itself for the others."""


def _with_quotes(text: str, start: int, end: int) -> tuple[int, int]:
    """A name's place with the quote beside it whose partner is in the name, as of `ideograma "aquí"`."""
    if text[start:end].count('"') % 2 == 0:
        return start, end
    if text[end : end + 1] == '"':
        return start, end + 1
    return (start - 1, end) if text[:start].endswith('"') else (start, end)


def _runs_of_emoji(text: str) -> list[tuple[int, int]]:
    """Start and end of emoji that stand side by side, with their joiners and skin tones."""
    if text.isascii():
        return []
    return [found.span() for found in re.finditer("e+", "".join("e" if _is_emoji(one) else " " for one in text))]


def _is_emoji(character: str) -> bool:
    return (
        unicodedata.category(character) == "So"
        or character in "\u200d\ufe0f"
        or "\U0001f3fb" <= character <= "\U0001f3ff"
    )


def lexicon_file(language: str) -> str:
    """The name of a language's file in the directory of a translator."""
    return f"lexicon-{language}.json.xz"


class Lexicon:
    """Names and words of one language."""

    def __init__(
        self, language: str, names: Mapping[str, str], words: Mapping[str, Sequence[str]], plain: Iterable[str]
    ):
        """
        names: English by name. words: by each word of the training data, in folded form, the English words that it may
        become. plain: words and phrases around names, such as `sous la pluie`; neither they nor words in them are
        names, unless they are the whole text, as Spanish `sobre` is an envelope, and otherwise `on`.
        """
        self.language = language
        self.names = dict(names)
        self.words = {word: tuple(english) for word, english in words.items()}
        self.plain = frozenset(plain)
        self._by_key: dict[str, str] = {}
        for name, english in names.items():
            self._by_key.setdefault(self._key(name), english)
        self._abbreviations = {self._key(name) for name in names if name.isascii() and name.isupper()} - {
            self._key(name) for name in names if not (name.isascii() and name.isupper())
        }
        self._numbers_in_names = {found[0].lower() for name in self.names for found in MEASURE.finditer(name)}
        self._longest = max((key.count(" ") + 1 for key in (*self._by_key, *self.plain)), default=0)
        self._longest_text = max((len(key) for key in self._by_key), default=0)

    def _key(self, text: str) -> str:
        text = clean(text)
        if self.language == "ja":
            return re.sub(r"[\s:、,]+", "", text.lower())
        return " ".join(word.key for word in words_in(text, self.language))

    def __len__(self) -> int:
        return len(self.names)

    # -- look-up

    def name(self, text: str) -> str | None:
        """The English of a text that as a whole is a known name, in any case and form of Unicode; else None. Names in
        capitals, such as `UN`, are known in capitals only."""
        text = text.strip(FINAL_MARKS)
        key = self._key(text)
        return self._by_key.get(key) if text.isupper() or key not in self._abbreviations else None

    def look_up(self, text: str) -> str:
        """The text with the longest known names replaced by their English, from left to right, and the rest kept: the
        baseline that a translator is compared with."""
        text = clean(text)
        whole = self.name(text)
        if whole is not None:
            return whole
        parts, at = [], 0
        for piece in self.pieces(text):
            if piece.kind == "name":
                before, after = text[at : piece.start], text[piece.end : piece.end + 1]
                blank = " " if before[-1:] and script_of(before[-1]) != "none" else ""
                parts += [before, blank, piece.english, " " if after and script_of(after) != "none" else ""]
                at = piece.end
        return re.sub(r"\s+", " ", "".join([*parts, text[at:]])).strip()

    def pieces(self, text: str) -> list[Piece]:
        """All words and emoji of a cleaned text as pieces, from left to right."""
        words = self._japanese(text) if self.language == "ja" else self._spaced(text)
        same = [*_runs_of_emoji(text), *(found.span() for found in MEASURE.finditer(text) if self._is_measure(found))]
        if not same:
            return words
        others = [one for one in words if all(one.end <= start or one.start >= end for start, end in same)]
        kept = [Piece(start, end, "same", text[start:end]) for start, end in same]
        return sorted([*others, *kept], key=lambda piece: piece.start)

    def _is_measure(self, found: re.Match[str]) -> bool:
        """Whether a number is no word, and in no name, as `3d` is."""
        return found[0].lower() not in self._numbers_in_names and not self.knows(folded(found[0], self.language))

    def _spaced(self, text: str) -> list[Piece]:
        words = words_in(text, self.language)
        found: list[Piece] = []
        at = 0
        while at < len(words):
            for count in range(min(self._longest, len(words) - at), 0, -1):
                some = words[at : at + count]
                piece = self._phrase_at(text, some) or self._name_at(text, some)
                if piece is not None and not self._shares_its_end(some, words[at + count : at + count + 2]):
                    found.append(piece)
                    at += count
                    break
            else:
                found += self._word(text, words[at])
                at += 1
        return found

    def _shares_its_end(self, words: Sequence[Word], following: Sequence[Word]) -> bool:
        """Whether the last word of a name is an attribute that `and` joins to another one: in `un chat noir et blanc`
        there is a cat, and no black cat."""
        if len(words) < 2 or len(following) < 2 or words[-1].key not in self.plain:
            return False
        joining, attribute = following
        is_attribute = attribute.key in self.plain and attribute.key not in ARTICLES.get(self.language, ())
        return JOINING[self.language].get(joining.key) == "and" and is_attribute

    def _phrase_at(self, text: str, words: Sequence[Word]) -> Piece | None:
        """The phrase around names that these words are, in which there are no names."""
        if len(words) > 1 and " ".join(word.key for word in words) in self.plain:
            return Piece(words[0].start, words[-1].end, "word", text[words[0].start : words[-1].end])
        return None

    def _name_at(self, text: str, words: Sequence[Word]) -> Piece | None:
        """The name that these words are, without the particle of the last one."""
        first, last = words[0], words[-1]
        if any(text[one.end : two.start].strip(" -:'\"/&") for one, two in pairwise(words)):
            return None
        key = " ".join(word.key for word in words)
        is_typed = key not in self._abbreviations or text[first.start : last.end].isupper()
        if key in self._by_key and key not in self.plain and is_typed:
            start, end = _with_quotes(text, first.start, last.end)
            return Piece(start, end, "name", self._by_key[key])
        if self.language == "ko" and key not in self.plain:
            for particle in PARTICLES:
                shorter = key.removesuffix(particle)
                if shorter != key and shorter in self._by_key and shorter not in self.plain:
                    return Piece(first.start, last.end - len(particle), "name", self._by_key[shorter])
        return None

    def _word(self, text: str, word: Word) -> list[Piece]:
        said = text[word.start : word.end]
        is_number = self.language == "ko" and word.key.isdigit()
        if (self.knows(word.key) or word.key in NEGATIONS[self.language]) and not is_number:
            return [Piece(word.start, word.end, "word", said)]
        if word.key.isdigit() or (self.language == "ko" and said.isascii()):
            return [Piece(word.start, word.end, "same", said)]
        return self._korean(said, word) if self.language == "ko" else [Piece(word.start, word.end, "unknown", said)]

    def _korean(self, said: str, word: Word) -> list[Piece]:
        """A Korean word that is unknown: a known word and a name without a blank between them, or one without its
        particle."""
        for cut in range(1, len(said)):
            after = Word(word.start + cut, word.end, word.key[cut:])
            if word.key[:cut] in self.plain and (name := self._name_at(said, [after])) is not None:
                return [Piece(word.start, after.start, "word", said[:cut]), name]
        particle = next((one for one in SURE_PARTICLES if said.endswith(one) and len(said) > len(one)), "")
        end = word.end - len(particle)
        return [Piece(word.start, end, "unknown", said[: end - word.start])]

    def _japanese(self, text: str) -> list[Piece]:
        found: list[Piece] = []
        lowered = text.lower()
        at = 0
        while at < len(text):
            starts = at == 0 or script_of(text[at - 1]) != script_of(text[at]) or (bool(found) and found[-1].end == at)
            end = self._name_end(lowered, at) if starts and script_of(text[at]) != "none" else None
            plain = self._plain_end(lowered, at) if starts else None
            if end is not None and end >= (plain or 0):
                found.append(Piece(at, end, "name", self._by_key[self._key(text[at:end])]))
                at = end
                continue
            end = plain or at + 1
            while plain is None and self._continues(text, at, end):
                end += 1
            if plain is not None:
                found.append(Piece(at, end, "word", text[at:end]))
            elif script_of(text[at]) != "none":
                found += self._run(text, at, end)
            at = end
        return found

    def _name_end(self, text: str, start: int) -> int | None:
        for end in range(min(len(text), start + self._longest_text), start, -1):
            if script_of(text[end - 1]) != "none":
                key = self._key(text[start:end])
                if key in self._by_key and key not in self.plain and self._may_end(text, end):
                    return end
        return None

    def _plain_end(self, text: str, start: int) -> int | None:
        """The end of a word around names that begins here, such as a colour, if what follows begins anew."""
        for end in range(min(len(text), start + MAX_PLAIN), start, -1):
            if text[start:end] in self.plain:
                is_whole = not self._continues(text, start, end)
                if is_whole or end - start > 1 or self._name_end(text, end) is not None:
                    return end
        return None

    @staticmethod
    def _continues(text: str, start: int, end: int) -> bool:
        """Whether the script of a run goes on behind its end."""
        return end < len(text) and script_of(text[end]) == script_of(text[end - 1]) == script_of(text[start]) != "none"

    def _may_end(self, text: str, end: int) -> bool:
        """Whether a Japanese name may end here: before another script, or before a word that is around names."""
        if end == len(text) or script_of(text[end]) != script_of(text[end - 1]):
            return True
        stop = end + 1
        while stop < len(text) and script_of(text[stop]) == script_of(text[end]):
            stop += 1
        return text[end:stop] in self.plain

    def _run(self, text: str, start: int, end: int) -> list[Piece]:
        """A run of one script as known words, or else as one that is unknown."""
        run = folded(text[start:end], "ja")
        if run.isascii():
            return [Piece(start, end, "same", text[start:end])]
        for cut in range(1, len(run)):
            first, second = run[:cut], run[cut:]
            are_plain = first in self.plain or second in self.plain or script_of(run[0]) == "hiragana"
            if first in self.words and second in self.words and are_plain:
                return [Piece(start, end, "word", text[start:end])]
        is_known = run in self.words or run in NEGATIONS[self.language]
        return [Piece(start, end, "word" if is_known else "unknown", text[start:end])]

    # -- words

    @functools.cached_property
    def attributes(self) -> frozenset[str]:
        """English of the words around names that may become few others: colours, adjectives and the like."""
        licences = (found for word in self.plain if " " not in word for found in self.licences(word))
        return (
            frozenset(english for found in licences if len(found) <= CLEAR for english in found)
            - REQUEST_WORDS
            - FUNCTION_WORDS
        )

    def knows(self, key: str) -> bool:
        """Whether a folded word, or each part of it, occurs in the training data."""
        return bool(self._parts(key))

    def _parts(self, key: str) -> list[str]:
        """The words of the training data that a word consists of; empty if it does not."""
        if key in self.words:
            return [key]
        if self.language == "ko" and (stem := without_particle(key)) in self.words:
            return [stem]
        for cut in range(MIN_PART, len(key) - MIN_PART + 1) if self.language == "de" else ():
            first, second = key[:cut], key[cut:]
            if second in self.words and (first in self.words or first.rstrip("sn") in self.words):
                return [second, first if first in self.words else first.rstrip("sn")]
        return []

    def licences(self, text: str) -> list[set[str]]:
        """For each word of a text, the English words that it may become."""
        found = []
        for word in words_in(text, self.language):
            parts = self._parts(word.key)
            if self.language == "ja":
                parts += [part for cut in range(1, len(word.key)) for part in (word.key[:cut], word.key[cut:])]
            found.append({english for part in parts for english in self.words.get(part, ())})
        return found

    # -- on disk

    def save(self, folder: Path) -> None:
        """Write the language's file into a folder; the same lexicon gives the same bytes."""
        content = {"language": self.language, "names": self.names, "words": self.words, "plain": sorted(self.plain)}
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        (folder / lexicon_file(self.language)).write_bytes(lzma.compress(text.encode()))

    @classmethod
    def load(cls, path: Path) -> "Lexicon":
        """Read what `save` wrote. Raises `CheckpointError` for a file that is missing, damaged or foreign."""
        try:
            content = json.loads(lzma.decompress(path.read_bytes()))
            return cls(content["language"], content["names"], content["words"], content["plain"])
        except (OSError, ValueError, lzma.LZMAError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is not a lexicon written by this library: {error}") from error
