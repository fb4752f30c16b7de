import hashlib
import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from dalle.errors import CheckpointError, ConfigError, DataError, ParameterError, PromptError
from dalle.text.bpe import TextTokenizer

CAPTIONS = [
    *["a red panda eating bamboo", "A red panda sleeping", "the blue bird of the red house", "[EOS] [PAD] [EOS]"],
    *["판다가 잔다", "판다가 잔다 빨간 집", "👩‍👩‍👧‍👦 a family 👍🏽", "une fenêtre ouverte", "une fenêtre"],
] * 3
T = 24

ONE = TextTokenizer.train(CAPTIONS, vocab_size=330, text_length=T)
LOWER = TextTokenizer.train(CAPTIONS, vocab_size=330, text_length=T, lowercase=True)

TEXTS = {
    "empty": "",
    "one character": "x",
    "one space": " ",
    "spaces": "  two  and three   \t\n ",
    "upper case": "A Red PANDA",
    "emoji": "🐼",
    "ZWJ sequence": "👩‍👩‍👧‍👦 and 🏳️‍🌈",
    "skin tones": "👍🏻👍🏽👍🏿",
    "Korean": "빨간 판다가 대나무를 먹는다",
    "Korean in NFD": unicodedata.normalize("NFD", "빨간 판다"),
    "combining mark first": "\u0301a",
    "control characters": "\0\x01\x7f\ufeff\u202e",
    "special tokens as text": "[EOS] [PAD][EOS]",
    "10,000 characters": "판다 a red panda 🐼 " * 667,
    "10,000 characters, one word": "x" * 10_000,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_decode_inverts_tokenize(text: str) -> None:
    ids = ONE.tokenize(text)
    assert ONE.decode(ids) == text
    assert all(2 <= token < ONE.vocab_size for token in ids), "no special token comes out of a text"


@given(st.text())
def test_decode_inverts_tokenize_on_any_unicode(text: str) -> None:
    assert ONE.decode(ONE.tokenize(text)) == text


@given(st.text())
def test_lowercase_round_trip_gives_the_normalised_text(text: str) -> None:
    normalised = LOWER.decode(LOWER.tokenize(text))
    assert LOWER.decode(LOWER.tokenize(normalised)) == normalised
    assert unicodedata.is_normalized("NFC", normalised)


def test_lowercase_makes_one_prompt_of_different_spellings() -> None:
    assert LOWER.tokenize("A Red FENÊTRE") == LOWER.tokenize(unicodedata.normalize("NFD", "a red fenêtre"))
    assert LOWER.decode(LOWER.tokenize("A Red FENÊTRE")) == "a red fenêtre"
    assert ONE.tokenize("A Red") != ONE.tokenize("a red")


def test_a_word_is_the_same_tokens_first_and_later() -> None:
    assert ONE.tokenize("red panda") == ONE.tokenize("a red panda")[1:]
    assert len(ONE.tokenize("panda")) == 1


def test_row_is_padded_on_the_left_and_ends_with_eos() -> None:
    row = ONE.encode("a red panda")
    assert row.dtype == torch.int64
    assert row.tolist() == [0] * (T - 4) + ONE.tokenize("a red panda") + [1]
    assert ONE.decode(row) == "a red panda"
    assert ONE.null_ids.tolist() == ONE.encode("").tolist() == [0] * (T - 1) + [1]


def test_batch_is_the_rows() -> None:
    prompts = ["a red panda", "", "판다"]
    batch = ONE.encode_batch(prompts)
    assert torch.equal(batch, torch.stack([ONE.encode(prompt) for prompt in prompts]))
    assert ONE.encode_batch([]).shape == (0, T)


def test_longest_prompt_that_fits() -> None:
    row = ONE.encode("panda " * (T - 2) + "panda")
    assert row.tolist() == ONE.tokenize("panda") * (T - 1) + [1]


def test_too_long_prompt_is_refused_with_its_length_and_the_limit() -> None:
    with pytest.raises(PromptError, match=f"has {T} tokens; the limit is {T - 1}"):
        ONE.encode("panda " * (T - 1) + "panda")
    with pytest.raises(PromptError, match=f"the limit is {T - 1}"):
        ONE.encode_batch(["fits", TEXTS["10,000 characters"]])


def test_truncation_keeps_the_first_tokens_and_says_what_was_cut() -> None:
    prompt = "panda " * (T - 1) + "bird"
    with pytest.warns(UserWarning, match="were cut: 'bird'"):
        row = ONE.encode(prompt, truncate=True)
    assert row.tolist() == ONE.tokenize("panda") * (T - 1) + [1]


@pytest.mark.parametrize("prompt", [None, b"panda", 3, ["panda"]])
def test_prompt_of_another_type_is_refused(prompt: Any) -> None:
    with pytest.raises(PromptError, match=f"is {type(prompt).__name__}, not str"):
        ONE.encode(prompt)


def test_lone_surrogate_is_refused_with_its_position() -> None:
    with pytest.raises(PromptError, match=r"surrogate U\+DC80 at position 3"):
        ONE.tokenize("red\udc80")


@pytest.mark.parametrize("token", [-1, ONE.vocab_size, 10**30, 2.0, None])
def test_decode_refuses_ids_outside_the_vocabulary(token: Any) -> None:
    with pytest.raises(ParameterError, match=f"at position 1 is {token!r}".replace("+", r"\+")):
        ONE.decode([5, token])


def test_vocabulary_size() -> None:
    assert ONE.vocab_size == 330
    bytes_only = TextTokenizer.train([], vocab_size=258, text_length=2)
    assert bytes_only.vocab_size == 258
    assert bytes_only.decode(bytes_only.tokenize("판다 🐼")) == "판다 🐼"
    assert TextTokenizer.train(["panda"], vocab_size=1000, text_length=T).vocab_size == 258, "no pair occurs twice"


def test_training_depends_on_the_counts_only() -> None:
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    assert TextTokenizer.train(iter(shuffled), vocab_size=330, text_length=T).digest == ONE.digest
    assert len({ONE.digest, LOWER.digest, TextTokenizer.train(CAPTIONS, vocab_size=330, text_length=T + 1).digest}) == 3


def test_training_refuses_wrong_sizes_and_captions() -> None:
    with pytest.raises(ConfigError, match="vocab_size is 257; it must be at least 258"):
        TextTokenizer.train(CAPTIONS, vocab_size=257, text_length=T)
    with pytest.raises(ConfigError, match="text_length is 1; it must be at least 2"):
        TextTokenizer.train(CAPTIONS, vocab_size=300, text_length=1)
    with pytest.raises(DataError, match="caption 1 is NoneType"):
        TextTokenizer.train(["panda", None], vocab_size=300, text_length=T)  # type: ignore[list-item]


@pytest.mark.parametrize("tokenizer", [ONE, LOWER], ids=["exact", "lowercase"])
def test_saved_file_gives_the_same_ids_here_and_in_the_tokenizers_package(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == tokenizer.digest
    loaded, foreign = TextTokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    assert (loaded.digest, loaded.vocab_size, loaded.text_length) == (tokenizer.digest, tokenizer.vocab_size, T)
    assert loaded.vocab_size == foreign.get_vocab_size()
    for prompt in ["", "A red panda", " spaces  in  it ", "판다 👍🏽", "[EOS] [PAD]"]:
        assert loaded.encode(prompt).tolist() == tokenizer.encode(prompt).tolist() == foreign.encode(prompt).ids
    with pytest.warns(UserWarning, match="were cut"):
        assert loaded.encode("panda " * 99, truncate=True).tolist() == foreign.encode("panda " * 99).ids


def test_digest_is_of_the_content_not_of_its_layout(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    ONE.save(path)
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=2))
    assert TextTokenizer.load(path).digest == ONE.digest


def _set(*keys: str | int, value: Any) -> Callable[[Any], None]:
    def edit(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (_set("added_tokens", value=[{"id": 1, "content": "[EOS]", "special": True}]), "added_tokens"),
        (_set("padding", "direction", value="Right"), "padding"),
        (_set("padding", "strategy", value="BatchLongest"), "fixed length"),
        (_set("padding", "strategy", "Fixed", value=1), "from 2 up"),
        (_set("truncation", value=None), "truncation"),
        (_set("normalizer", value=None), "normalizer"),
        (_set("normalizer", value=[]), "normalizer"),
        (_set("post_processor", value=None), "post_processor"),
        (_set("model", "byte_fallback", value=True), "model"),
        (_set("model", "vocab", value={"[PAD]": 0, "[EOS]": 1}), "256 bytes"),
        (_set("model", "vocab", value=["[PAD]", "[EOS]"]), "256 bytes"),
        (_set("model", "vocab", "[EOS]", value=2), "in the order of ids"),
        (_set("model", "merges", value=[["no", "such"]]), "do not fit its vocabulary"),
        (_set("model", "merges", value=3), "do not fit its vocabulary"),
        (_set("surprise", value=1), "surprise"),
    ],
)
def test_foreign_file_is_refused(edit: Callable[[Any], None], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    ONE.save(path)
    document = json.loads(path.read_bytes())
    edit(document)
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=reason) as caught:
        TextTokenizer.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"3", b"\xff\xfe", b'{"model": ', b"[" * 100_000])
def test_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer\.json written by this library"):
        TextTokenizer.load(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        TextTokenizer.load(tmp_path / "tokenizer.json")
