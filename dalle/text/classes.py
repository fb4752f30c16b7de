"""`ClassTokenizer`: prompts of class-conditional models (LlamaGen's c2i). A prompt is the number of a class."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch

from dalle.config import Config
from dalle.errors import CheckpointError, ParameterError, PromptError
from dalle.text.padded import read_config
from dalle.text.tokenizer import PromptTokenizer, check_prompt

__all__ = ["ClassTokenizer"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassTokenizerConfig(Config):
    """Configuration of a tokenizer of class labels."""

    num_classes: int


class ClassTokenizer(PromptTokenizer):
    """Converts the decimal number of a class, as "207", to that one text id, and back. The null caption is the id
    after the last class."""

    kind = "classes"
    text_length = 1

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise CheckpointError(f"a tokenizer of {num_classes} classes; there must be at least 1")
        self.num_classes = num_classes
        self.vocab_size = num_classes + 1

    def tokenize(self, text: str) -> list[int]:
        check_prompt(text)
        if re.fullmatch("[0-9]{1,9}", text.strip()) is None or int(text) >= self.num_classes:
            raise PromptError(
                f"the prompt is {text[:80]!r}; this model draws classes: say a number in 0..{self.num_classes - 1}"
            )
        return [int(text)]

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """The number of the class; "" for the null caption. Raises `ParameterError` for an id that is neither."""
        (label,) = ids.tolist() if isinstance(ids, torch.Tensor) else ids
        if not 0 <= label <= self.num_classes:
            raise ParameterError(f"the class is {label}; it must be one of 0..{self.num_classes}")
        return str(label) if label < self.num_classes else ""

    @property
    def max_tokens(self) -> int:
        return 1

    def pad(self, tokens: list[int]) -> list[int]:
        return tokens

    @property
    def null_ids(self) -> torch.Tensor:
        return torch.tensor([self.num_classes])

    @property
    def content(self) -> bytes:
        return json.dumps({"num_classes": self.num_classes}).encode()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        return cls(read_config(path, ClassTokenizerConfig).num_classes)
