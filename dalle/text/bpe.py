"""`TextTokenizer`: byte-level BPE (Sennrich et al. 2016, on bytes as in GPT-2), to T text ids per prompt.

The text ids (T,) of a prompt, with T = `text_length`, are `[PAD] ... [PAD] token ... token [EOS]`, padded on the left
so that the last text position always holds `[EOS]` and the image follows it directly. The empty caption, all `[PAD]`
and one `[EOS]`, is the null caption of classifier-free guidance.

All 256 bytes are in the vocabulary, so every prompt has ids. The two special tokens have ids too, but no text is
tokenized to them: no merge can form them, because the pre-tokenizer cuts at the brackets, and a prompt with "[EOS]" in
it has five ordinary characters there.

`tokenizer.json` is a file of the `tokenizers` package, which gives the same text ids when it loads the file:
normalizer, template, padding and truncation are in it. `_document` defines the whole format, and any other file is
rejected.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import tokenizers
import torch

from dalle.config import require
from dalle.errors import CheckpointError, DataError, ParameterError
from dalle.text.tokenizer import PromptTokenizer, check_prompt, text_fault

__all__ = ["TextTokenizer"]

PAD, EOS = "[PAD]", "[EOS]"
ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
MIN_VOCAB_SIZE = 2 + len(ALPHABET)
# A pair of tokens that was seen once says nothing about the language of captions.
MIN_PAIR_COUNT = 2


class TextTokenizer(PromptTokenizer):
    """Converts text to ids and back. Made by `train` or `load`; immutable. The empty prompt is the null caption."""

    kind = "bpe"

    pad_id = 0
    eos_id = 1

    def __init__(self, document: dict[str, Any]) -> None:
        """document: parsed content of a `tokenizer.json`. Raises `CheckpointError` if this library did not write it."""
        self._bytes = _checked_bytes(document)
        self.text_length: int = document["padding"]["strategy"]["Fixed"]
        self.vocab_size = len(document["model"]["vocab"])
        try:
            self._bpe = tokenizers.Tokenizer.from_str(self._bytes.decode())
        except Exception as error:  # the package raises bare Exception
            raise CheckpointError(f"the tokenizer's merges do not fit its vocabulary: {error}") from error
        # Text ids are padded by this class, which can reject a prompt that is too long.
        self._bpe.no_truncation()
        self._bpe.no_padding()

    @classmethod
    def train(
        cls, captions: Iterable[str], *, vocab_size: int, text_length: int, lowercase: bool = False
    ) -> "TextTokenizer":
        """Learn merges from captions. The result depends on how often each word occurs, not on the captions' order.

        vocab_size: largest number of ids, at least 258 (two special tokens and 256 bytes). The result has fewer if the
            captions have too few pairs that occur twice; see its `vocab_size`.
        text_length: T, number of text ids with the final `[EOS]`; at least 2.
        lowercase: texts are lowercased and normalised to Unicode form NFC, so that "A Red Panda" and "a red panda" are
            the same prompt; `decode` then returns the normalised text. Without it, `decode` returns the exact text.

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

        Raises `PromptError` if the text is not a `str`, or not Unicode text (a lone surrogate).
        """
        check_prompt(text)
        ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """The text of text ids (T,), without `[PAD]` and `[EOS]`: the inverse of `tokenize`.

        A character of which only some bytes are there becomes U+FFFD. Raises `ParameterError` for an id outside
        0..vocab_size - 1.
        """
        ids = ids.tolist() if isinstance(ids, torch.Tensor) else ids
        last = self.vocab_size - 1
        for position, token in enumerate(ids):
            if not isinstance(token, int) or not 0 <= token <= last:
                raise ParameterError(f"the text id at position {position} is {token!r}; it must be one of 0..{last}")
        text: str = self._bpe.decode([token for token in ids if token not in (self.pad_id, self.eos_id)])
        return text

    @property
    def max_tokens(self) -> int:
        return self.text_length - 1

    def pad(self, tokens: list[int]) -> list[int]:
        """Lay out the first T - 1 tokens as text ids (T,): `[PAD] ... [PAD] token ... token [EOS]`."""
        tokens = tokens[: self.max_tokens]
        return [*[self.pad_id] * (self.max_tokens - len(tokens)), *tokens, self.eos_id]

    @property
    def content(self) -> bytes:
        return self._bytes

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. Raises `CheckpointError` for a file that is missing, damaged or not ours."""
        try:
            return cls(json.loads(Path(path).read_bytes()))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is not a tokenizer.json written by this library: {error}") from error


def _document(vocab: dict[str, int], merges: list[Any], text_length: int, lowercase: bool) -> dict[str, Any]:
    """The content of `tokenizer.json`, in the format of the `tokenizers` package.

    A space is put before every text, and removed by the decoder, so that "panda" is the same token at the start of a
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
        # Tokens listed here would be recognised in the text of prompts.
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
        if fault := text_fault(caption):
            raise DataError(f"caption {index} {fault}")
        yield caption
