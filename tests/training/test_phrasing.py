"""Natural prompts of the evaluation: words that no training caption has, fixed for each pair."""

import re
from types import ModuleType
from typing import Any

import pytest

from tests.support.captions import BURGER, PAIRS, drawn
from training.captions import frames
from training.captions import phrasing as evaluation_side
from training.captions.draw import all_captions
from training.captions.naming import said, synonyms
from training.captions.phrasing import prompt_for
from training.captions.wording import STYLES


def frames_of(module: ModuleType) -> set[str]:
    """Every frame of a module: all texts with fields in its constants."""
    constants = [constant for constant in vars(module).values() if isinstance(constant, tuple)]
    return {text for constant in constants for text in constant if isinstance(text, str) and "{" in text}


def literal_words(frame: str) -> set[str]:
    """The words of a frame that are no fields."""
    return set(re.findall(r"[\w'-]+", re.sub(r"\{\w+\}", " ", frame).lower()))


def test_each_evaluation_frame_has_a_word_that_no_training_frame_has() -> None:
    known = set().union(*map(literal_words, frames_of(frames)))
    known |= set().union(*(literal_words(words) for one in STYLES.values() for words in (one.name, *one.others)))
    known |= set().union(*(literal_words(caption) for metadata in PAIRS for caption in all_captions(metadata)))
    assert len(frames_of(frames)) > 60 and len(frames_of(evaluation_side)) > 15
    for frame in frames_of(evaluation_side):
        assert literal_words(frame) - known, frame
    assert not frames_of(evaluation_side) & frames_of(frames)


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
