"""`PromptTokenizer`: the contract of every text tokenizer, which converts prompts to T text ids, and back.

Each kind finds tokens and pads them in its own way. Limits and truncation are the same for all, and are here.
"""

import abc
import functools
import hashlib
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch

from dalle.errors import LongPromptError, PromptError
from dalle.files import atomic_write

__all__ = ["PromptTokenizer", "check_prompt", "text_fault"]


class PromptTokenizer(abc.ABC):
    """Converts prompts to text ids and back. Immutable; one file in the model directory."""

    kind: ClassVar[str]
    """Name of the kind in a model directory's config.json."""
    text_length: int
    """T: number of text ids of every prompt, after padding or truncation."""
    vocab_size: int
    """Size of the vocabulary: ids are in 0..vocab_size - 1."""

    @abc.abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Tokenize a text of any length: its ids, without those for padding, begin and end. Raises `PromptError` if it
        is no text, or no prompt that this model takes."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """The text of one prompt's ids, without padding, begin and end."""

    @property
    @abc.abstractmethod
    def max_tokens(self) -> int:
        """Largest number of tokens of a prompt that fit into T ids."""

    @abc.abstractmethod
    def pad(self, tokens: list[int]) -> list[int]:
        """Pad a prompt's tokens to T ids; of more than `max_tokens`, the first ones are taken."""

    @property
    @abc.abstractmethod
    def content(self) -> bytes:
        """Content of the file that `save` writes."""

    @classmethod
    @abc.abstractmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. Raises `CheckpointError` for a file that is missing, damaged or not ours."""

    def unknown(self, text: str) -> list[str]:
        """Parts of a text that the vocabulary lacks, in their order. None unless a kind of tokenizer says otherwise: a
        byte-level vocabulary lacks nothing."""
        return []

    def encode(self, prompt: str, *, truncate: bool = False) -> torch.Tensor:
        """The text ids of a prompt: int64 of shape (T,). Raises and warns as `tokenize` and `fit` do."""
        return self.fit(self.tokenize(prompt), truncate=truncate)

    def fit(self, tokens: list[int], *, truncate: bool = False) -> torch.Tensor:
        """The text ids of a prompt's tokens, which `tokenize` gave: int64 of shape (T,).

        truncate: keep the first `max_tokens` tokens and warn (`UserWarning`) of what was cut. Raises `LongPromptError`
        for more than `max_tokens` tokens without `truncate`.
        """
        limit = self.max_tokens
        if len(tokens) > limit:
            count = f"the prompt has {len(tokens)} tokens; the limit is {limit}"
            if not truncate:
                raise LongPromptError(count)
            cut = textwrap.shorten(self.decode(tokens[limit:]), width=80, placeholder="...")
            warnings.warn(f"{count}: the last {len(tokens) - limit} were cut: {cut!r}", UserWarning, stacklevel=3)
        return torch.tensor(self.pad(tokens), dtype=torch.long)

    def encode_batch(self, prompts: Sequence[str], *, truncate: bool = False) -> torch.Tensor:
        """The text ids of B prompts: int64 of shape (B, T). Raises and warns as `encode` does."""
        text_ids = torch.empty(len(prompts), self.text_length, dtype=torch.long)
        for ids, prompt in zip(text_ids, prompts, strict=True):
            ids.copy_(self.encode(prompt, truncate=truncate))
        return text_ids

    @property
    def null_ids(self) -> torch.Tensor:
        """The text ids of the null caption: int64 of shape (T,)."""
        return self.encode("")

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the bytes that `save` writes, in hexadecimal: the tokenizer's identity."""
        return hashlib.sha256(self.content).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the one file, by convention `tokenizer.json`, atomically."""
        atomic_write(Path(path), self.content)


def check_prompt(text: object) -> None:
    """Raise `PromptError` for what is not a `str`, or is not Unicode text (a lone surrogate)."""
    if fault := text_fault(text):
        raise PromptError(f"the prompt {fault}")


def text_fault(text: object) -> str | None:
    """The reason why a text cannot be encoded, or None."""
    if not isinstance(text, str):
        return f"is {type(text).__name__}, not str"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"is not Unicode text: lone surrogate U+{ord(text[error.start]):04X} at position {error.start}"
    return None
