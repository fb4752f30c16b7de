"""What a picture is called in plain English: CLDR names as people say them, synonyms, articles and plurals.

This module names no style and draws nothing at random: a function gives all the ways to say a name that it knows.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "countable",
    "country_of",
    "is_plural",
    "plural",
    "said",
    "synonyms",
    "telling_keywords",
    "with_article",
    "with_the",
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
# CLDR breaks its keywords into single words, and many of them say nothing of what is to be seen.
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
PREPOSITION = re.compile(r"[,(]| (?:of|with|without|in|on|at|behind|from|and|for|to|over|under|by|not|that|facing) ")
# A person or a face does something: the last word is no noun ("person running"), the first one is.
DOERS = re.compile(
    r"(man|woman|person|child|boy|girl|face|cat|monkey|fairy|mage|elf|vampire|genie|prince|princess|guard|leaf)\b"
)
GERUNDS_THAT_ARE_THINGS = {
    "ring",
    "king",
    "wing",
    "earring",
    "string",
    "spring",
    "building",
    "painting",
    "wedding",
    "ping",
    "dumpling",
    "seedling",
}
UNCOUNTABLE = frozenset(
    """art bacon badminton bald baseball basketball beans biohazard bowling bread broccoli butter camping
    chocolate climbing clothes clothing coffee confetti construction control cooking copyright coral corn
    cricket curry custard dash divide dizzy dna down electricity equipment fire fishing flour fog food football
    fries fruit garlic ginger golf grass hail hair handball hockey honey ice infinity information jewelry juice
    karate lacrosse leafy lightning luck luggage lumber machinery mail meat milk milky minus money mud multiply
    music news oden oil ornament paper pasta people plus police polo pong poo poop prohibited radioactive rain
    ramen registered restroom rice rugby sake salt sand scenery silhouette smoke snow soap soccer softball soup
    spaghetti stew stuff sugar surfing sushi swimming tea tempura tennis thunder toast traffic up volleyball
    warning water weather wine wireless wood wool work yarn zzz""".split()
)
# These end in s and are one thing, or end otherwise and are many.
ENDS_IN_S = re.compile(r"(ss|us|is|[^aeiou]ics|gas|lens|iris|canvas|atlas|christmas|santa claus|series|rhinoceros)$")
IRREGULAR_PLURALS = {
    **{"man": "men", "woman": "women", "person": "people", "child": "children", "mouse": "mice", "foot": "feet"},
    **{"tooth": "teeth", "goose": "geese", "leaf": "leaves", "wolf": "wolves", "knife": "knives", "loaf": "loaves"},
    **{"scarf": "scarves", "shelf": "shelves", "potato": "potatoes", "tomato": "tomatoes", "volcano": "volcanoes"},
    **{"mango": "mangoes", "mosquito": "mosquitoes", "elf": "elves", "ox": "oxen"},
}
WITHOUT_PLURAL = {"fish", "sheep", "deer", "bison", "moose", "shrimp", "squid", "fruit", "salmon", "hair"}
PLURALS = {*IRREGULAR_PLURALS.values(), "dice", "cattle"}
SINGULAR_U = re.compile(r"(uni([^mn]|$)|u[tks]\w|ewe|ufo\b|u-turn|eu|one\b|once\b|one-|u\b|usb\b)", re.IGNORECASE)
SILENT_H_OR_X = re.compile(r"(hour|honest|honou?r|heir|x-)", re.IGNORECASE)
SPELLED_WITH_VOWEL = re.compile(r"([AEFHILMNORSX]\b|SOS\b|[FHLMNRSX][BCDFGHJKLMNPQRSTVWXYZ]+\b|8|11\b|18\b)")
COUNTRIES_WITH_THE = re.compile(
    r"(United |British |U\.S\. |Netherlands|Bahamas|Philippines|Maldives|Gambia|Comoros|Seychelles|European Union"
    r"|Isle of|Vatican|.*(Islands|Territories|Republic)$)"
)


def straight(text: str) -> str:
    """The text with typewriter's quotes and apostrophes, and without stray blanks and marks at its ends."""
    text = re.sub(r"\s+(?=[,;:!?]|\.(\W|$))", "", text.translate(STRAIGHT_QUOTES))
    return re.sub(r"\s+", " ", text).strip(" ,.;:-")


def country_of(name: str) -> str | None:
    """The country of a CLDR flag name, with `the` where English has it; None for other names."""
    if not name.startswith("flag: "):
        return None
    country = straight(name.removeprefix("flag: "))
    return f"the {country}" if COUNTRIES_WITH_THE.match(country) else country


def said(name: str) -> list[str]:
    """All plain ways to say a CLDR name. `man: medium skin tone, beard` is a bearded man with medium skin tone; a name
    without a colon is itself, and `man cook` also a male cook."""
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


def synonyms(name: str) -> list[str]:
    """Other names for the same picture, with the name's skin tone and direction; none for most."""
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
    """`woman pilot` is also a female pilot; `woman running` and `woman in tuxedo` are no other."""
    gender, _, role = subject.partition(" ")
    words = role.split()
    if gender not in GENDERS or not words or words[0] in ("in", "with", "and") or any(w.endswith("ing") for w in words):
        return [subject]
    return [subject, f"{GENDERS[gender]} {role}"]


def _crowd(subject: str, people: Sequence[str]) -> list[str]:
    """A family, a couple or a kiss of these people."""
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
    """Each way with hair, skin tone and direction."""
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
    """The keywords that say something of the picture besides its name: neither vague nor words of the name."""
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


# -- articles and plurals


def with_article(name: str) -> str:
    """The name with `a` or `an`, by its sound."""
    vowel = (name[:1].lower() in tuple("aeiou") and not SINGULAR_U.match(name)) or bool(SILENT_H_OR_X.match(name))
    if name[:2].isupper() or name[:1].isdigit() or re.match(r"[A-Z]\b", name):
        vowel = vowel or bool(SPELLED_WITH_VOWEL.match(name))
    return f"{'an' if vowel else 'a'} {name}"


def with_the(name: str) -> str:
    """The name with `the`, unless it has an article already."""
    return name if name.startswith(("the ", "a ", "an ")) else f"the {name}"


def _head(name: str) -> str:
    """What the name is about: its first part, up to a preposition."""
    return PREPOSITION.split(name, maxsplit=1)[0]


def is_plural(name: str) -> bool:
    """Whether the name is of several things, such as `glasses`."""
    words = _head(name).lower().split()
    if not words or words[0] in ("one", "a"):
        return False
    last = words[-1]
    return last in PLURALS or (len(last) > 2 and last.endswith("s") and not ENDS_IN_S.search(last))


def countable(name: str) -> bool:
    """Whether `a` or `an` may stand in front: not of many, not of a substance, a sport or a proper name."""
    words = _head(name).split()
    if not words or (is_plural(name) and not DOERS.match(name)):
        return False
    last = words[-1].lower()
    if not re.match(r"[\w\"'#*]", name) or name.lower().startswith(
        ("no ", "input ", "milky way", "a ", "an ", "the ", "flag of ", "regional ")
    ):
        return False
    if words[0][0].isdigit() or any(word[:1].isdigit() for word in words[1:]) or "thirty" in name or "o'clock" in name:
        return False
    if re.match(r"\w+ and \w+", name):
        return False
    if DOERS.match(name):
        return True
    if last in UNCOUNTABLE or (last.endswith("ing") and last not in GERUNDS_THAT_ARE_THINGS):
        return False
    # Capitals make a proper name, unless a noun follows: `Aquarius`, but `a Japanese castle`, `an OK button`.
    return words[-1][0].islower() or (len(words) == 1 and words[0].isupper() and len(words[0]) in (2, 3, 4))


def plural(name: str) -> str | None:
    """The name of several such things; None if that is no simple word for it."""
    words = name.split()
    if len(words) > 3 or not countable(name) or _head(name) != name or not name.replace(" ", "").isalpha():
        return None
    last = words[-1]
    if not name.islower() or (DOERS.match(name) and len(words) > 1) or last in WITHOUT_PLURAL or last.endswith("s"):
        return None
    if last in IRREGULAR_PLURALS:
        many = IRREGULAR_PLURALS[last]
    elif re.search(r"(x|z|ch|sh)$", last):
        many = f"{last}es"
    elif re.search(r"[^aeiou]y$", last):
        many = f"{last[:-1]}ies"
    elif last.endswith(("ed", "ing", "st", "men")) and last not in ("bed", "ring", "king", "wing", "nest", "fist"):
        return None
    else:
        many = f"{last}s"
    return " ".join([*words[:-1], many])
