"""Phrases for training and validation: names in templates, with numbers, colours, adjectives, tails, relations to a
second thing, styles and skin tones.

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
from training.translation.grammar import NounPhrase, elided, phrase_fields, takes_number
from training.translation.modifiers import Modifiers
from training.translation.sources import Concept, Kind
from training.translation.tones import tone_ways
from training.translation.words import Adjective, Template, styles_of, templates_of, words_of

__all__ = ["Composer", "Line"]

WEIGHTS: Mapping[Kind, float] = {
    "thing": 0.7,
    "word": 0.15,
    "tone": 0.08,
    "region": 0.03,
    "language": 0.01,
    "group": 0.03,
}
"""Shares of the kinds of names in phrases."""
NUM_THINGS: Mapping[int, float] = {0: 0.05, 1: 0.73, 2: 0.15, 3: 0.07}
"""Shares of the templates of training by the number of things that they name; a country is none."""
TAIL, NUMBER, APART = 0.08, 0.05, 0.08
RELATION = 0.25
"""Share of the phrases of one thing that have a relation to another one: `a cat on a red chair`."""
WORN = 0.5
"""Share of the relations `with` to a thing that tails have, too, and which therefore is no slot: `with a red hat`."""
WITH = "with {a}"
THINGS_OF_TAILS = ("hat", "crown", "glasses", "sunglasses", "wings", "beard")
MASKED = 0.5
"""Share of training phrases in which what the lexicon would know is replaced by slots."""
MASKED_ADJECTIVE = 0.06
WITHOUT_ACCENTS, WITH_ENDING = 0.04, 0.1
CLAUSE = re.compile(r"\{rel\}|^qu[ei] ")
"""Relations whose verb is that of one thing."""
AGAINST = re.compile(r"\{\w+\} \{style\}|^\{style\}[ の]?\{n\}|^\{Style\}-Emoji|^emoji \{style\}")
"""Templates in which a style would seem to be that of the second thing of a relation."""
ALONE = re.compile(r"^\{\w+\}(?:$|[,、])")
"""Templates in which a colour may stand behind the phrase and a comma."""
COMBINING = re.compile(r"[\u0300-\u036f]")


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
        templates = templates_of(language)
        self._held_out = [one for one in templates if one.held_out]
        self._templates = {
            count: [one for one in templates if one.num_things == count and not one.held_out] for count in NUM_THINGS
        }
        self._modifiers = Modifiers(language)
        self._relations = words_of(language, "relation")
        self._worn = [one for one in known if one.english in THINGS_OF_TAILS]
        self._names_with_plural = {
            id(one): [name for name in one.names[language] if takes_number(language, one.english, name)]
            for one in known
            if one.kind in ("thing", "word")
        }
        self._countable = [one for one in known if self._names_with_plural.get(id(one))]

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
        template = self._template(held_out, chance)
        slots = iter(SLOTS) if masks and chance.random() < MASKED else None
        if template.num_things == 0:
            return self._with_country(template, slots, chance)
        first, number_of_first = self._thing(template, chance)
        english, other = self._noun_phrase(first, number_of_first, template, slots, chance)
        for thing in range(2, template.num_things + 1):
            again, other_again = self._noun_phrase(*self._thing(template, chance), template, slots, chance)
            english |= {f"{key}{thing}": value for key, value in again.items()}
            other |= {f"{key}{thing}": value for key, value in other_again.items()}
        self._add_style(english, other, slots, chance)
        return self._line(template, english, other, first, chance)

    def _template(self, held_out: bool, chance: random.Random) -> Template:
        if held_out:
            return chance.choice(self._held_out)
        (num_things,) = chance.choices([*NUM_THINGS], [*NUM_THINGS.values()])
        return chance.choice(self._templates[num_things])

    def _thing(self, template: Template | None, chance: random.Random) -> tuple[Concept, Adjective | None]:
        """A concept, and its number if it has one. template: None for the second thing of a relation."""
        if template is not None and template.has_one and self._countable:
            return chance.choice(self._countable), None
        (kind,) = chance.choices([*self._kinds], self._weights)
        concept = chance.choice(self._kinds[kind])
        if chance.random() >= NUMBER or not self._countable:
            return concept, None
        if not self._names_with_plural.get(id(concept)):
            concept = chance.choice(self._countable)
        return concept, self._modifiers.number(chance)

    def _noun_phrase(
        self,
        concept: Concept,
        number: Adjective | None,
        template: Template | None,
        slots: Iterator[str] | None,
        chance: random.Random,
        *,
        is_bare: bool = False,
    ) -> tuple[dict[str, str], dict[str, str]]:
        """The fields of a thing of a template, or of the second thing of a relation. is_bare: without a slot."""
        names = self._names_with_plural[id(concept)] if number else concept.names[self.language]
        name, english = chance.choice(names), concept.english
        if concept.kind == "tone":
            name, english = chance.choice(tone_ways(self.language, name, english))
        slot = next(slots) if slots is not None and not is_bare else None
        adjectives = self._modifiers.adjectives(chance) if concept.kind in ("thing", "word") else []
        if slots is not None and adjectives and chance.random() < MASKED_ADJECTIVE:
            unknown = next(slots)
            forms = {"de": f"={unknown}", "ko": unknown, "ja": unknown}
            adjectives[0] = Adjective(unknown, forms.get(self.language, f"{unknown}|{unknown}"))
        phrase = NounPhrase(self.language, english, name, adjectives, (), slot, number)
        if template is not None:
            phrase = self._with_more(phrase, template, slots, chance)
        return phrase_fields(phrase, chance)

    def _with_more(
        self, phrase: NounPhrase, template: Template, slots: Iterator[str] | None, chance: random.Random
    ) -> NounPhrase:
        """A phrase of a template with a tail, a relation, and a colour apart."""
        tails = []
        if template.num_things == 1 and not AGAINST.search(template.other) and chance.random() < RELATION:
            tails.append(self._relation(phrase, slots, chance))
        if chance.random() < TAIL:
            found = chance.choice(words_of(self.language, "tail"))
            tails.append((found.english, found.other))
        apart = None
        if template.num_things == 1 and not tails and ALONE.match(template.other) and chance.random() < APART:
            apart = self._modifiers.apart(chance)
        return dataclasses.replace(phrase, tails=tails, apart=apart)

    def _relation(self, head: NounPhrase, slots: Iterator[str] | None, chance: random.Random) -> tuple[str, str]:
        """A relation to another thing in both languages, such as `on a red chair`."""
        relations = [one for one in self._relations if not (head.is_plural and CLAUSE.search(one.other))]
        english = chance.choice([*dict.fromkeys(one.english for one in relations)])
        relation = chance.choice([one for one in relations if one.english == english])
        is_worn = relation.english == WITH and bool(self._worn) and chance.random() < WORN
        second, number = (chance.choice(self._worn), None) if is_worn else self._thing(None, chance)
        fields, others = self._noun_phrase(second, number, None, slots, chance, is_bare=is_worn)
        return relation.english.format(**fields), relation.other.format(**others, rel="{rel}")

    def _add_style(
        self, english: dict[str, str], other: dict[str, str], slots: Iterator[str] | None, chance: random.Random
    ) -> None:
        luck = chance.random()
        if luck < 0.6:
            style = Adjective(*[chance.choice(styles_of())] * 2)
        elif luck < 0.85:
            style = chance.choice(words_of(self.language, "style"))
        else:
            style = Adjective(*[_unknown_word(chance)] * 2)
        if slots is not None and chance.random() < 0.7:
            style = Adjective(*[next(slots)] * 2)
        english["style"], other["style"] = style.english, style.other
        other["Style"] = re.sub(r"[ ]", "-", style.other.title() if style.other.isascii() else style.other)

    def _with_country(self, template: Template, slots: Iterator[str] | None, chance: random.Random) -> Line:
        concept = chance.choice(self._kinds.get("region") or self.concepts)
        name, english = chance.choice(concept.names[self.language]), concept.english
        if slots is not None:
            name = english = next(slots)
        fields, other = {"country": english}, {"country": name, "de_country": elided("de", name)}
        self._add_style(fields, other, slots, chance)
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
