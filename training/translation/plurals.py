"""Plurals of French, German and Spanish: nouns by rule or by `words.tsv`, and adjectives that agree with them.

Korean and Japanese have no plural; their numbers have counters, which are in `training.translation.counters`.
"""

import functools
import re
from collections.abc import Mapping

from training.translation.gender import gender_of
from training.translation.words import plurals_of

__all__ = ["dative_plural", "is_weak", "plural_adjective", "plural_name"]

FRENCH_IN_OUX = ("bijou", "caillou", "chou", "genou", "hibou", "joujou", "pou")
FRENCH_IN_EUS = ("bleu", "pneu")
FRENCH_IN_ALS = ("bal", "carnaval", "chacal", "festival", "récital")
FRENCH_VERBS = {"rit": "rient", "court": "courent", "dort": "dorment"}
FRENCH_UNCHANGED = ("orange", "marron", "turquoise", "debout", "courant", "cool")
SPANISH_STRESSED = {"án": "anes", "én": "enes", "ín": "ines", "ón": "ones", "ún": "unes", "és": "eses", "ús": "uses"}
SPANISH_IRREGULAR = {
    "joven": "jóvenes",
    "imagen": "imágenes",
    "lápiz": "lápices",
    "árbol": "árboles",
    "robot": "robots",
}
SPANISH_ADJECTIVES = {"gran": "grandes", "gris": "grises"}
SPANISH_UNCHANGED = ("naranja", "rosa", "violeta", "turquesa", "guay")
GERMAN_WEAK = re.compile(
    r"(affe|löwe|hase|drache|junge|rabe|falke|riese|matrose|kunde|welpe|bär|prinz|pirat|elefant|astronaut|mensch|held)$",
    re.IGNORECASE,
)


@functools.cache
def plural_name(language: str, name: str) -> str | None:
    """The plural of a name, which may be the same word; None if neither `words.tsv` nor a rule gives it."""
    listed: Mapping[str, str] = plurals_of(language)
    if name in listed:
        return listed[name]
    if not name.isalpha():
        return None
    return {"fr": _french, "de": _german, "es": _spanish}[language](name)


def _french(word: str) -> str:
    if word.endswith(("s", "x", "z")):
        return word
    if word in FRENCH_IN_OUX or (word.endswith(("eau", "eu", "au")) and word not in FRENCH_IN_EUS):
        return f"{word}x"
    if word.endswith("al") and word not in FRENCH_IN_ALS:
        return f"{word[:-2]}aux"
    return f"{word}s"


def _spanish(word: str) -> str:
    if word in SPANISH_IRREGULAR:
        return SPANISH_IRREGULAR[word]
    if word[-2:] in SPANISH_STRESSED and len(word) > 3:
        return word[:-2] + SPANISH_STRESSED[word[-2:]]
    if word.endswith("z"):
        return f"{word[:-1]}ces"
    if word.endswith(("s", "x")):
        return word
    return word + ("s" if word[-1] in "aeiouáéó" else "es")


def _german(word: str) -> str | None:
    """Plurals that the ending of a word tells: nearly all feminine nouns in -e, and those with a suffix."""
    if word.endswith(("chen", "lein")):
        return word
    if word.endswith(("ung", "heit", "keit", "schaft", "tät", "tion", "sion")):
        return f"{word}en"
    if word.endswith(("erin", "istin")):
        return f"{word}nen"
    if is_weak(word):
        return f"{word}n" if word.endswith("e") else f"{word}en"
    if word.endswith("e") and gender_of("de", word) == "f":
        return f"{word}n"
    return word if word.endswith("er") and gender_of("de", word) == "m" else None


def is_weak(noun: str) -> bool:
    """Whether a German noun has the form of its plural in all cases but the nominative: `einen Löwen`."""
    return GERMAN_WEAK.search(noun) is not None


def dative_plural(name: str) -> str:
    """The dative of a German plural: `mit drei Äpfeln`."""
    return name if name.endswith(("n", "s")) else f"{name}n"


def plural_adjective(language: str, form: str) -> str:
    """The plural of a French or Spanish adjective of one gender: `rouges`, `azules`; that of a clause is its verb's."""
    first, _, rest = form.partition(" ")
    if first in ("qui", "que"):
        if language == "es":
            return f"que {rest}n"
        return f"qui {FRENCH_VERBS.get(rest, f'{rest}nt')}"
    if first in ("a", "de", "en") or form.endswith((" clair", " foncé", " claro", " oscuro")):
        return form
    if " " in form:  # two colours
        joint = " et " if language == "fr" else " y "
        return joint.join(plural_adjective(language, one) for one in form.split(joint))
    if language == "fr":
        return form if form in FRENCH_UNCHANGED else _french(form)
    if form in SPANISH_ADJECTIVES:
        return SPANISH_ADJECTIVES[form]
    return form if form in SPANISH_UNCHANGED or form.endswith("ndo") else _spanish(form)
