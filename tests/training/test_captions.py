"""Training captions: phrases that a person could have typed, each feature at about its share."""

import json
import random
import re
import string
from collections import Counter
from typing import Any

import pytest

from tests.support.captions import BURGER, KEYWORDS, PANDA, drawn, metadata_of
from tests.support.pairs import pair
from training.captions import draw as training_side
from training.captions.draw import all_captions
from training.captions.naming import synonyms
from training.captions.wording import STYLES
from training.emoji.sets import SETS


def test_the_same_seed_draws_the_same_captions() -> None:
    assert drawn(PANDA) == drawn(PANDA)
    assert drawn(PANDA, seed=1) != drawn(PANDA)
    assert all_captions(PANDA) == all_captions(json.loads(json.dumps(PANDA)))


def test_a_pair_has_hundreds_of_captions() -> None:
    assert len(set(drawn(PANDA))) > 700
    assert len({caption.lower() for caption in drawn(PANDA)}) > 500


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
