"""Names of pictures in plain English: wordings of Unicode CLDR names, synonyms, and useful keywords.

Styles are named elsewhere (`training.captions.wording`), and nothing is random here: `said` and `synonyms` return all
the names that they know.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dalle.translate.nouns import with_article

__all__ = [
    "country_of",
    "said",
    "synonyms",
    "telling_keywords",
    "without_skin_tone",
]

SYNONYMS = Path(__file__).with_name("synonyms.txt")
STRAIGHT_QUOTES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"'})
SKIN_TONE = re.compile(r"^(light|medium-light|medium|medium-dark|dark) skin tone$")
HAIR = {
    "beard": ("bearded {who}", "{who} with a beard"),
    "bald": ("bald {who}", "{who} who is bald"),
    "red hair": ("red-haired {who}", "{who} with red hair"),
    "curly hair": ("curly-haired {who}", "{who} with curly hair"),
    "white hair": ("white-haired {who}", "{who} with white hair"),
    "blond hair": ("blond {who}", "{who} with blond hair"),
}
PEOPLE = {"man", "woman", "person", "adult", "child", "boy", "girl", "baby"}
GENDERS = {"man": "male", "woman": "female"}
# CLDR splits its keywords into single words, and many of them do not describe the picture.
VAGUE_KEYWORDS = frozenset(
    """143 agree amazed amazing away awesome awful bae bestest bet big blame boss brb break bring bruh call cheeky clean
    close complete cool correct cute dang date dating day definitely disability dope down elegant emotion epic every
    excited expensive extra face fail fast feel feels felt fine fire fleek flirt fml forever forget forgot fosho fresh
    fun funny geez get getting good gorgeous got gotcha great gtg guess happen happy hard hello help here hey hi homie
    hot hour hours huh hundred idk ily in into item jealous jeez just keep kidding know left legit life like lit litaf
    little lmao lol lost love low mad me mild mind miss mine more muah new nice no not now object ok omg omw on one oops
    open out over overtime own part pay perfect please point pretty ready real relax right romance sad same see set
    silly slay sorry special sure talk tbt thing this time times today together totally trip true try two type ugh
    unreal up wait want watch way well what whatever where win won wow wtv xoxo yes you yum zzz""".split()
)
COUNTRIES_WITH_THE = re.compile(
    r"(United |British |U\.S\. |Netherlands|Bahamas|Philippines|Maldives|Gambia|Comoros|Seychelles|European Union"
    r"|Isle of|Vatican|.*(Islands|Territories|Republic)$)"
)


def straight(text: str) -> str:
    """The text with straight quotes and apostrophes, without stray blanks, and without marks at its ends."""
    text = re.sub(r"\s+(?=[,;:!?]|\.(\W|$))", "", text.translate(STRAIGHT_QUOTES))
    return re.sub(r"\s+", " ", text).strip(" ,.;:-")


def country_of(name: str) -> str | None:
    """The country in the CLDR name of a flag, with `the` where English requires it; None for other names."""
    if not name.startswith("flag: "):
        return None
    country = straight(name.removeprefix("flag: "))
    return f"the {country}" if COUNTRIES_WITH_THE.match(country) else country


def said(name: str) -> list[str]:
    """All plain English wordings of a CLDR name. `man: medium skin tone, beard` gives, among others, `bearded man with
    medium skin tone`; a name without a colon gives itself, and `man cook` also `male cook`."""
    name = straight(name)
    subject, _, rest = name.partition(": ")
    if not rest:
        return _with_gender(subject)
    if (country := country_of(name)) is not None:
        ways = [f"flag of {country}", f"{rest} flag"]
        return [way for one in ways for way in ([one, one.replace(" & ", " and ")] if "&" in one else [one])]
    if subject == "keycap":
        return [f"keycap {rest}", f"{rest} keycap", *([f"number {rest} keycap"] if rest.isdigit() else [])]
    details = rest.split(", ")
    if (people := [detail for detail in details if detail in PEOPLE]) and subject not in PEOPLE:
        return _described(_crowd(subject, people), [detail for detail in details if detail not in PEOPLE])
    return _described(_with_gender(subject), details)


def without_skin_tone(name: str) -> str:
    """A CLDR name without the skin tones in it: `man: medium skin tone, beard` gives `man: beard`."""
    subject, _, rest = straight(name).partition(": ")
    details = [detail for detail in rest.split(", ") if detail and not SKIN_TONE.match(detail)]
    return f"{subject}: {', '.join(details)}" if details else subject


def synonyms(name: str) -> list[str]:
    """Other names of the same picture, with the skin tone and direction of the name; empty for most names."""
    subject, _, rest = straight(name).partition(": ")
    if subject in ("flag", "keycap", *PEOPLE) and rest:
        return []
    found = list(_table().get(subject, ()))
    gender, _, role = subject.partition(" ")
    if not found and gender in GENDERS:
        known = _table().get(role, ()) if not role.endswith("ing") else ()
        found = [f"{GENDERS[gender]} {synonym}" for synonym in known]
    return _described(found, rest.split(", ")) if rest else found


@functools.cache
def _table() -> dict[str, tuple[str, ...]]:
    lines = SYNONYMS.read_text(encoding="utf-8").splitlines()
    pairs = (line.split(": ", 1) for line in lines if not line.startswith("#"))
    return {name: tuple(others.split(", ")) for name, others in pairs}


def _with_gender(subject: str) -> list[str]:
    """The name of a person, and for a role also its form with an adjective: `woman pilot` gives `female pilot`, too,
    but `woman running` and `woman in tuxedo` give only themselves."""
    gender, _, role = subject.partition(" ")
    words = role.split()
    if gender not in GENDERS or not words or words[0] in ("in", "with", "and") or any(w.endswith("ing") for w in words):
        return [subject]
    return [subject, f"{GENDERS[gender]} {role}"]


def _crowd(subject: str, people: Sequence[str]) -> list[str]:
    """Wordings of a family, a couple or a kiss of these people."""
    together = " and ".join([", ".join(with_article(one) for one in people[:-1]), with_article(people[-1])])
    bare = " and ".join(people)
    match subject:
        case "family" if len(people) > 1:
            return [f"family, {', '.join(people)}", f"family of {together}", f"family with {together}"]
        case "kiss":
            return [f"kiss, {', '.join(people)}", f"{bare} kissing", f"kiss between {together}"]
        case "couple with heart":
            return [f"couple with heart, {', '.join(people)}", f"{bare} with a heart between them"]
    return [f"{subject}, {', '.join(people)}"]


def _described(ways: Sequence[str], details: Sequence[str]) -> list[str]:
    """Each wording with the details added: hair, skin tone, direction and others."""
    tones = [detail for detail in details if SKIN_TONE.match(detail)]
    found = list(ways)
    for detail in details:
        if detail in HAIR:
            found = [form.format(who=way) for way in found for form in HAIR[detail]]
    if tones:
        shades = " and ".join(dict.fromkeys(tone.removesuffix(" skin tone") for tone in tones))
        tone = "skin tones" if len(set(tones)) > 1 else "skin tone"
        and_with = [f"{way} and" if " with " in way or " of a " in way else f"{way} with" for way in found]
        found = [
            *(f"{way} {shades} {tone}" for way in and_with),
            *(f"{way} {shades} skin" for way in and_with),
            *(f"{shades} {tone} {way}" for way in found if len(set(tones)) == 1 and not way[:1].isupper()),
        ]
    for detail in details:
        if detail not in HAIR and detail not in tones:
            joint = " " if detail.startswith("facing ") else ", "
            found = [f"{way}{joint}{detail}" for way in found]
    return found


def telling_keywords(metadata: dict[str, Any]) -> list[str]:
    """The keywords that add to the name of the picture: those that are neither vague nor words of the name."""
    words = set(re.findall(r"[\w'-]+", straight(metadata.get("name_en", "")).lower()))
    return [
        keyword
        for keyword in map(straight, metadata.get("keywords_en", []))
        if len(keyword) > 2
        and keyword.isascii()
        and keyword.lower() not in VAGUE_KEYWORDS
        and not SKIN_TONE.match(keyword)
        and not words >= set(re.findall(r"[\w'-]+", keyword.lower()))
    ]
