"""The vocabulary of a model, made from the captions that it was trained on."""

import base64
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dalle import DALLE
from dalle.checkpoint.files import VOCABULARY_FILE
from dalle.checkpoint.vocabulary import read_vocabulary
from dalle.errors import DataError
from tests.support.captions import metadata_of
from tests.support.models import write_model
from tests.support.pairs import write_pairs
from training.captions.naming import without_skin_tone
from training.release import release
from training.vocabulary import make_vocabulary, write_vocabulary_of_model


def of(*named: tuple[str, str]) -> list[dict[str, Any]]:
    return [metadata_of(name, style) for name, style in named]


def test_names_styles_and_words_come_from_the_pairs() -> None:
    pairs = of(
        ("owl", "noto"),
        ("owl", "twemoji"),
        ("man cook: dark skin tone", "noto"),
        ("man cook", "twemoji"),
        ("flag: Peru", "noto"),
        ("flag: Peru", "twemoji"),
        ("widget", "noto"),
    )
    vocabulary = make_vocabulary(pairs, description="Emoji", examples=["owl, noto style emoji"])
    assert vocabulary is not None
    assert vocabulary.concepts == ("flag of Peru", "man cook", "owl"), "a name in one style alone is left out"
    assert [(style.name, style.phrase) for style in vocabulary.styles] == [
        ("noto", "noto style emoji"),
        ("twemoji", "twemoji style emoji"),
    ]
    assert ("flag of Peru", "peru flag") in vocabulary.synonyms
    assert ("man cook", "male chef", "male cook") in vocabulary.synonyms and len(vocabulary.synonyms) == 2
    assert (vocabulary.description, vocabulary.examples) == ("Emoji", ("owl, noto style emoji",))
    assert "widget" in vocabulary.words and "owl" not in vocabulary.words
    assert vocabulary == make_vocabulary(pairs[::-1], description="Emoji", examples=["owl, noto style emoji"])


def test_examples_are_captions_each_in_another_style() -> None:
    pairs = of(*((name, style) for name in ("owl", "fox") for style in ("noto", "twemoji")))
    vocabulary = make_vocabulary(pairs)
    assert vocabulary is not None
    assert vocabulary.examples == ("fox, noto style emoji", "owl, twemoji style emoji")


def test_pairs_without_names_are_named_by_short_captions() -> None:
    captions = ["A cat.", "the old bridge", "two men talk about the weather in front of a house"]
    vocabulary = make_vocabulary([{"captions": [caption]} for caption in captions])
    assert vocabulary is not None
    assert (vocabulary.styles, vocabulary.concepts) == ((), ("cat", "old bridge"))
    assert vocabulary.knows("houses in the weather") and not vocabulary.knows("a dog")


def test_what_cannot_be_an_entry_is_left_out() -> None:
    vocabulary = make_vocabulary([{"captions": ["tab\x07bed"]}, {"captions": ["x" * 300]}, {"captions": ["a cat"]}])
    assert vocabulary is not None
    assert vocabulary.concepts == ("cat",)
    assert make_vocabulary([]) is None


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("man: medium skin tone, beard", "man: beard"),
        ("thumbs up: dark skin tone", "thumbs up"),
        ("flag: Peru", "flag: Peru"),
        ("owl", "owl"),
    ],
)
def test_skin_tones_are_no_concepts(name: str, bare: str) -> None:
    assert without_skin_tone(name) == bare


def test_the_program_adds_it_to_a_model_and_a_release_keeps_it(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs", "train", 12)
    model = write_model(tmp_path / "lively")
    digest = DALLE.load(model).digest
    arguments = [str(tmp_path / "pairs"), "--model", str(model), "--description", "Squares", "--device", "cpu"]
    command = [sys.executable, "-m", "training.vocabulary", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "1 styles" in done.stdout and "vocabulary.json" in done.stdout
    loaded = DALLE.load(model)
    assert loaded.digest == digest and loaded.vocabulary is not None
    (style,) = loaded.vocabulary.styles
    assert (style.name, style.phrase) == ("flat", "flat")
    with Image.open(io.BytesIO(base64.b64decode(style.picture))) as picture:
        assert (picture.format, picture.size) == ("WEBP", (64, 64))
    assert "red square" in loaded.vocabulary.concepts

    release(model, out=tmp_path / "released")
    assert read_vocabulary(tmp_path / "released") == loaded.vocabulary
    release(write_model(tmp_path / "silent"), out=tmp_path / "without")
    assert not (tmp_path / "without" / VOCABULARY_FILE).exists()


def test_captions_that_name_nothing(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(DataError, match="no shards at"):
        write_vocabulary_of_model((str(tmp_path / "none"),), model=model_folder)
