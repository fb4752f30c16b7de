"""Captions that are too long for a row: told when the text tokenizer is trained, by the pair's id."""

import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dalle.text.bpe import TextTokenizer
from tests.support.captions import PANDA
from training.bpe import train_text_tokenizer
from training.captions.fitting import fitting_captions, long_captions_report
from training.pairs.shard_writer import ShardWriter, encode_webp
from training.pairs.shards import PairShards, find_shards

LONG = " ".join(f"xq{number}zv" for number in range(40))


def _shards(folder: Path, pairs: list[dict[str, Any]]) -> Path:
    with ShardWriter(folder, "train") as writer:
        for number, metadata in enumerate(pairs):
            writer.write(str(number), encode_webp(Image.new("RGB", (8, 8))), metadata)
    return folder


def test_captions_that_are_too_long_are_told_by_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [{"id": f"{number}.png", "captions": ["a red square", "a square"]} for number in range(3)]
    pairs += [{"id": "some.png", "captions": [LONG, "a square"]}, {"id": "none\n.png", "captions": [LONG, LONG + " a"]}]
    folder = _shards(tmp_path / "shards", pairs)
    tokenizer = train_text_tokenizer((str(folder),), out=tmp_path / "t.json", vocab_size=258, text_length=16)
    _, left_out, truncated = capsys.readouterr().out.splitlines()
    assert left_out.startswith("1 of 10 captions are longer than 15 tokens; they are left out")
    needed = len(tokenizer.tokenize(LONG)) + 1
    assert truncated.startswith(
        "pairs that have only captions of more than 15 tokens: none .png; of each, the first 15"
    )
    assert truncated.endswith(f"all fit with `python -m training.bpe --text-length {needed}`")
    train_text_tokenizer((str(folder),), out=tmp_path / "fitting.json", vocab_size=258, text_length=needed + 2)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_name_that_fits_is_enough(tmp_path: Path) -> None:
    """A pair whose own captions are too long still has drawn captions that fit."""
    tokenizer = TextTokenizer.train(["red panda"] * 9, vocab_size=258, text_length=14)
    panda = {**PANDA, "captions": [LONG]}
    pairs = PairShards(find_shards([_shards(tmp_path, [panda])]))
    assert "they are left out, as their pairs have captions that fit" in long_captions_report(pairs, tokenizer)
    found = fitting_captions(panda, tokenizer, 8, random.Random(0))
    assert len(found) == 8 and all(len(tokenizer.tokenize(caption)) < 14 for caption in found)


def test_the_only_caption_that_fits_is_found_among_many() -> None:
    tokenizer = TextTokenizer.train(["a square"] * 9, vocab_size=258, text_length=16)
    metadata = {"captions": [*[LONG] * 3000, "a square"]}
    assert fitting_captions(metadata, tokenizer, 3, random.Random(0)) == ["a square"] * 3
    assert fitting_captions({"captions": [LONG]}, tokenizer, 3, random.Random(0)) == []
