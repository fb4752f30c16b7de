"""English grammar of names: whether a name takes an article, which one, and its plural."""

import re

__all__ = ["countable", "is_plural", "plural", "with_article", "with_the"]

PREPOSITION = re.compile(r"[,(]| (?:of|with|without|in|on|at|behind|from|and|for|to|over|under|by|not|that|facing) ")
# In names of a person or face that does something ("person running"), the first word is the noun, not the last.
DOERS = re.compile(
    r"(man|woman|person|child|boy|girl|face|cat|monkey|fairy|mage|elf|vampire|genie|prince|princess|guard|leaf)\b"
)
GERUNDS_THAT_ARE_THINGS = frozenset(
    "ring king wing earring string spring building painting wedding ping dumpling seedling".split()
)
NUMERALS = frozenset(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion""".split()
)
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
# Singular words that end in s; then plural words that do not follow the rule.
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


def with_article(name: str) -> str:
    """The name with `a` or `an`, depending on its first sound."""
    vowel = (name[:1].lower() in tuple("aeiou") and not SINGULAR_U.match(name)) or bool(SILENT_H_OR_X.match(name))
    if name[:2].isupper() or name[:1].isdigit() or re.match(r"[A-Z]\b", name):
        vowel = vowel or bool(SPELLED_WITH_VOWEL.match(name))
    return f"{'an' if vowel else 'a'} {name}"


def with_the(name: str) -> str:
    """The name with `the`; a name that has an article stays unchanged."""
    return name if name.startswith(("the ", "a ", "an ")) else f"the {name}"


def _head(name: str) -> str:
    """The first part of the name, up to a preposition, comma or bracket; it ends in the head noun."""
    return PREPOSITION.split(name, maxsplit=1)[0]


def is_plural(name: str) -> bool:
    """Whether the name is a plural, such as `glasses`."""
    words = _head(name).lower().split()
    if not words or words[0] in ("one", "a"):
        return False
    last = words[-1]
    return last in PLURALS or (len(last) > 2 and last.endswith("s") and not ENDS_IN_S.search(last))


def countable(name: str) -> bool:
    """Whether the name can take the article `a` or `an`: plurals, numerals, substances, sports and proper names
    cannot."""
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
    if last in NUMERALS or re.match(r"\w+ and \w+", name):
        return False
    if DOERS.match(name):
        return True
    if last in UNCOUNTABLE or (last.endswith("ing") and last not in GERUNDS_THAT_ARE_THINGS):
        return False
    # Capitals make a proper name, unless a noun follows: `Aquarius`, but `a Japanese castle`, `an OK button`.
    return words[-1][0].islower() or (len(words) == 1 and words[0].isupper() and len(words[0]) in (2, 3, 4))


def plural(name: str) -> str | None:
    """The plural of the name; None if the rules of this module do not give one with certainty."""
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
