"""Training captions and the natural prompts of the evaluation: phrases that a person could have typed, each feature at
about its share, and not one phrase that both of them use."""

import json
import random
import re
import string
from collections import Counter
from types import ModuleType
from typing import Any

import pytest

from tests.support.pairs import pair
from training.captions import draw as training_side
from training.captions import phrasing as evaluation_side
from training.captions.draw import all_captions, draw_caption
from training.captions.grammar import countable, plural, with_article
from training.captions.naming import SYNONYMS, said, synonyms, telling_keywords
from training.captions.phrasing import prompt_for
from training.captions.wording import STYLES
from training.emoji.sets import SETS, captions


def metadata_of(name: str, style: str, keywords: tuple[str, ...] = ()) -> dict[str, Any]:
    """The metadata of a pair of the emoji data."""
    (first, *_) = (one for one in SETS if one.style == style)
    return {
        "id": f"{first.name}/{name}",
        "captions": captions(first, name),
        "name_en": name,
        "style": style,
        "keywords_en": list(keywords),
    }


NAMES = (
    *("red heart", "hamburger", "owl", "red panda", "glasses", "hourglass not done", "thumbs up: dark skin tone"),
    *("man: medium skin tone, beard", "woman firefighter: light skin tone", "man running: facing right", "flag: Peru"),
    *("flag: United States", "keycap: 8", "man\u2019s shoe", "Japanese \u201cmonthly amount\u201d button", "Aquarius"),
    *("family: man, woman, boy", "ON! arrow", "A button (blood type)", "unicorn", "face with tears of joy"),
)
KEYWORDS = ("animal", "bamboo", "cute", "forest", "ON!")
PAIRS = [metadata_of(name, style, KEYWORDS) for name in NAMES for style in STYLES]
PANDA = metadata_of("red panda", "fluent 3d", KEYWORDS)
BURGER = metadata_of("hamburger", "twemoji")


def drawn(metadata: dict[str, Any], num: int = 2000, seed: int = 0) -> list[str]:
    chance = random.Random(seed)
    return [draw_caption(metadata, chance) for _ in range(num)]


@pytest.fixture(scope="module")
def many() -> list[tuple[dict[str, Any], str]]:
    """60 captions of each of the pairs, with their pairs."""
    return [(metadata, caption) for i, metadata in enumerate(PAIRS) for caption in drawn(metadata, 60, seed=i)]


def test_the_same_seed_draws_the_same_captions() -> None:
    assert drawn(PANDA) == drawn(PANDA)
    assert drawn(PANDA, seed=1) != drawn(PANDA)
    assert all_captions(PANDA) == all_captions(json.loads(json.dumps(PANDA)))


def test_a_pair_has_hundreds_of_captions() -> None:
    assert len(set(drawn(PANDA))) > 700
    assert len({caption.lower() for caption in drawn(PANDA)}) > 500


# -- shares


def share(found: list[str], pattern: str, flags: int = 0) -> float:
    return sum(bool(re.search(pattern, caption, flags)) for caption in found) / len(found)


def test_every_feature_occurs_at_about_its_share() -> None:
    found = drawn(PANDA, 20_000)
    counts = Counter(found)
    assert counts[PANDA["captions"][0]] / 20_000 == pytest.approx(1 / 3, abs=0.015)
    assert counts.most_common(2)[1][1] < 0.05 * 20_000, "no other phrase comes near"
    ours = [caption for caption in found if caption != PANDA["captions"][0]]
    # one typo in fifty may hide the style's name; `fluent` and `3d` are in all its wordings
    assert share(found, r"fluent|3d", re.IGNORECASE) == pytest.approx(0.75, abs=0.02)
    assert 0.15 < share(ours, r"^\W*(a|an|the) ", re.IGNORECASE) < 0.35
    assert (
        0.06 < share(ours, r"\b(draw|show me|give me|make|create|generate|i want|i need|can)\b", re.IGNORECASE) < 0.14
    )
    assert 0.08 < share(ours, r"\b(picture|pic|image|icon|drawing|illustration|sticker)\b", re.IGNORECASE) < 0.22
    assert 0.01 < share(ours, r"\bred pandas\b", re.IGNORECASE) < 0.04
    assert 0.05 < share(ours, r"\b(animal|bamboo|forest)\b", re.IGNORECASE) < 0.12
    assert 0.03 < share(ours, r"\(.*\)") < 0.08
    for mark in (":", ";", " / ", " - "):
        assert 0.015 < share(ours, re.escape(mark)) < 0.1, mark
    assert 0.05 < share(ours, r"\.$") < 0.09 and 0.015 < share(ours, r"!$") < 0.05
    letters = [re.sub(r"[^A-Za-z]", "", caption) for caption in ours]
    assert 0.015 < sum(map(str.isupper, letters)) / len(ours) < 0.05
    assert 0.15 < sum(caption[0].isupper() for caption in letters) / len(ours) < 0.4


def test_style_words_vary_and_mean_one_style() -> None:
    told = [words for style in STYLES.values() for words in (style.name, *style.others, *style.held_out)]
    assert len(set(told)) == len(told), "one wording, one style"
    for style in STYLES.values():
        metadata = metadata_of("red panda", style.name)
        found = [caption.lower() for caption in drawn(metadata, 3000)]
        for words in style.others:
            assert sum(words in caption for caption in found) > 20, words
    assert set(STYLES) == {one.style for one in SETS}


def test_synonyms_stand_for_the_name() -> None:
    found = drawn(BURGER, 8000)
    assert share(found, r"(?<!ham)(?<!cheese)burger", re.IGNORECASE) == pytest.approx(0.11, abs=0.03)
    assert share(found, r"cheeseburger", re.IGNORECASE) == pytest.approx(0.11, abs=0.03)
    table = {name: synonyms(name) for name in ("hamburger", "woman pilot", "thumbs up: dark skin tone", "owl")}
    assert table["hamburger"] == ["burger", "cheeseburger"] and table["owl"] == []
    assert table["woman pilot"] == ["female airline pilot"]
    assert table["thumbs up: dark skin tone"][0] == "like sign with dark skin tone"


def test_the_table_of_synonyms_is_unambiguous() -> None:
    lines = [line for line in SYNONYMS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    table = {name: others.split(", ") for name, _, others in (line.partition(": ") for line in lines)}
    assert len(lines) == len(table) > 500, "no name twice"
    counts = Counter(other for others in table.values() for other in others)
    assert counts.most_common(1)[0][1] == 1, "no synonym of two names"
    assert not {name.lower() for name in table} & {other.lower() for other in counts}, "no synonym is another's name"


def errors(caption: str, right: str) -> int:
    """Edits between two texts: insertions, deletions, replacements, and swaps of neighbours."""
    rows = [list(range(len(right) + 1))]
    for i, letter in enumerate(caption, 1):
        row = [i]
        for j, other in enumerate(right, 1):
            row.append(min(rows[i - 1][j] + 1, row[j - 1] + 1, rows[i - 1][j - 1] + (letter != other)))
            if i > 1 and j > 1 and letter == right[j - 2] and caption[i - 2] == other:
                row[j] = min(row[j], rows[i - 2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


def test_typos_are_seldom_and_single(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, str]] = []
    original = training_side._mistyped

    def recorded(phrase: str, chance: random.Random) -> str:
        made.append((phrase, original(phrase, chance)))
        return made[-1][1]

    monkeypatch.setattr(training_side, "_mistyped", recorded)
    drawn(PANDA, 20_000)
    assert len(made) / 20_000 == pytest.approx(0.025, abs=0.004)
    for before, after in made:
        assert errors(after, before) <= 1, (before, after)
    short = ["a cat", "red hat, 3d"]
    assert [original(phrase, random.Random(i)) for phrase in short for i in range(50)] == [
        phrase for phrase in short for _ in range(50)
    ]
    # the four kinds, in the one word that is long enough
    kinds = {original("a lion", random.Random(i)) for i in range(300)}
    assert {"a loin", "a lon", "a liion"} < kinds and len(kinds) < 10
    assert set(training_side.NEIGHBOURS) == set(string.ascii_lowercase)
    assert all(key != beside for key, beside in training_side.NEIGHBOURS.items())


def test_phrases_are_clean(many: list[tuple[dict[str, Any], str]]) -> None:
    for metadata, caption in many:
        assert caption == " ".join(caption.split()), caption
        assert not re.search(r"\b(an?|the) (an?|the)\b", caption, re.IGNORECASE), caption
        assert not re.search(r"[{}]|[,;:/.?]{2}| [,.;:?!]|[,;:/-]$|\(\)|\b(\w{4,}) \1\b", caption, re.IGNORECASE), (
            caption,
            metadata["name_en"],
        )


def test_articles_fit_in_every_caption(many: list[tuple[dict[str, Any], str]]) -> None:
    words = "owl|emoji|image|icon|unicorn|hourglass|red|hamburger|outline|android|illustration|elf|a|ON|fluent|noto"
    seen: Counter[str] = Counter()
    for _, caption in many:
        for article, word in re.findall(rf"\b(an?) ({words})\b", caption, re.IGNORECASE):
            seen[word.lower()] += 1
            vowel = word[0].lower() in "aeio" or word.lower() == "hourglass"
            assert (article.lower() == "an") == vowel, caption
    assert min(seen[word] for word in ("owl", "emoji", "unicorn", "hourglass", "android")) > 5, seen


# -- names


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


# -- pairs of folders


def test_a_pair_without_a_name_varies_lightly() -> None:
    found = Counter(drawn({"captions": ["A red square on a wall.", "my square"]}, 8000))
    assert found["A red square on a wall."] / 8000 > 0.45
    assert sum(count for caption, count in found.items() if caption in ("A red square on a wall.", "my square")) > 4500
    for caption in found:
        assert re.fullmatch(r"(a picture of )?(a )?(red square on a wall|my square)\.?", caption, re.IGNORECASE), (
            caption
        )
    assert {"red square on a wall", "a picture of a red square on a wall", "My square."} < set(found)


def test_braces_in_a_name_are_letters() -> None:
    found = drawn({"captions": ["x", "y"], "name_en": "{name}", "style": "{style}"})
    assert any("{name}" in caption and "{style}" in caption for caption in found)
    assert drawn({"captions": ["{x}"]})


def test_the_text_tokenizer_learns_every_phrase() -> None:
    found = all_captions(PANDA)
    assert found[: len(PANDA["captions"])] == PANDA["captions"]
    assert {*PANDA["captions"], "red panda", *KEYWORDS} < set(found)
    assert len(found) == len(PANDA["captions"]) + 1 + len(KEYWORDS) + training_side.NUM_FOR_TOKENIZER
    assert all_captions({"captions": ["x"]}) == ["x"]
    _, metadata = pair(0)
    assert set(all_captions(metadata)) >= {*metadata["captions"], metadata["name_en"]}


# -- the evaluation asks in other words


def frames_of(module: ModuleType) -> set[str]:
    """Every frame of a module: all texts with fields in its constants."""
    constants = [constant for constant in vars(module).values() if isinstance(constant, tuple)]
    return {text for constant in constants for text in constant if isinstance(text, str) and "{" in text}


def literal_words(frame: str) -> set[str]:
    """The words of a frame that are no fields."""
    return set(re.findall(r"[\w'-]+", re.sub(r"\{\w+\}", " ", frame).lower()))


def test_each_evaluation_frame_has_a_word_that_no_training_frame_has() -> None:
    known = set().union(*map(literal_words, frames_of(training_side)))
    known |= set().union(*(literal_words(words) for one in STYLES.values() for words in (one.name, *one.others)))
    known |= set().union(*(literal_words(caption) for metadata in PAIRS for caption in all_captions(metadata)))
    assert len(frames_of(training_side)) > 60 and len(frames_of(evaluation_side)) > 15
    for frame in frames_of(evaluation_side):
        assert literal_words(frame) - known, frame
    assert not frames_of(evaluation_side) & frames_of(training_side)


def test_held_out_style_words_are_not_in_training(many: list[tuple[dict[str, Any], str]]) -> None:
    for metadata, caption in many:
        for words in STYLES[metadata["style"]].held_out:
            assert not re.search(rf"\b{re.escape(words)}\b", caption, re.IGNORECASE), (caption, words)


def test_no_training_caption_equals_a_natural_prompt() -> None:
    def plain(phrase: str) -> str:
        return " ".join(re.findall(r"[\w'-]+", phrase.lower().replace("\u2019", "'")))

    for metadata in PAIRS:
        asked = {plain(prompt_for(metadata, number, "natural")) for number in range(100)}
        assert not asked & {plain(caption) for caption in drawn(metadata, 300)}
        assert not asked & {plain(caption) for caption in all_captions(metadata)}


def test_natural_prompts_name_the_picture_and_its_style() -> None:
    for metadata in PAIRS:
        style = STYLES[metadata["style"]]
        names = {
            *said(metadata["name_en"]),
            *synonyms(metadata["name_en"]),
            metadata["name_en"].removeprefix("flag: "),
        }
        for number in range(30):
            prompt = prompt_for(metadata, number, "natural")
            assert any(name in prompt for name in names), prompt
            assert any(words in prompt for words in (style.name, *style.held_out)), prompt
            assert not re.search(r"[{}]|  |\b(an?|the) (an?|the)\b|[,.?]{2}", prompt), prompt


def test_natural_prompts_vary_by_number_and_are_fixed() -> None:
    asked = [prompt_for(BURGER, number, "natural") for number in range(400)]
    assert asked == [prompt_for(BURGER, number, "natural") for number in range(400)]
    assert len(set(asked)) > 30
    assert sum("hamburger" not in prompt for prompt in asked) / 400 == pytest.approx(0.5, abs=0.1)
    assert sum("twitter" in prompt for prompt in asked) / 400 == pytest.approx(0.5, abs=0.1)


def test_the_phrasing_of_training_is_the_first_caption() -> None:
    for number, metadata in enumerate(PAIRS):
        assert prompt_for(metadata, number) == prompt_for(metadata, 0, "training") == metadata["captions"][0]


def test_natural_prompts_of_a_pair_without_name_or_style() -> None:
    bare = {"captions": ["A red square on a wall."]}
    asked = {prompt_for(bare, number, "natural") for number in range(50)}
    assert "something that shows A red square on a wall" in asked and len(asked) == 4
    assert prompt_for({"captions": ["x"], "name_en": "owl"}, 0, "natural").count("an owl") == 1
