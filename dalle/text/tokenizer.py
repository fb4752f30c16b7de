"""What every text tokenizer is to a model: prompts to rows of T ids, and back. Each kind finds tokens its own way and
sets them into the row its own way; counting, refusing and cutting are the same for all, and are here.
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

from dalle.errors import PromptError

__all__ = ["PromptTokenizer", "check_prompt", "text_fault"]


class PromptTokenizer(abc.ABC):
    """Prompts to text ids and back. Immutable; one file in the model directory."""

    kind: ClassVar[str]
    """As a model directory's configuration calls it."""
    text_length: int
    """T: places in a row."""
    vocab_size: int
    """Ids are in 0..vocab_size - 1."""

    @abc.abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """The ids of a text of any length, without what the row adds. Raises `PromptError` for what is no text, or no
        prompt for this model."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """The text of one row of ids, without what the row added."""

    @property
    @abc.abstractmethod
    def max_tokens(self) -> int:
        """How many tokens of a prompt have room in a row."""

    @abc.abstractmethod
    def row(self, tokens: list[int]) -> list[int]:
        """The T ids of the row for a prompt's tokens; of too many, for the first ones."""

    @property
    @abc.abstractmethod
    def content(self) -> bytes:
        """What is saved."""

    @classmethod
    @abc.abstractmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. Raises `CheckpointError` for a file that is missing, damaged or not ours."""

    def encode(self, prompt: str, *, truncate: bool = False) -> torch.Tensor:
        """The row of a prompt: int64 of shape (T,). Raises and warns as `tokenize` and `fit` do."""
        return self.fit(self.tokenize(prompt), truncate=truncate)

    def fit(self, tokens: list[int], *, truncate: bool = False) -> torch.Tensor:
        """The row of a prompt's tokens, from `tokenize`: int64 of shape (T,).

        truncate: keep the first `max_tokens` tokens and warn (`UserWarning`) of what was cut. Raises `PromptError` for
        more than `max_tokens` tokens without `truncate`.
        """
        limit = self.max_tokens
        if len(tokens) > limit:
            count = f"the prompt has {len(tokens)} tokens; the limit is {limit}"
            if not truncate:
                raise PromptError(count)
            cut = textwrap.shorten(self.decode(tokens[limit:]), width=80, placeholder="...")
            warnings.warn(f"{count}: the last {len(tokens) - limit} were cut: {cut!r}", UserWarning, stacklevel=3)
        return torch.tensor(self.row(tokens), dtype=torch.long)

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
        return hashlib.sha256(self.content).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the one file, by convention `tokenizer.json`."""
        Path(path).write_bytes(self.content)


def check_prompt(text: object) -> None:
    """Raise `PromptError` for what is not a `str`, or is not Unicode text (a lone surrogate)."""
    if fault := text_fault(text):
        raise PromptError(f"the prompt {fault}")


def text_fault(text: object) -> str | None:
    """Why a text cannot be encoded, or None."""
    if not isinstance(text, str):
        return f"is {type(text).__name__}, not str"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"is not Unicode text: lone surrogate U+{ord(text[error.start]):04X} at position {error.start}"
    return None
