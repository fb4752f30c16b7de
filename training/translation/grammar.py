"""Noun phrases in the five languages: a name with adjectives, in the forms that the fields of `templates.tsv` ask for.

{n}                       without an article, in all languages
{a}                       English: with `a` or `an` if the name is countable
{un} {le} {de} {du}       French: `un chat`, `le chat`, `de chat` (`d'éléphant`), `d'un chat`
{un} {el}                 Spanish: `un gato`, `el gato`
{ein} {der} {einen} {einem}   German: nominative with either article, accusative, dative
{obj} {and}               Korean: with the particle of the object, with `and`
"""

import dataclasses
import random
import re
from collections.abc import Sequence

from training.captions.grammar import countable, is_plural, with_article
from training.translation.gender import Gender, gender_of

__all__ = ["Adjective", "NounPhrase", "elided", "phrase_fields"]

VOWEL = re.compile(r"[aeiouyhâàéèêëîïôûœæ]", re.IGNORECASE)
LEADING_FRENCH = {"petit", "petite", "grand", "grande", "gros", "grosse", "beau", "belle", "vieux", "vieille"}
GERMAN_TAIL = re.compile(r"[:,]| (?:mit|von|im|in|auf|am|an|zum|zur|für|vor|der|die|das|und|ohne|nach|aus|bei|über) ")
GERMAN_ADJECTIVE = re.compile(r"^[a-zäöüß][\w-]*(?:er|es|e)$")
STRONG = {"m": "er", "f": "e", "n": "es"}
ACCUSATIVE = {"m": "en", "f": "e", "n": "es"}
EIN = {
    "m": ("ein", "einen", "einem", "der"),
    "f": ("eine", "eine", "einer", "die"),
    "n": ("ein", "ein", "einem", "das"),
}
HANGUL = range(0xAC00, 0xD7A4)


@dataclasses.dataclass(frozen=True)
class Adjective:
    """An adjective in English and in one other language, written as in `words.tsv`."""

    english: str
    other: str


@dataclasses.dataclass(frozen=True)
class NounPhrase:
    """A name with adjectives and a tail such as `in the snow`."""

    language: str
    english: str
    name: str
    adjectives: Sequence[Adjective] = ()
    tail: tuple[str, str] | None = None
    slot: str | None = None
    """What is written in place of the name in both languages; gender and articles stay those of the name."""


def phrase_fields(phrase: NounPhrase, chance: random.Random) -> tuple[dict[str, str], dict[str, str]]:
    """The fields of a template for the English side and for the other one."""
    english = " ".join([*(adjective.english for adjective in phrase.adjectives), phrase.slot or phrase.english])
    has_article = countable(phrase.english) and "," not in phrase.english
    tail = f" {phrase.tail[0]}" if phrase.tail else ""
    fields = {"n": english + tail, "a": (_article(phrase, english) if has_article else english) + tail}
    make = {"fr": _french, "es": _spanish, "de": _german, "ko": _korean, "ja": _japanese}[phrase.language]
    return fields, make(phrase, has_article, chance)


def _article(phrase: NounPhrase, english: str) -> str:
    return f"a {english}" if phrase.slot and not phrase.adjectives else with_article(english)


def elided(word: str, text: str) -> str:
    """`de chat`, `d'oiseau`: a French word of two letters before a text."""
    return f"{word[:-1]}'{text}" if VOWEL.match(text) else f"{word} {text}"


def _agreeing(adjectives: Sequence[Adjective], gender: Gender) -> tuple[list[str], list[str]]:
    """French or Spanish adjectives before the noun, and those after it."""
    before: list[str] = []
    after: list[str] = []
    for adjective in adjectives:
        masculine, feminine = adjective.other.split("|")
        form = (feminine if gender == "f" else masculine).removeprefix("<")
        (before if adjective.other.startswith("<") else after).append(form)
    return before, after


def _romance(phrase: NounPhrase, gender: Gender) -> str:
    """A name with its adjectives and tail, without an article."""
    before, after = _agreeing(phrase.adjectives, gender)
    head, colon, rest = (phrase.slot or phrase.name).partition(":")
    tail = [phrase.tail[1]] if phrase.tail else []
    return " ".join([*before, head, *after]) + colon + rest + "".join(f" {one}" for one in tail)


def _french(phrase: NounPhrase, has_article: bool, chance: random.Random) -> dict[str, str]:
    words = phrase.name.replace(":", " ").replace(",", " ").split()
    head = words[1] if words[0].lower() in LEADING_FRENCH and len(words) > 1 else words[0]
    gender = gender_of("fr", head)
    bare = _romance(phrase, gender)
    if is_plural(phrase.english):
        return {"n": bare, "un": f"des {bare}", "le": f"les {bare}", "de": elided("de", bare), "du": elided("de", bare)}
    article = "une" if gender == "f" else "un"
    one = f"{article} {bare}" if has_article else bare
    definite = elided("la" if gender == "f" else "le", bare)
    return {"n": bare, "un": one, "le": definite, "de": elided("de", bare), "du": elided("de", one)}


def _spanish(phrase: NounPhrase, has_article: bool, chance: random.Random) -> dict[str, str]:
    gender = gender_of("es", phrase.name.split()[0].rstrip(":,"))
    bare = _romance(phrase, gender)
    if is_plural(phrase.english):
        ending = "as" if gender == "f" else "os"
        return {"n": bare, "un": f"un{ending} {bare}", "el": f"l{ending} {bare}"}
    article = "una" if gender == "f" else "un"
    return {
        "n": bare,
        "un": f"{article} {bare}" if has_article else bare,
        "el": f"{'la' if gender == 'f' else 'el'} {bare}",
    }


def _german(phrase: NounPhrase, has_article: bool, chance: random.Random) -> dict[str, str]:
    tail = GERMAN_TAIL.search(phrase.name)
    main = phrase.name[: tail.start()] if tail else phrase.name
    rest = phrase.name[tail.start() :] if tail else ""
    words = main.split()
    declined = 0
    while declined < len(words) - 1 and GERMAN_ADJECTIVE.match(words[declined]):
        declined += 1
    gender: Gender = gender_of("de", words[-1])
    if declined:
        gender = "m" if words[0].endswith("er") else "n" if words[0].endswith("es") else "f"
    stems = [re.sub(r"(er|es|e)$", "", word) for word in words[:declined]]
    if phrase.slot:
        stems, words, declined, rest = [], [phrase.slot], 0, ""

    def form(ending: str) -> str:
        given = [
            one.other[1:] if one.other.startswith("=") else f"{_stem(one.other)}{ending}" for one in phrase.adjectives
        ]
        end = f" {phrase.tail[1]}" if phrase.tail else ""
        return " ".join([*given, *(f"{stem}{ending}" for stem in stems), *words[declined:]]) + rest + end

    if is_plural(phrase.english):
        bare = form("e")
        return {"n": bare, "ein": bare, "einen": bare, "einem": form("en"), "der": f"die {form('en')}"}
    nominative, accusative, dative, definite = EIN[gender]
    forms = {"n": form(STRONG[gender]), "der": f"{definite} {form('e')}"}
    if not has_article:
        bare = forms["n"]
        return {**forms, "ein": bare, "einen": form(ACCUSATIVE[gender]), "einem": form({"f": "er"}.get(gender, "em"))}
    return {
        **forms,
        "ein": f"{nominative} {form(STRONG[gender])}",
        "einen": f"{accusative} {form(ACCUSATIVE[gender])}",
        "einem": f"{dative} {form('en')}",
    }


def _stem(adjective: str) -> str:
    """The stem before an ending: `dunkel` loses its e; a final e is part of the ending."""
    return adjective.removesuffix("e")


def _korean(phrase: NounPhrase, has_article: bool, chance: random.Random) -> dict[str, str]:
    before = [*([phrase.tail[1]] if phrase.tail else []), *(adjective.other for adjective in phrase.adjectives)]
    joint = "" if len(before) == 1 and chance.random() < 0.06 else " "
    bare = joint.join([*before, phrase.slot or phrase.name])
    last = ord(phrase.name[-1])
    has_final = (last - HANGUL.start) % 28 > 0 if last in HANGUL else chance.random() < 0.5
    particle = chance.choice((("과", "와"), ("과", "와"), ("이랑", "랑"), ("하고", "하고")))[0 if has_final else 1]
    return {"n": bare, "obj": f"{bare}{'을' if has_final else '를'}", "and": f"{bare}{particle}"}


def _japanese(phrase: NounPhrase, has_article: bool, chance: random.Random) -> dict[str, str]:
    before = [*([phrase.tail[1]] if phrase.tail else []), *(adjective.other for adjective in phrase.adjectives)]
    return {"n": "".join([*before, phrase.slot or phrase.name])}
