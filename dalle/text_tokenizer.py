"""Captions and prompts to text ids: byte-level BPE (Sennrich et al. 2016, on bytes as in GPT-2) with a fixed row.

A row of text ids has `text_length` T places: `[PAD] ... [PAD] token ... token [EOS]`, padded on the left so that the
last text position always holds `[EOS]` and the image follows it directly. The empty caption, all `[PAD]` and one
`[EOS]`, is the null caption of classifier-free guidance.

All 256 bytes are in the vocabulary, so every prompt has ids. The two special tokens are in the vocabulary but are never
looked for in a text: no merge can form them, because the pre-tokenizer cuts at the brackets, and a prompt that says
"[EOS]" is five ordinary characters.

The one file, `tokenizer.json`, is what the `tokenizers` package reads: its normalizer, template, padding and truncation
give a stranger who loads it there the same rows. `_document` writes that format out in full, and a file that says
anything else is refused.
"""

import functools
import hashlib
import json
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import tokenizers
import torch

from dalle.config import require
from dalle.errors import CheckpointError, DataError, ParameterError, PromptError

__all__ = ["TextTokenizer"]

PAD, EOS = "[PAD]", "[EOS]"
ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
MIN_VOCAB_SIZE = 2 + len(ALPHABET)
# A pair of tokens that was seen once says nothing about the language of captions.
MIN_PAIR_COUNT = 2


class TextTokenizer:
    """Text to ids and back. Made by `train` or `load`; immutable."""

    pad_id = 0
    eos_id = 1

    def __init__(self, document: dict[str, Any]) -> None:
        """From the parsed content of a `tokenizer.json` (see `load`). Raises `CheckpointError` if it is not ours."""
        self._bytes = _checked_bytes(document)
        self.text_length: int = document["padding"]["strategy"]["Fixed"]
        self.vocab_size = len(document["model"]["vocab"])
        try:
            self._bpe = tokenizers.Tokenizer.from_str(self._bytes.decode())
        except Exception as error:  # the package raises bare Exception
            raise CheckpointError(f"the tokenizer's merges do not fit its vocabulary: {error}") from error
        # Lengths are counted here, where a prompt that is too long can be refused.
        self._bpe.no_truncation()
        self._bpe.no_padding()

    @classmethod
    def train(
        cls, captions: Iterable[str], *, vocab_size: int, text_length: int, lowercase: bool = False
    ) -> "TextTokenizer":
        """Learn merges from captions. The result depends on how often each word occurs, not on the captions' order.

        vocab_size: at most this many ids, at least 258 (two special tokens and 256 bytes). Fewer when the captions
            have no more pairs that occur twice: read the `vocab_size` of the result.
        text_length: T, places in a row with the final `[EOS]`; at least 2.
        lowercase: texts are lowercased and brought to Unicode form NFC, so that "A Red Panda" and "a red panda" are
            one prompt; `decode` then gives the normalised text. Without it, `decode` gives the text back exactly.

        Raises `ConfigError` for a size below its minimum, `DataError` for a caption that is not Unicode text.
        """
        require(vocab_size >= MIN_VOCAB_SIZE, f"vocab_size is {vocab_size}; it must be at least {MIN_VOCAB_SIZE}")
        require(text_length >= 2, f"text_length is {text_length}; it must be at least 2: one token and {EOS}")
        vocab = {token: i for i, token in enumerate([PAD, EOS, *ALPHABET])}
        bpe = tokenizers.Tokenizer.from_str(json.dumps(_document(vocab, [], text_length, lowercase)))
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=MIN_PAIR_COUNT,
            special_tokens=[PAD, EOS],
            initial_alphabet=ALPHABET,
            show_progress=False,
        )
        bpe.train_from_iterator(_checked_captions(captions), trainer)
        model = json.loads(bpe.to_str())["model"]
        return cls(_document(model["vocab"], model["merges"], text_length, lowercase))

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text of any length, without padding or `[EOS]`; `[]` for the empty text.

        Raises `PromptError` for what is not a `str`, or is not Unicode text (a lone surrogate).
        """
        if fault := _fault(text):
            raise PromptError(f"the prompt {fault}")
        ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """The text of one row of ids, `[PAD]` and `[EOS]` dropped: the inverse of `tokenize`.

        Ids that cut a character in two give U+FFFD there. Raises `ParameterError` for an id outside 0..vocab_size - 1.
        """
        ids = ids.tolist() if isinstance(ids, torch.Tensor) else ids
        last = self.vocab_size - 1
        for position, token in enumerate(ids):
            if not isinstance(token, int) or not 0 <= token <= last:
                raise ParameterError(f"the text id at position {position} is {token!r}; it must be one of 0..{last}")
        text: str = self._bpe.decode([token for token in ids if token not in (self.pad_id, self.eos_id)])
        return text

    def encode(self, prompt: str, *, truncate: bool = False) -> torch.Tensor:
        """One row: int64 of shape (T,), `[PAD] ... [PAD] token ... token [EOS]`. The empty prompt is the null caption.

        truncate: keep the first T - 1 tokens of a longer prompt and warn (`UserWarning`) of what was cut.
        Raises `PromptError` for a prompt of more than T - 1 tokens without `truncate`, and as `tokenize` does.
        """
        ids, limit = self.tokenize(prompt), self.text_length - 1
        if len(ids) > limit:
            count = f"the prompt has {len(ids)} tokens; the limit is {limit}"
            if not truncate:
                raise PromptError(count)
            cut = textwrap.shorten(self.decode(ids[limit:]), width=80, placeholder="...")
            warnings.warn(f"{count}: the last {len(ids) - limit} were cut: {cut!r}", UserWarning, stacklevel=2)
            ids = ids[:limit]
        return torch.tensor([*[self.pad_id] * (limit - len(ids)), *ids, self.eos_id], dtype=torch.long)

    def encode_batch(self, prompts: Sequence[str], *, truncate: bool = False) -> torch.Tensor:
        """Rows of `encode`: int64 of shape (B, T), (0, T) for no prompts. Raises and warns as `encode` does."""
        rows = torch.empty(len(prompts), self.text_length, dtype=torch.long)
        for row, prompt in zip(rows, prompts, strict=True):
            row.copy_(self.encode(prompt, truncate=truncate))
        return rows

    @property
    def null_ids(self) -> torch.Tensor:
        """The row of the null caption: int64 of shape (T,)."""
        return self.encode("")

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the bytes that `save` writes, in hexadecimal: the tokenizer's identity."""
        return hashlib.sha256(self._bytes).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the one file, by convention `tokenizer.json`."""
        Path(path).write_bytes(self._bytes)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. Raises `CheckpointError` for a file that is missing, damaged or not ours."""
        try:
            return cls(json.loads(Path(path).read_bytes()))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is not a tokenizer.json written by this library: {error}") from error


def _document(vocab: dict[str, int], merges: list[Any], text_length: int, lowercase: bool) -> dict[str, Any]:
    """The whole of `tokenizer.json`, in the format of the `tokenizers` package.

    One space goes before every text and is taken off again by the decoder, so that "panda" is the same token first in a
    caption as later in it.
    """
    fold: list[dict[str, Any]] = [{"type": "Lowercase"}, {"type": "NFC"}] if lowercase else []
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    end = {"SpecialToken": {"id": EOS, "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": text_length, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": text_length},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": TextTokenizer.pad_id,
            "pad_type_id": 0,
            "pad_token": PAD,
        },
        # Tokens named here would be looked for in the text of prompts.
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [*fold, {"type": "Prepend", "prepend": " "}]},
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, end],
            "pair": [first, second, end],
            "special_tokens": {EOS: {"id": EOS, "ids": [TextTokenizer.eos_id], "tokens": [EOS]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [byte_level, {"type": "Strip", "content": " ", "start": 1, "stop": 0}],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _checked_bytes(document: Any) -> bytes:
    """The canonical bytes of a document that `_document` could have written; `CheckpointError` for any other."""
    try:
        vocab, merges = document["model"]["vocab"], document["model"]["merges"]
        text_length, tokens = document["padding"]["strategy"]["Fixed"], list(vocab)
    except (KeyError, TypeError) as error:
        raise CheckpointError("expected a byte-level BPE model with padding to a fixed length") from error
    if type(text_length) is not int or text_length < 2:
        raise CheckpointError(f"the fixed length of its padding is {text_length!r}; expected an integer from 2 up")
    if (
        not isinstance(vocab, dict)
        or tokens[:MIN_VOCAB_SIZE] != [PAD, EOS, *ALPHABET]
        or list(vocab.values()) != list(range(len(tokens)))
    ):
        raise CheckpointError(f"expected a vocabulary of {PAD}, {EOS}, the 256 bytes and merges, in the order of ids")
    expected = _document(vocab, merges, text_length, lowercase=True)
    if document.get("normalizer") != expected["normalizer"]:
        expected = _document(vocab, merges, text_length, lowercase=False)
    if different := sorted(key for key in expected.keys() | document.keys() if expected.get(key) != document.get(key)):
        raise CheckpointError(f"its settings are not this library's in: {', '.join(different)}")
    return json.dumps(expected, ensure_ascii=False, separators=(",", ":")).encode()


def _checked_captions(captions: Iterable[str]) -> Iterator[str]:
    for index, caption in enumerate(captions):
        if fault := _fault(caption):
            raise DataError(f"caption {index} {fault}")
        yield caption


def _fault(text: object) -> str | None:
    """Why a text cannot be encoded, or None."""
    if not isinstance(text, str):
        return f"is {type(text).__name__}, not str"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"is not Unicode text: lone surrogate U+{ord(text[error.start]):04X} at position {error.start}"
    return None
