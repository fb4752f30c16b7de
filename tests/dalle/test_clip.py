"""CLIP's special tokens within other text, compared with its SimpleTokenizer, written here with the package `regex`."""

import html
import itertools
import random
from pathlib import Path

import ftfy
import pytest
import regex

from dalle.interop.family import Source
from dalle.interop.tokenizer_files import read_tokenizer
from dalle.text.padded import PaddedTokenizer
from tests.support import golden

WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
ATOMS = [
    *SPECIAL,
    *("<|EndOfText|>", "<|endoftext|", "endoftext|>", "<|\u017ftartoftext|>", "&lt;|endoftext|>"),
    *(".", "<", "|", ">", " ", "\n", "'", "'s", "'LL", "'\u017f", "!?", "_", "、", "\u200d", "\u0301"),
    *("a", "Cat", "é", "한", "K", "İ", "ß", "7", "½", "²", "Ⅷ", "👩"),
]


@pytest.fixture(scope="module")
def merges() -> Path:
    return golden.found("DALLE-pytorch/tokenizers/bpe_simple_tiny.txt")


@pytest.fixture(scope="module")
def tokenizer(merges: Path) -> PaddedTokenizer:
    found = read_tokenizer(Source(merges), merges, 256)
    assert found is not None
    return found


class SimpleTokenizer:
    """The ids of CLIP's tokenizer, by its own loop over the merges."""

    def __init__(self, path: Path) -> None:
        lines = [tuple(line.split()) for line in path.read_text(encoding="utf-8").split("\n")[1:]]
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        self.letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
        characters = list(self.letters.values())
        tokens = [*characters, *(one + "</w>" for one in characters), *map("".join, lines), *SPECIAL]
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {pair: i for i, pair in enumerate(lines)}

    def encode(self, text: str) -> list[int]:
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        text = regex.sub(r"\s+", " ", text).strip().lower()
        words = ["".join(self.letters[byte] for byte in word.encode()) for word in WORDS.findall(text)]
        return [self.ids[token] for word in words for token in ([word] if word in SPECIAL else self.merged(word))]

    def merged(self, word: str) -> list[str]:
        parts = [*word[:-1], word[-1] + "</w>"]
        while known := [pair for pair in itertools.pairwise(parts) if pair in self.ranks]:
            best, joined = min(known, key=self.ranks.__getitem__), []
            while parts:
                size = 2 if tuple(parts[:2]) == best else 1
                joined.append("".join(parts[:size]))
                parts = parts[size:]
            parts = joined
        return parts


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (".<|endoftext|>", [".<|", "endoftext", "|>"]),
        ("a<|endoftext|>.", ["a", "<|endoftext|>", "."]),
        ("7<|endoftext|>", ["7", "<|endoftext|>"]),
        (". <|EndOfText|>", [".", "<|endoftext|>"]),
        ("<|startoftext|><|endoftext|>", ["<|startoftext|>", "<|endoftext|>"]),
        (".<|endoftext|><|endoftext|>", [".<|", "endoftext", "|><|", "endoftext", "|>"]),
        ("cat's<|endoftext|>", ["cat", "'s", "<|endoftext|>"]),
    ],
)
def test_a_special_token_is_one_where_a_match_begins(
    prompt: str, words: list[str], tokenizer: PaddedTokenizer, merges: Path
) -> None:
    theirs = SimpleTokenizer(merges)
    expected = [token for word in words for token in ([word] if word in SPECIAL else theirs.merged(word))]
    assert tokenizer.tokenize(prompt) == [theirs.ids[token] for token in expected]


def test_prompts_with_special_tokens_within_other_text(tokenizer: PaddedTokenizer, merges: Path) -> None:
    theirs, chance = SimpleTokenizer(merges), random.Random(0)
    num_special = 0
    for _ in range(5000):
        prompt = "".join(chance.choices(ATOMS, k=chance.randint(1, 9)))
        expected = theirs.encode(prompt)
        num_special += any(theirs.ids[token] in expected for token in SPECIAL)
        if prompt.strip():
            assert tokenizer.tokenize(prompt) == expected, ascii(prompt)
    assert num_special > 500


def test_the_vocabulary_that_clip_published() -> None:
    """Runs where `DALLE_GOLDEN` has the file, which is not in this repository."""
    path = golden.find("DALLE-pytorch/tokenizers/bpe_simple_vocab_16e6.txt")
    if path is None:
        pytest.skip("there is no bpe_simple_vocab_16e6.txt in DALLE_GOLDEN")
    tokenizer = read_tokenizer(Source(path), path, 256)
    assert tokenizer is not None and tokenizer.vocab_size == 49408
    assert tokenizer.tokenize(".<|endoftext|>") == [13, 27, 347, 40786, 4160, 91, 285]
    assert tokenizer.tokenize("a <|endoftext|>") == [320, 49407]
