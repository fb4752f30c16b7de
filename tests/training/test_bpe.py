"""The program that trains the text tokenizer: what it replaces."""

from pathlib import Path

import pytest

from dalle.files import CannotWriteError
from dalle.text.bpe import TextTokenizer
from tests.support.pairs import write_pairs
from training.bpe import train_text_tokenizer


def test_a_text_tokenizer_is_replaced_when_asked_and_nothing_else(tmp_path: Path) -> None:
    shards = tuple(str(path) for path in write_pairs(tmp_path / "pairs", "train", 4))
    out = tmp_path / "tokenizer.json"
    first = train_text_tokenizer(shards, out=out, vocab_size=260)
    with pytest.raises(CannotWriteError, match=r"tokenizer.json holds a text tokenizer already; --overwrite"):
        train_text_tokenizer(shards, out=out, vocab_size=262)
    assert TextTokenizer.load(out).digest == first.digest
    second = train_text_tokenizer(shards, out=out, vocab_size=262, overwrite=True)
    assert TextTokenizer.load(out).digest == second.digest != first.digest
    out.write_text('{"version": "1.0", "model": {"type": "BPE"}}')
    with pytest.raises(CannotWriteError, match=r"it is not a tokenizer.json written by this library"):
        train_text_tokenizer(shards, out=out, vocab_size=262, overwrite=True)
    assert out.read_text() == '{"version": "1.0", "model": {"type": "BPE"}}'
