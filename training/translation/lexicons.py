"""The lexicons of the five languages from concepts, and the words that each word of a language may become."""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from dalle.translate.languages import PARTICLES, clean, folded, without_particle, words_in
from dalle.translate.lexicon import Lexicon
from dalle.translate.nouns import countable, plural
from training.translation.counters import COUNTERS, number_forms
from training.translation.grammar import GERMAN_ADJECTIVE
from training.translation.modifiers import LARGE_NUMBERS
from training.translation.plurals import dative_plural, is_weak, plural_adjective, plural_name
from training.translation.sources import Concept
from training.translation.tones import tone_ways
from training.translation.words import WordKind, styles_of, templates_of, words_of

__all__ = ["build_lexicon", "unambiguous"]

ORDER = ("thing", "word", "region", "flag", "group", "language")
"""Kinds of concepts in the order in which they get a name that several have. Names with skin tones are composed."""
MEANINGS = {
    **dict.fromkeys(("sans", "sin", "ohne"), ("without",)),
    **dict.fromkeys(("aucun", "aucune", "kein", "keine", "keinen", "ningun", "ninguna"), ("no",)),
    **dict.fromkeys(("sous", "bajo"), ("under", "rain")),
    "unter": ("under",),
    "vor": ("front", "background"),
}
"""What function words may become that have a meaning of their own: `sous la pluie` is `in the rain`."""
MODIFIERS: tuple[WordKind, ...] = ("colour", "adjective", "number")
AROUND: tuple[WordKind, ...] = ("tail", "relation", "style")
SHARE, FEW, SHARE_OF_MANY = 0.3, 3, 0.1
FIELD = re.compile(r"\{(\w+)\}")
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
ENDINGS = ("er", "e", "es", "en", "em")
FUNCTION = {
    "fr": "aucun aucune un une le la les l d des de du au aux à a en dans sur sous avec sans et ou pour par qui que"
    " s moi",
    "es": "ningun ninguna un una unos unas el la los las de del al a en con sin sobre bajo por para y e o que me",
    "de": "kein keine keinen"
    " ein eine einen einem einer eines der die das den dem des und oder mit von vom vor im in auf"
    " am an bei ohne unter über mir für zu zum zur aus nach",
    "ko": "그리고 나에게",
    "ja": "の を と が に は で な",
}
"""Articles, prepositions and the like, which are no names within a sentence."""


def build_lexicon(language: str, concepts: Sequence[Concept]) -> Lexicon:
    """The lexicon of a language. concepts: those whose names it knows; its words are those of their names, and of
    `words.tsv` and `templates.tsv`."""
    names: dict[str, str] = {style: style for style in styles_of()}
    for concept in _in_order(concepts):
        for name in concept.names.get(language, ()):
            for way, english in _ways(language, name, concept.english):
                names.setdefault(way, english)
    words = _words(language, concepts)
    modifiers = (
        form for kind in MODIFIERS for word in words_of(language, kind) for form in _forms(word.other, language)
    )
    counts = number_forms(language) if language in COUNTERS else ()
    around = (FIELD.sub(" ", template.other) for template in templates_of(language))
    plain = {_key(modifier, language) for modifier in modifiers} | {*FUNCTION[language].split()}
    plain |= {_key(form, language) for form, _ in counts}
    for kind in ("tail", "style"):  # styles have words of their own in each language; names of styles are names
        plain |= {_key(word.other, language) for word in words_of(language, kind) if word.other != word.english}
    plain |= {key for word in words_of(language, "relation") for key in _keys(FIELD.sub(" ", word.other), language)}
    plain |= {key for text in around for key in _keys(text, language)}
    if language == "ja":
        words |= _whole_modifiers()
    for number in map(str, LARGE_NUMBERS):
        words[number] = sorted({number, *words.get(number, ())})
    words |= {word: [*MEANINGS.get(word, ())] for word in FUNCTION[language].split()}
    if language == "ko":
        plain |= {*PARTICLES}
        words |= {word: [] for word in (*PARTICLES, *(one for some in COUNTERS["ko"].values() for one in some))}
    plain -= {_key(style, language) for style in styles_of()}
    return Lexicon(language, names, words, plain - {""})


def unambiguous(language: str, concepts: Sequence[Concept]) -> list[Concept]:
    """The concepts with the names that are theirs: each name in one language belongs to one of them, the one that the
    lexicon gives it to, or to all with the same English."""
    owners: dict[str, str] = {}
    for concept in (*_in_order(concepts), *concepts):
        for name in concept.names.get(language, ()):
            owners.setdefault(_key(name, language), concept.english)
    return [
        dataclasses.replace(
            one,
            names={
                language: [name for name in one.names.get(language, ()) if owners[_key(name, language)] == one.english]
            },
        )
        for one in concepts
    ]


def _in_order(concepts: Sequence[Concept]) -> Iterable[Concept]:
    """The concepts whose names a lexicon has, those of everyday nouns first: French `lion` is an animal, and a sign of
    the zodiac only after it."""
    yield from (one for one in concepts if one.key.startswith("noun:"))
    for kind in ORDER:
        yield from (one for one in concepts if one.kind == kind)


def _ways(language: str, name: str, english: str) -> Iterable[tuple[str, str]]:
    """A name, its plural if that is formed by a rule, and German adjectives with other endings."""
    yield name, english
    first, _, rest = name.partition(" ")
    if language == "de" and rest and GERMAN_ADJECTIVE.match(first):
        stem = re.sub(r"(er|es|e)$", "", first)
        for ending in ENDINGS:
            yield f"{stem}{ending} {rest}", english
    many = plural(english) or (english if countable(english) and english.isalpha() else None)
    said = plural_name(language, name) if many and language not in COUNTERS else None
    if many and said and said != name:
        # a weak noun such as `Löwen` is more often one lion that is drawn than several
        yield said, english if language == "de" and is_weak(name) else many
        if language == "de":
            yield dative_plural(said), many


def _words(language: str, concepts: Sequence[Concept]) -> dict[str, list[str]]:
    """By each word, the English words that it may become."""
    counted = _counted(language, concepts)
    entries = _entries(language)
    templates: dict[str, set[str]] = defaultdict(set)
    for template in templates_of(language):
        if not template.held_out:  # the network has not learned the words of those
            for key in _keys(FIELD.sub(" ", template.other), language):
                templates[key].update(_english(FIELD.sub(" ", template.english)))
    keys = sorted({*counted, *entries, *templates})
    return {key: sorted({*counted[key], *entries[key], *templates[key]}) for key in keys}


def _counted(language: str, concepts: Sequence[Concept]) -> dict[str, set[str]]:
    """The English words that occur beside a word in a large enough share of the names that have it."""
    counts: Counter[str] = Counter()
    both: Counter[tuple[str, str]] = Counter()
    for concept in concepts:
        for name in concept.names.get(language, ()):
            ways = [*_ways(language, name, concept.english)]
            ways += tone_ways(language, name, concept.english) if concept.kind == "tone" else []
            for source, target in ways:
                keys, english = {*_keys(source, language)}, _english(target)
                counts.update(keys)
                both.update((key, word) for key in keys for word in english)
    found: dict[str, set[str]] = defaultdict(set, {key: set() for key in counts})
    for (key, word), count in both.items():
        if count >= SHARE * counts[key] or (count >= FEW and count >= SHARE_OF_MANY * counts[key]):
            found[key].add(word)
    return found


def _whole_modifiers() -> dict[str, list[str]]:
    """The English words of Japanese modifiers that end in another script than they begin with, such as 寝ている: their
    parts may become too much."""
    found: dict[str, set[str]] = defaultdict(set)
    for kind in MODIFIERS:
        for word in words_of("ja", kind):
            for form in _forms(word.other, "ja"):
                if len(_keys(form, "ja")) > 1:
                    found[_key(form, "ja")].update(_english(word.english))
    return {key: sorted(english) for key, english in found.items()}


def _entries(language: str) -> dict[str, set[str]]:
    """The English words of a word of `words.tsv`: those that all entries with it have, as `background` for Korean
    `배경`; if there are none, all words of up to three entries. Korean `있는`, which is in many, becomes no word."""
    entries: dict[str, list[set[str]]] = defaultdict(list)
    for kind in (*MODIFIERS, *AROUND):
        for word in words_of(language, kind):
            forms = _forms(FIELD.sub(" ", word.other), language)
            keys = {key for form in forms for key in _keys(form, language)}
            for key in keys:
                if (english := _english(FIELD.sub(" ", word.english))) not in entries[key]:
                    entries[key].append(english)
    for form, said in number_forms(language) if language in COUNTERS else ():
        for key in _keys(form, language):
            if {said} not in entries[key]:
                entries[key].append({said})
    found: dict[str, set[str]] = defaultdict(set)
    for key, several in entries.items():
        found[key] = set.intersection(*several) or (set().union(*several) if len(several) <= FEW else set())
    return found


def _english(text: str) -> set[str]:
    return {*WORD.findall(text.lower())}


def _forms(word: str, language: str) -> list[str]:
    parts = [part.removeprefix("<").removeprefix("=") for part in word.split("|")]
    if language == "de" and " " not in word and not word.startswith("="):
        parts += [f"{part.removesuffix('e')}{ending}" for part in parts for ending in ENDINGS]
    if language in ("fr", "es") and "|" in word:
        parts += [plural_adjective(language, part) for part in parts]
    return parts


def _key(text: str, language: str) -> str:
    text = clean(text)
    return folded(text, language) if language == "ja" else " ".join(word.key for word in words_in(text, language))


def _keys(text: str, language: str) -> list[str]:
    """Folded words of a text; Korean ones with and without their particle."""
    keys = [word.key for word in words_in(clean(text), language)]
    if language == "ko":
        keys += [stem for key in keys if len(stem := without_particle(key)) > 1 and stem != key]
    return keys
