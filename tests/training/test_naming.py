"""Names of pictures in captions: wordings, synonyms, articles, plurals and keywords."""

from collections import Counter

import pytest

from dalle.translate.nouns import countable, plural, with_article
from training.captions.naming import SYNONYMS, said, telling_keywords


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("owl", "an owl"), ("Owl", "an Owl"), ("red heart", "a red heart"), ("unicorn", "a unicorn")),
        *(("hourglass", "an hourglass"), ("umbrella", "an umbrella"), ("UFO", "a UFO"), ("ATM", "an ATM")),
        *(
            ("ewe", "a ewe"),
            ("SOS button", "an SOS button"),
            ("NG button", "an NG button"),
            ("OK button", "an OK button"),
        ),
        *(("FREE button", "a FREE button"), ("NEW button", "a NEW button"), ("8 ball", "an 8 ball")),
        *(("x-ray", "an x-ray"), ("X-ray", "an X-ray"), ("one-piece swimsuit", "a one-piece swimsuit")),
        *(("euro banknote", "a euro banknote"), ("eight-pointed star", "an eight-pointed star")),
        *(("horse", "a horse"), ("UP! button", "an UP! button"), ("t-shirt", "a t-shirt"), ("A button", "an A button")),
    ],
)
def test_a_or_an(name: str, expected: str) -> None:
    assert with_article(name) == expected


def test_what_can_have_an_article() -> None:
    for name in (
        "owl",
        "bus",
        "face with tears of joy",
        "man swimming",
        "person in bed",
        "OK button",
        "wine glass",
        "one key",
    ):
        assert countable(name), name
    for name in (
        "glasses",
        "jeans",
        "Aquarius",
        "rice",
        "thumbs up",
        "surfing",
        "no smoking",
        "six o'clock",
        "scissors",
        "one hundred",
        "seven",
    ):
        assert not countable(name), name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("red heart", "red hearts"), ("fox", "foxes"), ("fairy", "fairies"), ("fallen leaf", "fallen leaves")),
        *(("monkey", "monkeys"), ("peach", "peaches"), ("mouse", "mice"), ("old woman", "old women")),
        *(("glasses", None), ("fish", None), ("man running", None), ("ear of corn", None), ("bus", None)),
        *(("rice", None), ("Christmas tree", None), ("thumbs up", None)),
    ],
)
def test_plurals(name: str, expected: str | None) -> None:
    assert plural(name) == expected


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        ("owl", ["owl"]),
        ("flag: Peru", ["flag of Peru", "Peru flag"]),
        ("flag: United States", ["flag of the United States", "United States flag"]),
        ("keycap: 8", ["keycap 8", "8 keycap", "number 8 keycap"]),
        ("keycap: #", ["keycap #", "# keycap"]),
        ("man cook", ["man cook", "male cook"]),
        ("woman mountain biking", ["woman mountain biking"]),
        ("man\u2019s shoe", ["man's shoe"]),
        ("man running: facing right", ["man running facing right"]),
        ("woman: red hair", ["red-haired woman", "woman with red hair"]),
        (
            "thumbs up: dark skin tone",
            ["thumbs up with dark skin tone", "thumbs up with dark skin", "dark skin tone thumbs up"],
        ),
        (
            "people holding hands: light skin tone, dark skin tone",
            ["people holding hands with light and dark skin tones", "people holding hands with light and dark skin"],
        ),
        (
            "family: man, woman, boy",
            ["family, man, woman, boy", "family of a man, a woman and a boy", "family with a man, a woman and a boy"],
        ),
        ("kiss: man, man", ["kiss, man, man", "man and man kissing", "kiss between a man and a man"]),
    ],
)
def test_names_as_people_say_them(name: str, ways: list[str]) -> None:
    assert said(name) == ways


def test_a_bearded_man_with_medium_skin_tone() -> None:
    ways = said("man: medium skin tone, beard")
    assert {"bearded man with medium skin tone", "man with a beard and medium skin tone"} < set(ways)
    assert {way.split()[-1] for way in ways} == {"tone", "skin", "man", "beard"}


def test_vague_keywords_name_nothing() -> None:
    metadata = {
        "name_en": "ON! arrow",
        "keywords_en": ["ON!", "mark", "143", "xoxo", "dark skin tone", "omg", "\u2713"],
    }
    assert telling_keywords(metadata) == ["mark"]


def test_the_table_of_synonyms_is_unambiguous() -> None:
    lines = [line for line in SYNONYMS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    table = {name: others.split(", ") for name, _, others in (line.partition(": ") for line in lines)}
    assert len(lines) == len(table) > 500, "no name twice"
    counts = Counter(other for others in table.values() for other in others)
    assert counts.most_common(1)[0][1] == 1, "no synonym of two names"
    assert not {name.lower() for name in table} & {other.lower() for other in counts}, "no synonym is another's name"
