"""Words that belong together in two languages, found in CLDR's keywords: `pomme` and `apple` occur at the same emoji.

CLDR names a red apple and a green apple, and no apple. Its keywords have both words, though not which belongs to which.
Two words are paired if each is the other's best by Dice's coefficient (Dice 1945) over all emoji, and the names of
one emoji at least have both.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping

from dalle.translate.languages import clean
from training.emoji.names import Annotation
from training.translation.sources import is_held_out

__all__ = ["MIN_COUNT", "MIN_DICE", "paired_words"]

MIN_DICE = 0.8
MIN_COUNT = 2
"""Smallest number of emoji that both words occur at."""
WRONG = frozenset(
    """cream curving dizzy facing fill horns input joy last leg locked lowered one-piece popping skate skull web woozy
    fearful of""".split()
)
"""English words whose pairs are wrong in one of the languages, such as German `Eis` for `cream`; found by reading."""


def paired_words(english: Mapping[str, Annotation], other: Mapping[str, Annotation]) -> dict[str, str]:
    """English words by words of the other language, both in lower case. Emoji that are held out, flags and emoji with
    skin tones are left out.

    english, other: annotations by code points.
    """
    counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    both: Counter[tuple[str, str]] = Counter()
    named: set[tuple[str, str]] = set()
    for codepoints in english:
        if codepoints not in other or "1f3f" in codepoints or codepoints.startswith("1f1") or is_held_out(codepoints):
            continue
        words = [_words(annotations[codepoints]) for annotations in (english, other)]
        names = [_plain(annotations[codepoints].name) for annotations in (english, other)]
        for counter, some in zip(counts, words, strict=True):
            counter.update(some)
        pairs = [(one, two) for one in words[0] for two in words[1]]
        both.update(pairs)
        named.update((one, two) for one, two in pairs if one in names[0].split() and _stem(two) in names[1])
    best: tuple[dict[str, list[tuple[float, str]]], ...] = (defaultdict(list), defaultdict(list))
    for (one, two), count in both.items():
        dice = 2 * count / (counts[0][one] + counts[1][two])
        best[0][one].append((dice, two))
        best[1][two].append((dice, one))
    found: dict[str, str] = {}
    for two, candidates in best[1].items():
        dice, one = max(candidates)
        is_mutual = max(best[0][one])[1] == two and sum(other[0] == dice for other in candidates) == 1
        if (
            is_mutual
            and dice >= MIN_DICE
            and both[one, two] >= MIN_COUNT
            and (one, two) in named
            and len(one) > 2
            and one not in WRONG
        ):
            found[two] = one
    return dict(sorted(found.items()))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", clean(text)).lower()


def _words(annotation: Annotation) -> set[str]:
    return {_plain(word) for word in (*annotation.keywords, annotation.name)}


def _stem(word: str) -> str:
    """A word without its last letter if it is long, since names have it in other forms."""
    return word[:-1] if len(word) > 5 and word.isascii() else word
