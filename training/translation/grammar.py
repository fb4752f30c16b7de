"""Noun phrases in the five languages: a name with a number, adjectives and tails, in the forms that the fields of
`templates.tsv` and of the relations in `words.tsv` ask for.

{n}                       without an article, in all languages
{a} {the}                 English: with `a` or `an` if the name is countable; with `the`
{un} {le} {de} {du}       French: `un chat`, `le chat`, `de chat` (`d'éléphant`), `d'un chat`
{no}                      French, German, Spanish: `aucun chat`, `kein Hund`, `ningún gato`; German {not}: `keinen Hund`
{un} {el}                 Spanish: `un gato`, `el gato`
{ein} {der} {einen} {einem}   German: nominative with either article, accusative, dative
{dem} {im} {acc}          German: `dem Hund`, `im Wald`, and the accusative without an article: `roten Hut`
{rel}                     German: the relative pronoun of the noun that a relation follows
{obj} {subj} {and}        Korean: with the particle of the object or subject, with `and`
{obj}                     Japanese: `猫を`, `猫を2匹`
"""

import dataclasses
import random
import re
from collections.abc import Sequence

from dalle.translate.nouns import countable, is_plural, plural, with_article, with_the
from training.translation.counters import counter_of
from training.translation.gender import Gender, gender_of
from training.translation.plurals import dative_plural, is_weak, plural_adjective, plural_name
from training.translation.words import Adjective, words_of

__all__ = ["NounPhrase", "elided", "phrase_fields", "takes_number"]

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
GERMAN_SINGULAR = re.compile(r"(brille|hose|schere)$", re.IGNORECASE)
"""Singular nouns whose English is a plural."""
COLOURS = frozenset(word for one in words_of("fr", "colour") for word in one.english.split())
HANGUL = range(0xAC00, 0xD7A4)


@dataclasses.dataclass(frozen=True)
class NounPhrase:
    """A name with a number, adjectives and tails such as `in the snow`."""

    language: str
    english: str
    name: str
    adjectives: Sequence[Adjective] = ()
    """In the order of the other language; English has those of colours last."""
    tails: Sequence[tuple[str, str]] = ()
    """English and the other language, in the order of English; Korean and Japanese have the last one first."""
    slot: str | None = None
    """What is written in place of the name in both languages; gender and articles stay those of the name."""
    number: Adjective | None = None
    """A number from two on, of a name that `takes_number`."""
    apart: Adjective | None = None
    """A colour behind the whole phrase and a comma: `un chat, noir`."""

    @property
    def is_plural(self) -> bool:
        return self.number is not None or is_plural(self.english)


def takes_number(language: str, english: str, name: str) -> bool:
    """Whether plurals of the name in English and in the other language are known."""
    return plural(english) is not None and (language in ("ko", "ja") or plural_name(language, name) is not None)


def phrase_fields(phrase: NounPhrase, chance: random.Random) -> tuple[dict[str, str], dict[str, str]]:
    """The fields of a template for the English side and for the other one."""
    many = plural(phrase.english) if phrase.number else None
    adjectives = [*phrase.adjectives, *([phrase.apart] if phrase.apart else [])]
    adjectives.sort(key=lambda one: any(word in COLOURS for word in one.english.split()))
    before = [phrase.number.english] if phrase.number else []
    english = " ".join([*before, *(one.english for one in adjectives), phrase.slot or many or phrase.english])
    has_article = not many and countable(phrase.english) and "," not in phrase.english
    tail = "".join(f" {one}" for one, _ in phrase.tails)
    bare = phrase.slot is not None and not adjectives
    fields = {
        "n": english + tail,
        "a": ((f"a {english}" if bare else with_article(english)) if has_article else english) + tail,
        "the": (with_the(english) if has_article or many else english) + tail,
    }
    make = {"fr": _french, "es": _spanish, "de": _german, "ko": _korean, "ja": _japanese}[phrase.language]
    return fields, make(phrase, has_article, chance)


def elided(word: str, text: str) -> str:
    """`de chat`, `d'oiseau`: a French word of two letters before a text."""
    return f"{word[:-1]}'{text}" if VOWEL.match(text) else f"{word} {text}"


def _agreeing(phrase: NounPhrase, gender: Gender) -> tuple[list[str], list[str]]:
    """French or Spanish adjectives before the noun, and those after it."""
    before: list[str] = []
    after: list[str] = []
    for adjective in phrase.adjectives:
        (before if adjective.other.startswith("<") else after).append(_form(phrase, adjective, gender))
    return before, after


def _form(phrase: NounPhrase, adjective: Adjective, gender: Gender) -> str:
    masculine, feminine = adjective.other.split("|")
    form = (feminine if gender == "f" else masculine).removeprefix("<")
    return plural_adjective(phrase.language, form) if phrase.is_plural else form


def _romance(phrase: NounPhrase, gender: Gender) -> str:
    """A name with its number, adjectives and tails, without an article."""
    before, after = _agreeing(phrase, gender)
    name = phrase.name
    if phrase.number:
        before, name = [phrase.number.other, *before], plural_name(phrase.language, name) or name
    head, colon, rest = (phrase.slot or name).partition(":")
    apart = f", {_form(phrase, phrase.apart, gender)}" if phrase.apart else ""
    return " ".join([*before, head, *after]) + colon + rest + "".join(f" {one}" for _, one in phrase.tails) + apart


def _french(phrase: NounPhrase, has_article: bool, chance: random.Random) -> dict[str, str]:
    words = phrase.name.replace(":", " ").replace(",", " ").split()
    head = words[1] if words[0].lower() in LEADING_FRENCH and len(words) > 1 else words[0]
    gender = gender_of("fr", head)
    bare = _romance(phrase, gender)
    de = f"de {bare}" if phrase.number else elided("de", bare)
    none = f"aucun{'e' if gender == 'f' else ''} {bare}"
    if phrase.is_plural:
        one = bare if phrase.number or bare.startswith("deux ") else f"des {bare}"
        return {"n": bare, "un": one, "le": f"les {bare}", "de": de, "du": de, "no": none}
    article = "une" if gender == "f" else "un"
    one = f"{article} {bare}" if has_article else bare
    definite = elided("la" if gender == "f" else "le", bare)
    return {"n": bare, "un": one, "le": definite, "de": de, "du": elided("de", one), "no": none}


def _spanish(phrase: NounPhrase, has_article: bool, chance: random.Random) -> dict[str, str]:
    gender = gender_of("es", phrase.name.split()[0].rstrip(":,"))
    bare = _romance(phrase, gender)
    none = f"{'ninguna' if gender == 'f' else 'ningún'} {bare}"
    if phrase.is_plural:
        ending = "as" if gender == "f" else "os"
        one = bare if phrase.number else f"un{ending} {bare}"
        return {"n": bare, "un": one, "el": f"l{ending} {bare}", "no": none}
    article = "una" if gender == "f" else "un"
    return {
        "n": bare,
        "un": f"{article} {bare}" if has_article else bare,
        "el": f"{'la' if gender == 'f' else 'el'} {bare}",
        "no": none,
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
    many = plural_name("de", phrase.name) if phrase.number else None
    is_many = phrase.is_plural and not GERMAN_SINGULAR.search(words[-1])
    pronoun = "die" if is_many else EIN[gender][3]
    after = "".join(f" {one.replace('{rel}', pronoun)}" for _, one in phrase.tails).replace(" ,", ",")
    after += f", {_uninflected(phrase.apart)}" if phrase.apart else ""
    if phrase.slot:
        stems, words, declined, rest = [], [phrase.slot], 0, ""

    weak = plural_name("de", words[-1]) if len(words) == 1 and is_weak(words[0]) else None

    def form(ending: str, *, oblique: bool = False) -> str:
        given = [f"{_uninflected(one)}{'' if one.other.startswith('=') else ending}" for one in phrase.adjectives]
        noun = words[declined:]
        if many and not phrase.slot:
            noun = [dative_plural(many) if oblique else many]
        elif oblique and weak and not phrase.slot:
            noun = [weak]
        return " ".join([*given, *(f"{stem}{ending}" for stem in stems), *noun]) + rest + after

    if is_many:
        count = f"{phrase.number.other.removeprefix('=')} " if phrase.number else ""
        bare, dative = count + form("e"), count + form("en", oblique=True)
        definite = count + form("en")
        nouns = {**dict.fromkeys(("n", "ein", "einen", "acc"), bare), "einem": dative, "der": f"die {definite}"}
        none = f"keine {form('en')}"
        return {**nouns, "dem": f"den {dative}", "im": f"in den {dative}", "no": none, "not": none}
    nominative, accusative, dative, definite = EIN[gender]
    forms = {
        "n": form(STRONG[gender]),
        "der": f"{definite} {form('e')}",
        "dem": f"{'der' if gender == 'f' else 'dem'} {form('en', oblique=True)}",
        "im": f"{'in der' if gender == 'f' else 'im'} {form('en', oblique=True)}",
        "acc": form(ACCUSATIVE[gender], oblique=True),
        "no": f"k{nominative} {form(STRONG[gender])}",
        "not": f"k{accusative} {form(ACCUSATIVE[gender], oblique=True)}",
    }
    if not has_article:
        bare, ending = forms["n"], {"f": "er"}.get(gender, "em")
        return {**forms, "ein": bare, "einen": forms["acc"], "einem": form(ending, oblique=True)}
    return {
        **forms,
        "ein": f"{nominative} {form(STRONG[gender])}",
        "einen": f"{accusative} {form(ACCUSATIVE[gender], oblique=True)}",
        "einem": f"{dative} {form('en', oblique=True)}",
    }


def _uninflected(adjective: Adjective) -> str:
    """The stem before an ending: `lila` has none; a final e is part of the ending."""
    return adjective.other[1:] if adjective.other.startswith("=") else adjective.other.removesuffix("e")


def _korean(phrase: NounPhrase, has_article: bool, chance: random.Random) -> dict[str, str]:
    before = [*(tail for _, tail in phrase.tails[::-1]), *(adjective.other for adjective in phrase.adjectives)]
    joint = "" if len(before) == 1 and not (phrase.number or phrase.tails) and chance.random() < 0.06 else " "
    bare, last = joint.join([*before, phrase.slot or phrase.name]), phrase.name[-1]
    particle = chance.choice((("과", "와"), ("과", "와"), ("이랑", "랑"), ("하고", "하고")))
    object_ = None
    if phrase.number:
        counter, order = counter_of("ko", phrase.number.other, phrase.english, chance), chance.random()
        if order < 0.2:
            bare = f"{counter}의 {bare}"
        else:
            object_ = f"{bare}{_particle('을를', last, chance)} {counter}" if order < 0.6 else None
            bare, last = f"{bare} {counter}", counter[-1]
    return {
        "n": bare + (f", {phrase.apart.other}" if phrase.apart else ""),
        "obj": object_ or bare + _particle("을를", last, chance),
        "subj": bare + _particle("이가", last, chance),
        "and": bare + _particle(particle, last, chance),
    }


def _particle(both: Sequence[str], last: str, chance: random.Random) -> str:
    """A Korean particle after a final consonant or after a vowel; any of the two after letters that are not Korean."""
    has_final = (ord(last) - HANGUL.start) % 28 > 0 if ord(last) in HANGUL else chance.random() < 0.5
    return both[0 if has_final else 1]


def _japanese(phrase: NounPhrase, has_article: bool, chance: random.Random) -> dict[str, str]:
    before = [*(tail for _, tail in phrase.tails[::-1]), *(adjective.other for adjective in phrase.adjectives)]
    bare = "".join([*before, phrase.slot or phrase.name])
    object_ = None
    if phrase.number:
        counter, order = counter_of("ja", phrase.number.other, phrase.english, chance), chance.random()
        object_ = f"{bare}を{counter}" if order < 0.3 else None
        bare = f"{bare}{counter}" if order < 0.5 else f"{counter}の{bare}"
    return {"n": bare + (f"、{phrase.apart.other}" if phrase.apart else ""), "obj": object_ or f"{bare}を"}
