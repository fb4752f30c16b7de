"""Words before and after a name, drawn at random: adjectives, pairs of colours, numbers, and a colour apart from its
noun."""

import random

from training.translation.words import Adjective, words_of

__all__ = ["LARGE_NUMBERS", "Modifiers"]

NUM_ADJECTIVES = ((0.56, 0), (0.92, 1), (1.0, 2))
TWO_COLOURS, TWO_ADJECTIVES = 0.12, 0.3
SIZES = ("small", "big", "old", "young", "new", "long", "round", "fat")
"""Adjectives that follow another one: `cute small cat`."""
NUMBERS = (6, 6, 4, 3, 1, 1, 1, 1, 1)
"""Weights of the numbers from two to ten."""
LARGE, LARGE_NUMBERS = 0.08, range(11, 31)
"""Share of the numbers that are larger, which are written in digits."""
JOINTS = {"fr": " et ", "es": " y ", "de": "-", "ko": "과 ", "ja": "と"}


class Modifiers:
    """Draws the modifiers of one language."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._colours = words_of(language, "colour")
        self._adjectives = words_of(language, "adjective")
        self._sizes = [one for one in self._adjectives if one.english in SIZES]
        self._others = [one for one in self._adjectives if one.english not in SIZES]
        self._plain_colours = [one for one in self._colours if self._may_join(one)]
        self._numbers = words_of(language, "number")

    def number(self, chance: random.Random) -> Adjective:
        """A number from two on, mostly a small one."""
        if chance.random() < LARGE:
            digits = str(chance.choice(LARGE_NUMBERS))
            return Adjective(digits, digits)
        (drawn,) = chance.choices([*dict.fromkeys(one.english for one in self._numbers)], NUMBERS)
        return chance.choice([one for one in self._numbers if one.english == drawn])

    def adjectives(self, chance: random.Random) -> list[Adjective]:
        """Up to two adjectives, one of which may be two colours."""
        luck = chance.random()
        count = next(count for limit, count in NUM_ADJECTIVES if luck < limit)
        lists = [self._colours, self._adjectives]
        if count == 2 and chance.random() < TWO_ADJECTIVES:
            lists = [self._others, self._sizes]
        chance.shuffle(lists)
        found = [chance.choice(words) for words in lists[:count]]
        if count and chance.random() < TWO_COLOURS:
            found = [self._both(chance), *(one for one in found[1:] if one not in self._colours)]
        return found

    def apart(self, chance: random.Random) -> Adjective:
        """A colour behind its noun and a comma: Japanese `赤の` becomes `赤`."""
        colour = chance.choice(self._plain_colours)
        return Adjective(colour.english, colour.other.removesuffix("の") if self.language == "ja" else colour.other)

    def _may_join(self, colour: Adjective) -> bool:
        """Whether a colour may be apart from its noun, or joined with another one."""
        if " " in colour.english or colour.english == "colorful":
            return False
        fits = {"ko": colour.other.endswith("색"), "ja": colour.other.endswith("の"), "de": colour.other[0] != "="}
        return fits.get(self.language, True)

    def _both(self, chance: random.Random) -> Adjective:
        """Two colours as one adjective: `noir et blanc`, `schwarz-weiß`, `검은색과 흰색`, `赤と青の`."""
        one = chance.choice(self._plain_colours)
        two = chance.choice([colour for colour in self._plain_colours if colour.english != one.english])
        pairs = zip(one.other.removesuffix("の").split("|"), two.other.split("|"), strict=True)
        both = "|".join(JOINTS[self.language].join(pair) for pair in pairs)
        return Adjective(f"{one.english} and {two.english}", both)
