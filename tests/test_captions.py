"""Captions for training: each is a phrase that a person could have written, and the draw is a function of its seed."""

import random
from collections import Counter
from typing import Any

import pytest
from pairs import pair

from training.captions import all_captions, draw_caption

PANDA: dict[str, Any] = {
    "captions": ["red panda, flat style emoji", "a red panda", "red panda"],
    "name_en": "red panda",
    "style": "flat",
    "keywords_en": ["animal", "bamboo", "red panda", "cute", "forest"],
}


def drawn(metadata: dict[str, Any], num: int = 2000, seed: int = 0) -> list[str]:
    chance = random.Random(seed)
    return [draw_caption(metadata, chance) for _ in range(num)]


def test_the_same_seed_draws_the_same_captions() -> None:
    assert drawn(PANDA) == drawn(PANDA)
    assert drawn(PANDA, seed=1) != drawn(PANDA)


def test_a_caption_names_the_picture_or_its_keywords() -> None:
    keywords = {"animal", "bamboo", "cute", "forest"}
    captions = drawn(PANDA)
    assert len(set(captions)) > 100
    for caption in captions:
        assert not set("{}") & set(caption), caption
        assert caption == " ".join(caption.split()) and not caption.endswith(","), caption
        parts = [part.removesuffix(" style emoji") for part in caption.split(", ")]
        assert "red panda" in caption or set(parts) <= keywords | {"flat"}, caption
        assert len(keywords & set(parts)) <= 3 and len(set(parts)) == len(parts), caption


def test_half_are_the_pair_s_own_and_the_first_is_the_most_frequent() -> None:
    counts = Counter(drawn(PANDA | {"captions": ["own one", "own two", "own three"]}, num=4000))
    own = [counts[f"own {number}"] / 4000 for number in ("one", "two", "three")]
    assert sum(own) == pytest.approx(0.5, abs=0.04)
    assert own[0] == pytest.approx(1 / 3, abs=0.04)  # half of the time the first, else one of the three
    assert own[1] == pytest.approx(1 / 12, abs=0.02)


def test_templates_use_only_what_a_pair_has() -> None:
    bare = {"captions": ["x"], "name_en": "red panda"}
    assert set(drawn(bare)) == {"x", "red panda", "a red panda"}
    assert set(drawn({"captions": ["x", "y"]})) == {"x", "y"}, "no name, no template"
    no_style = set(drawn(bare | {"keywords_en": ["cute"]}))
    assert no_style == {"x", "red panda", "a red panda", "red panda, cute"}
    no_keywords = set(drawn(bare | {"style": "flat", "keywords_en": ["red panda"]}))
    assert no_keywords == {
        *("x", "red panda", "a red panda"),
        *("red panda, flat style emoji", "a red panda, flat style emoji", "red panda in flat style"),
        *("flat red panda", "a flat emoji of red panda"),
    }


def test_articles_and_colons() -> None:
    assert "an owl" in drawn({"captions": ["x"], "name_en": "owl"})
    assert "an Owl" in drawn({"captions": ["x"], "name_en": "Owl"})
    assert set(drawn({"captions": ["x"], "name_en": "flag: Malta"})) == {"x", "flag, Malta", "a flag, Malta"}


def test_braces_in_a_name_are_letters() -> None:
    assert set(drawn({"captions": ["x"], "name_en": "{name}"})) == {"x", "{name}", "a {name}"}


def test_the_text_tokenizer_learns_every_phrase() -> None:
    assert all_captions(PANDA) == [*PANDA["captions"], "red panda", *PANDA["keywords_en"]]
    assert all_captions({"captions": ["x"]}) == ["x"]
    _, metadata = pair(0)
    assert set(all_captions(metadata)) >= {*metadata["captions"], metadata["name_en"]}
