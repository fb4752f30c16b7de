"""What a model knows: the optional file of a model directory, and prompts of which no word is known."""

import base64
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dalle import DALLE
from dalle.checkpoint import check_checkpoint, load_checkpoint, save_checkpoint
from dalle.checkpoint.files import VOCABULARY_FILE
from dalle.checkpoint.store import find_model
from dalle.checkpoint.vocabulary import Style, Vocabulary, read_vocabulary, write_vocabulary
from dalle.errors import CheckpointError, ConfigError
from tests.support.models import VOCABULARY


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A model directory that says what it knows."""
    copy = Path(shutil.copytree(model_folder, tmp_path / "lively"))
    write_vocabulary(copy, VOCABULARY)
    return copy


def test_it_comes_back_and_changes_no_digest(folder: Path, model_folder: Path) -> None:
    assert read_vocabulary(folder) == VOCABULARY
    assert DALLE.load(folder).vocabulary == VOCABULARY
    assert load_checkpoint(folder).digest == load_checkpoint(model_folder).digest
    check_checkpoint(folder)
    assert read_vocabulary(model_folder) is None
    assert DALLE.load(model_folder).vocabulary is None


def test_a_model_is_saved_with_it_and_replaced(folder: Path) -> None:
    loaded = load_checkpoint(folder)
    for vocabulary in (VOCABULARY, None):
        save_checkpoint(
            folder,
            name="lively",
            image_tokenizer=loaded.image_tokenizer,
            text_tokenizer=loaded.text_tokenizer,
            decoder=loaded.decoder,
            vocabulary=vocabulary,
            overwrite=True,
        )
        assert read_vocabulary(folder) == vocabulary
        assert (folder / VOCABULARY_FILE).exists() == (vocabulary is not None)
    assert VOCABULARY_FILE not in json.loads((folder / "config.json").read_text())["digests"]


def test_keys_of_later_versions_are_ignored(folder: Path) -> None:
    values = VOCABULARY.to_dict() | {"colours": ["red"]}
    values["styles"][0]["weight"] = 3
    (folder / VOCABULARY_FILE).write_text(json.dumps(values))
    assert read_vocabulary(folder) == VOCABULARY
    (folder / VOCABULARY_FILE).write_text("{}")
    assert read_vocabulary(folder) == Vocabulary()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[]", "the vocabulary must be an object, not list"),
        (b"{", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b'{"concepts": "owl"}', "Vocabulary.concepts must be a list, not 'owl'"),
        (b'{"concepts": [3]}', "must be str, not 3"),
        (b'{"concepts": ["owl", "owl"]}', "concepts has an entry twice"),
        (b'{"words": [" "]}', "must be one line of 1 to 200 characters"),
        (b'{"examples": ["a\\nb"]}', "must be one line of 1 to 200 characters"),
        (b'{"styles": [{"name": "flat"}]}', "Style needs the key 'phrase'"),
        (b'{"styles": [{"name": "flat", "phrase": "flat", "picture": "%"}]}', "the style 'flat' is no base64"),
        (b'{"styles": [{"name": "flat", "phrase": "flat", "picture": "PHN2Zz4="}]}', "is not a WebP file"),
    ],
)
def test_a_damaged_one_is_told_and_the_model_draws_all_the_same(folder: Path, content: bytes, said: str) -> None:
    (folder / VOCABULARY_FILE).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_vocabulary(folder)
    assert said in str(caught.value) and str(folder / VOCABULARY_FILE) in str(caught.value)
    with pytest.warns(UserWarning, match="the model is used without its vocabulary"):
        model = DALLE.load(folder)
    assert model.vocabulary is None
    assert len(list(model.generate("a fish", seed=1))) == 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Vocabulary(description="x" * 201), "description has 201 characters"),
        (lambda: Vocabulary(concepts=tuple(map(str, range(20_001)))), "concepts has 20001 entries; the limit is 20000"),
        (lambda: Style(name="flat", phrase="flat", others=("",)), "another name of the style 'flat' is ''"),
        (lambda: Style(name="flat", phrase="flat", others=("a",) * 13), "has 13 other names; the limit is 12"),
        (
            lambda: Vocabulary(concepts=("owl",), synonyms=((),)),
            r"synonyms has \(\); it must be a concept and its other",
        ),
        (lambda: Vocabulary(synonyms=(("owl", "bird"),)), "synonyms has 'owl', which is no concept"),
        (
            lambda: Vocabulary(concepts=("owl", "jay"), synonyms=(("owl", "bird"), ("jay", "bird"))),
            "synonyms has a name of two concepts",
        ),
        (lambda: Style(name="flat", phrase=""), "the phrase of the style 'flat' is ''"),
        (
            lambda: Style(name="flat", phrase="flat", picture=base64.b64encode(b"RIFF....WEBP" * 2000).decode()),
            "has 24000 bytes; the limit is 16384",
        ),
    ],
)
def test_limits(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.parametrize(
    ("prompt", "known"),
    [
        ("a red panda", True),
        ("PANDAS, flat style", True),
        ("two fishes", True),
        ("bamboo", True),
        ("a zorblax", False),
        ("a zorblax, flat style", False),
        ("a zorblax and a fish", True),
        ("flat style", True),
        ("draw me a picture, please", True),
        ("판다", False),
    ],
)
def test_prompts_that_are_known(prompt: str, known: bool) -> None:
    assert VOCABULARY.knows(prompt) == known
    assert dataclasses.replace(VOCABULARY, concepts=(), words=()).knows(prompt), "nothing is known of what it knows"


def test_the_default_model_says_what_it_knows() -> None:
    vocabulary = read_vocabulary(find_model("emoji"))
    assert vocabulary is not None and vocabulary.description
    assert len(vocabulary.styles) == 16 and len(vocabulary.concepts) > 2000
    assert all(style.picture for style in vocabulary.styles)
    phrases = [style.phrase for style in vocabulary.styles]
    for example in vocabulary.examples:
        assert any(example.endswith(f", {phrase}") for phrase in phrases), example
        assert vocabulary.knows(example)
    assert {"sunflower", "owl", "flag of Ukraine"} <= {*vocabulary.concepts}
    assert vocabulary.knows("a puppy") and not vocabulary.knows("a zorblax, noto style emoji")
