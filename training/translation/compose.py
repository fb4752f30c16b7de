"""Phrases for training and validation: names in templates, with colours, adjectives, styles and skin tones.

Every line is a function of (language, split, number): the same data give the same lines. In half of the training
phrases, names and styles are replaced by slots in both languages, as `dalle.translate.lexicon` replaces what it knows;
the model learns to carry them over.
"""

import dataclasses
import random
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from dalle.translate.lexicon import SLOTS
from training.translation.grammar import Adjective, NounPhrase, elided, phrase_fields
from training.translation.sources import Concept, Kind
from training.translation.words import Template, styles_of, templates_of, words_of

__all__ = ["Composer", "Line", "tone_ways"]

WEIGHTS: Mapping[Kind, float] = {
    "thing": 0.7,
    "word": 0.15,
    "tone": 0.08,
    "region": 0.03,
    "language": 0.01,
    "group": 0.03,
}
"""Shares of the kinds of names in phrases."""
ADJECTIVES = ((0.62, 0), (0.94, 1), (1.0, 2))
TAIL = 0.08
MASKED = 0.5
"""Share of training phrases in which what the lexicon would know is replaced by slots."""
MASKED_ADJECTIVE = 0.06
WITHOUT_ACCENTS, WITH_ENDING = 0.04, 0.1
COMBINING = re.compile(r"[\u0300-\u036f]")
TONE = {
    "fr": re.compile(r"^([^:]+): (peau [^,]+)$"),
    "de": re.compile(r"^([^:]+): (\w+) Hautfarbe$"),
    "es": re.compile(r"^([^:]+): tono de piel ([^,]+)$"),
    "ko": re.compile(r"^([^:]+): (\S+(?: \S+)? 피부)$"),
    "ja": re.compile(r"^([^:]+): (\S+肌色)$"),
}


@dataclasses.dataclass(frozen=True)
class Line:
    """A sentence and its translation."""

    source: str
    target: str
    concept: str
    """Key of the first concept."""
    kind: str
    """`name` for a bare name, else `phrase`."""
    masked: bool = False


def tone_ways(language: str, name: str, english: str) -> list[tuple[str, str]]:
    """Ways to write a name with one skin tone, each with its English: `Frau mit heller Hautfarbe`, `woman with light
    skin tone`. Only the name itself if it has several tones or other details."""
    ways = [(name, english), (name.replace(":", ","), english)]
    found = TONE[language].match(name)
    thing, comma, tone = english.rpartition(", ")
    if found is None or not comma or "," in thing or not tone.endswith("skin tone"):
        return ways
    subject, said = found.groups()
    joined = f"{thing} with {tone}"
    match language:
        case "fr":
            ways += [(f"{subject} à la {said}", joined), (f"{subject} avec la {said}", joined)]
        case "de":
            ways += [(f"{subject} mit {said}r Hautfarbe", joined), (f"{subject} mit {said}r Haut", joined)]
        case "es":
            ways += [(f"{subject} con tono de piel {said}", joined), (f"{subject} de tono de piel {said}", joined)]
        case "ko":
            ways += [(f"{said}의 {subject}", joined), (f"{said} {subject}", joined)]
        case "ja":
            ways += [(f"{said}の{subject}", joined)]
    return ways


class Composer:
    """Draws the phrases of one language from concepts."""

    def __init__(self, language: str, concepts: Sequence[Concept]) -> None:
        """concepts: those that phrases may name; others have no part in them."""
        self.language = language
        known = [one for one in concepts if one.names.get(language)]
        self.concepts = known
        kinds = {kind: [one for one in known if one.kind == kind] for kind in WEIGHTS}
        self._kinds = {kind: found for kind, found in kinds.items() if found}
        self._weights = [WEIGHTS[kind] for kind in self._kinds]
        self._templates = {
            held: [one for one in templates_of(language) if one.held_out is held] for held in (False, True)
        }
        self._colours, self._adjectives = words_of(language, "colour"), words_of(language, "adjective")

    def names(self) -> Iterator[Line]:
        """All names, and all ways to write skin tones."""
        for concept in self.concepts:
            for name in concept.names[self.language]:
                ways = tone_ways(self.language, name, concept.english) if concept.kind == "tone" else []
                for source, target in ways or [(name, concept.english)]:
                    yield Line(source, target, concept.key, "name")

    def phrase(self, split: str, number: int, *, held_out: bool = False, masks: bool = False) -> Line:
        """The phrase of a number. held_out: with the templates of validation. masks: with slots, in half of them."""
        chance = random.Random(f"{self.language}/{split}/{number}")
        template = chance.choice(self._templates[held_out])
        masked = masks and chance.random() < MASKED
        if "{country}" in template.english:
            return self._with_country(template, masked, chance)
        concept = self._concept(chance)
        english, other = self._noun_phrase(concept, chance, SLOTS[0] if masked else None)
        if "2}" in template.english:
            second, other_second = self._noun_phrase(self._concept(chance), chance, SLOTS[1] if masked else None)
            english |= {f"{key}2": value for key, value in second.items()}
            other |= {f"{key}2": value for key, value in other_second.items()}
        self._add_style(english, other, masked, chance)
        return self._line(template, english, other, concept, chance)

    def _concept(self, chance: random.Random) -> Concept:
        (kind,) = chance.choices([*self._kinds], self._weights)
        return chance.choice(self._kinds[kind])

    def _noun_phrase(
        self, concept: Concept, chance: random.Random, slot: str | None
    ) -> tuple[dict[str, str], dict[str, str]]:
        name, english = chance.choice(concept.names[self.language]), concept.english
        if concept.kind == "tone":
            name, english = chance.choice(tone_ways(self.language, name, english))
        adjectives: list[Adjective] = []
        if concept.kind in ("thing", "word"):
            luck = chance.random()
            count = next(count for limit, count in ADJECTIVES if luck < limit)
            lists = [self._colours, self._adjectives]
            chance.shuffle(lists)
            adjectives = [chance.choice(words) for words in lists[:count]]
        if slot is not None and adjectives and chance.random() < MASKED_ADJECTIVE:
            unknown = SLOTS[SLOTS.index(slot) + 4]
            adjectives[0] = Adjective(unknown, f"{unknown}|{unknown}" if self.language in ("fr", "es") else unknown)
        found = chance.choice(words_of(self.language, "tail")) if chance.random() < TAIL else None
        tail = (found.english, found.other) if found is not None else None
        return phrase_fields(NounPhrase(self.language, english, name, adjectives, tail, slot), chance)

    def _add_style(self, english: dict[str, str], other: dict[str, str], masked: bool, chance: random.Random) -> None:
        luck = chance.random()
        if luck < 0.6:
            style = Adjective(*[chance.choice(styles_of())] * 2)
        elif luck < 0.85:
            style = chance.choice(words_of(self.language, "style"))
        else:
            style = Adjective(*[_unknown_word(chance)] * 2)
        if masked and chance.random() < 0.7:
            style = Adjective(SLOTS[2], SLOTS[2])
        english["style"], other["style"] = style.english, style.other
        other["Style"] = re.sub(r"[ ]", "-", style.other.title() if style.other.isascii() else style.other)

    def _with_country(self, template: Template, masked: bool, chance: random.Random) -> Line:
        concept = chance.choice(self._kinds.get("region") or self.concepts)
        name, english = chance.choice(concept.names[self.language]), concept.english
        if masked:
            name, english = SLOTS[0], SLOTS[0]
        fields, other = {"country": english}, {"country": name, "de_country": elided("de", name)}
        self._add_style(fields, other, masked, chance)
        return self._line(template, fields, other, concept, chance)

    def _line(
        self,
        template: Template,
        english: Mapping[str, str],
        other: Mapping[str, str],
        concept: Concept,
        chance: random.Random,
    ) -> Line:
        source, target = _renumbered(template.other.format(**other), template.english.format(**english))
        source = self._typed(source, chance)
        return Line(source, target, concept.key, "phrase", masked=SLOTS[0] in source)

    def _typed(self, source: str, chance: random.Random) -> str:
        """The sentence as people type it: a few without accents or umlauts, and some with a final mark."""
        if self.language in ("fr", "es") and chance.random() < WITHOUT_ACCENTS:
            source = COMBINING.sub("", unicodedata.normalize("NFD", source))
        if self.language == "de" and chance.random() < WITHOUT_ACCENTS:
            for letter, two in (
                ("ä", "ae"),
                ("ö", "oe"),
                ("ü", "ue"),
                ("ß", "ss"),
                ("Ä", "Ae"),
                ("Ö", "Oe"),
                ("Ü", "Ue"),
            ):
                source = source.replace(letter, two)
        if chance.random() < WITH_ENDING and source[-1].isalnum():
            source += "。" if self.language == "ja" else chance.choice(".!")
        return source


def _renumbered(source: str, target: str) -> tuple[str, str]:
    """Both with their slots numbered in the order of the source. A slot that the target lacks is none of the source."""
    found = list(dict.fromkeys(character for character in source if character in SLOTS))
    numbers = str.maketrans({slot: SLOTS[number] for number, slot in enumerate(found)})
    return source.translate(numbers), target.translate(numbers)


def _unknown_word(chance: random.Random) -> str:
    """A word that belongs to no language, which a translation carries over as it is."""
    parts = [chance.choice("bcdfghjklmnprstvwz") + chance.choice("aeiou") for _ in range(chance.randint(2, 4))]
    return "".join(parts) + chance.choice(("", "n", "s", "r", "x"))
