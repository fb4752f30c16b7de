"""Lexicon and network together: sentences into English whose content words all come from words of the source.

1. A sentence that as a whole is a known name becomes that name's English.
2. Otherwise known names and unknown words are replaced by slots, and the network translates the rest. Its sentence is
   accepted if it has every slot once, if each of its content words may come from a word of its own in the source (see
   `Lexicon.licences`), and if each word of the source that has few translations has become one of them. The slots are
   then filled: with the names' English, and with unknown words as they were.
   Attributes, negations, brackets and quotes have to stay in their clause (`dalle.translate.clauses`).
3. A sentence that is not accepted is cut into parts at marks, joining words and articles, and each part is tried as a
   sentence of its own. What is not accepted then is looked up word by word.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from dalle.translate.clauses import (
    ENGLISH_WORD,
    Part,
    attributes_stay,
    has_marks,
    marks_stay,
    negations_stay,
    parts_of,
    positions_stay,
    slots_stay_apart,
)
from dalle.translate.grammar import FUNCTION_WORDS, JOINING
from dalle.translate.languages import clean, folded
from dalle.translate.lexicon import CLEAR, SLOTS, Lexicon, Piece
from dalle.translate.nouns import is_plural, plural, with_article
from dalle.translate.word_by_word import word_by_word

__all__ = ["Sentence", "Way", "translate"]

Network = Callable[[Sequence[str]], Sequence[str]]
Way = Literal["name", "network", "parts", "look-up", "wording"]
ARTICLE = re.compile(r"\b(a|an) (?=\S)", re.IGNORECASE)
HIRAGANA = re.compile(r"[\u3041-\u309f]+$")
"""Japanese endings and small words, which mean little by themselves."""
TONE = re.compile(r":(?= [^:,]*skin tone)")
"""What stands before a skin tone, and is a comma in the lexicons' English."""
SEVERAL = re.compile(rf"\b(?:two|three|four|five|six|seven|eight|nine|ten|[2-9]|[1-9]\d+) [^{''.join(SLOTS)}]*$")
"""What ends before a slot that stands for more than one thing: a number, and attributes."""


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A translated sentence."""

    source: str
    english: str
    unknown: tuple[str, ...]
    """Words of the source that are kept as they were, since neither lexicon nor network knows them."""
    by: Way
    """What translated it: the lexicon as one name; the network with the lexicon's names, as a whole or part by part; or
    the lexicon alone, word by word; or, for a sentence in English, the wording of a model's captions."""


def translate(sources: Sequence[str], lexicon: Lexicon, network: Network) -> list[Sentence]:
    """Translate sentences of the lexicon's language into English.

    network: translates a batch of sentences, in each of which up to eight slots may stand for words.
    """
    cleaned = [clean(source) for source in sources]
    found = _resolved(cleaned, lexicon, network, {}, levels=(False, True))
    return [
        Sentence(source, found[text].english, found[text].unknown, found[text].by)
        for source, text in zip(sources, cleaned, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class _Found:
    english: str
    unknown: tuple[str, ...]
    by: Way


def _accepted(texts: Sequence[str], lexicon: Lexicon, network: Network) -> list[_Found | None]:
    """What cleaned texts become as a name, or by the network; None where its sentence is not accepted."""
    names = [None if has_marks(text) else lexicon.name(text) for text in texts]
    prepared = [_masked(text, lexicon) for text in texts]
    waiting = [index for index, name in enumerate(names) if name is None and prepared[index] is not None]
    asked = network([_text(prepared[index]) for index in waiting]) if waiting else []
    found = [None if name is None else _Found(name, (), "name") for name in names]
    for index, answer in zip(waiting, asked, strict=True):
        if (english := _filled(answer, prepared[index], lexicon)) is not None:
            unknown = tuple(piece.english for piece in lexicon.pieces(texts[index]) if piece.kind == "unknown")
            found[index] = _Found(english, unknown, "network")
    return found


def _resolved(
    texts: Sequence[str], lexicon: Lexicon, network: Network, asked: dict[str, _Found | None], *, levels: Sequence[bool]
) -> dict[str, _Found]:
    """What cleaned texts become: as a whole if that is accepted; else their parts, cut at phrases too on the last
    level; else word by word. asked: what texts became as a whole, as far as it is known."""
    new = [text for text in dict.fromkeys(texts) if text not in asked]
    asked.update(zip(new, _accepted(new, lexicon, network), strict=True))
    parts = {text: parts_of(text, lexicon, at_phrases=levels[0]) for text in texts if levels and asked[text] is None}
    inner = [part.text for some in parts.values() for part in some if not part.is_english]
    resolved = _resolved(inner, lexicon, network, asked, levels=levels[1:]) if inner else {}
    found = {}
    for text in texts:
        whole = asked[text]
        if whole is not None:
            found[text] = whole
        elif text in parts:
            found[text] = _joined(parts[text], resolved)
        else:
            english, unknown = word_by_word(text, lexicon)
            found[text] = _Found(english, unknown, "look-up") if english else _Found(text, (text,), "look-up")
    return found


def _joined(parts: Sequence[Part], resolved: Mapping[str, _Found]) -> _Found:
    """A sentence of its parts."""
    inner = [resolved[part.text] for part in parts if not part.is_english]
    english = "".join(part.text if part.is_english else resolved[part.text].english for part in parts)
    english = re.sub(r"\s+([,;.!?)])", r"\1", english).rstrip(" .!")
    english = TONE.sub(",", english)
    by: Way = "look-up" if all(one.by == "look-up" for one in inner) else "parts"
    return _Found(re.sub(r"\s+", " ", english).strip(), tuple(word for one in inner for word in one.unknown), by)


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
    may_become = lexicon.licences(masked.rest)
    licences = [found - FUNCTION_WORDS for found in may_become]
    words = Counter(word for word in ENGLISH_WORD.findall(english.lower()) if word not in FUNCTION_WORDS)
    as_they_are = Counter(ENGLISH_WORD.findall(masked.rest.lower()))
    if not (words or masked.slots):
        return None
    if any(count > as_they_are[word] + sum(word in found for found in licences) for word, count in words.items()):
        return None
    said = {*ENGLISH_WORD.findall(english.lower())}
    if any(found.isdisjoint(said) for found in _meant(masked.text, may_become, lexicon)):
        return None
    last = ENGLISH_WORD.findall(english)[-1:]
    if (last and last[0].lower() in FUNCTION_WORDS and not english.endswith(SLOTS)) or english.startswith(
        (",", ".", ":")
    ):
        return None
    first = folded(masked.text.partition(" ")[0], lexicon.language)
    joining = JOINING[lexicon.language].get(first)
    if joining is not None and not english.lower().startswith(joining):
        return None
    names = [slot for slot, piece in zip(SLOTS, masked.slots, strict=False) if piece.kind == "name"]
    if not (
        slots_stay_apart(masked.text, english, names, lexicon.language)
        and marks_stay(masked.text, english)
        and negations_stay(masked.text, english, lexicon.language)
        and positions_stay(masked.text, english, lexicon.language)
        and attributes_stay(masked.text, english, lexicon)
    ):
        return None
    template = english
    for slot, piece in zip(SLOTS, masked.slots, strict=False):
        name = piece.english
        if piece.kind == "name" and SEVERAL.search(template[: template.index(slot)]):
            name = plural(name) or name
        if is_plural(name):
            english = re.sub(rf"\b(?:a|an) (?={slot})", "", english)
        english = english.replace(slot, name)
    return ARTICLE.sub(lambda found: _article(found[1], english[found.end() :]), english)


def _meant(text: str, licences: Sequence[set[str]], lexicon: Lexicon) -> list[set[str]]:
    """For each word of a sentence with slots that has a clear meaning, the English words that it may become.

    A Japanese word may be cut where its script changes, so that a part of it is not translated by itself: only words
    around names count there, which are known as a whole.
    """
    if lexicon.language != "ja":
        return [found for found in licences if 0 < len(found - FUNCTION_WORDS) <= CLEAR]
    pieces = [piece for piece in lexicon.pieces(text) if piece.kind == "word"]
    said = [one.english for one in pieces if one.english in lexicon.plain and not HIRAGANA.match(one.english)]
    return [{*lexicon.words.get(word, ())} for word in said if 0 < len(lexicon.words.get(word, ())) <= CLEAR]


def _article(article: str, following: str) -> str:
    right = with_article(following).split()[0]
    return f"{right.capitalize() if article[0].isupper() else right} "
