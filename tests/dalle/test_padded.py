"""Text tokenizers of other projects: rows, round trips, damage. tests/interop compares their ids."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dalle.errors import CheckpointError, ParameterError, PromptError
from dalle.text.classes import ClassTokenizer
from dalle.text.kinds import load_text_tokenizer
from dalle.text.padded import PaddedTokenizer, PaddedTokenizerConfig
from dalle.text.yttm import YouTokenToMe

# characters ▁ a b c; ab, bc, and abc in two ways, with an id for each; then ▁abc of the first kind
MODEL = """4 5
9601 4
97 5
98 6
99 7
5 6 8
6 7 9
8 7 10
5 9 11
4 10 12
1 0 2 3
"""


def padded(**changes: Any) -> PaddedTokenizer:
    values = {"model": MODEL, "format": "yttm", "text_length": 6, "pad_id": 0, "begin_id": 2, "end_id": 3}
    return PaddedTokenizer(PaddedTokenizerConfig.from_dict(values | changes))


def test_merges_that_spell_the_same_token_have_ids_of_their_own() -> None:
    model = YouTokenToMe(MODEL)
    assert model.vocab_size == 13
    assert model.encode("abc") == [12]
    assert model.encode("babc") == [4, 6, 10]
    assert [model.decode([token]) for token in (10, 11, 12, 9)] == ["abc", "abc", "abc", "bc"]


def test_words_and_what_is_unknown() -> None:
    model = YouTokenToMe(MODEL)
    assert model.encode(" a\t\nb \u2581c\r") == [4, 5, 4, 6, 4, 7]
    assert model.encode("axyzb") == [4, 5, 1, 6], "a stretch of unknown characters is one token"
    assert model.encode("a\xa0b") == [4, 5, 1, 6], "only what C calls a space is one"
    assert model.encode("") == model.encode("  ") == []
    assert model.decode(model.encode("abc ab")) == "abc ab"


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "no numbers",
        MODEL.replace("4 5\n", "4 6\n"),
        MODEL.replace("6 7 9\n", "6 7 19\n"),
        MODEL.replace("8 7 10\n", "8 77 10\n"),
        MODEL.replace("9601", "9602"),
        MODEL.replace("97 5", "-1 5"),
        MODEL.replace("1 0 2 3", "1 0 2"),
        "\n".join(["1 60", "9601 4", *(f"{i} {i} {i + 1}" for i in range(4, 64)), "1 0 2 3"]),
        MODEL[:30],
    ],
)
def test_a_damaged_model_of_youtokentome_is_refused(damaged: str) -> None:
    with pytest.raises(CheckpointError, match="not a model file of YouTokenToMe"):
        YouTokenToMe(damaged)


def test_rows_begin_end_and_are_padded_on_the_right() -> None:
    text = padded()
    assert text.encode("abc a").tolist() == [2, 12, 4, 5, 3, 0]
    assert text.null_ids.tolist() == [2, 3, 0, 0, 0, 0]
    assert text.decode(text.encode("abc a")) == "abc a"
    assert text.encode_batch(["a", "b"]).tolist() == [[2, 4, 5, 3, 0, 0], [2, 4, 6, 3, 0, 0]]
    assert padded(clean="lower").encode(" ABC ").tolist() == [2, 12, 3, 0, 0, 0]


def test_a_prompt_that_is_too_long_is_refused_or_cut() -> None:
    for keep, row in ((False, [2, 4, 5, 4, 6, 4]), (True, [2, 4, 5, 4, 6, 3])):
        text = padded(end_when_cut=keep)
        assert text.max_tokens == 4
        with pytest.raises(PromptError, match="the prompt has 6 tokens; the limit is 4"):
            text.encode("a b c")
        with pytest.warns(UserWarning, match="the last 2 were cut: 'c'"):
            assert text.encode("a b c", truncate=True).tolist() == row
    with pytest.raises(PromptError, match="lone surrogate"):
        padded().encode("\ud800")


@pytest.mark.parametrize("tokenizer", [padded(), ClassTokenizer(7)], ids=["padded", "classes"])
def test_what_is_saved_is_loaded(tokenizer: PaddedTokenizer | ClassTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_text_tokenizer(tokenizer.kind, tmp_path / "tokenizer.json")
    assert (again.digest, again.vocab_size, again.text_length) == (
        tokenizer.digest,
        tokenizer.vocab_size,
        tokenizer.text_length,
    )
    assert torch.equal(again.null_ids, tokenizer.null_ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pad_id": 13}, r"padding, begin or end is 13; ids are in 0\.\.12"),
        ({"format": "tokenizers"}, "not a tokenizer.json of the tokenizers package"),
        ({"text_length": 0}, "text_length is 0"),
        ({"other": 1}, "no key 'other'"),
    ],
)
def test_damaged_files_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(padded().config.to_dict() | changes))
    with pytest.raises(CheckpointError, match=message):
        load_text_tokenizer("padded", path)


def test_unknown_kinds_and_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="of kind 'other'; this release knows bpe, padded, classes"):
        load_text_tokenizer("other", tmp_path / "tokenizer.json")
    with pytest.raises(ParameterError, match=r"position 1 is 13; it must be one of 0\.\.12"):
        padded().decode([1, 13])
    with pytest.raises(ParameterError, match=r"the class is 8; it must be one of 0\.\.7"):
        ClassTokenizer(7).decode([8])
