"""Text tokenizers that other projects trained, behind the contract of ours.

`PaddedTokenizer` has its padding on the right, `[begin] token ... token [end] [PAD] ... [PAD]`, and finds tokens by a
model of the `tokenizers` package (minDALL-E, CLIP's and any `tokenizer.json` in DALLE-pytorch) or of YouTokenToMe
(DALLE-pytorch, ruDALL-E). `ClassTokenizer` is for models of classes: a prompt is a number.

Each is one JSON file in a model directory. Which files of other projects they are made from is known in
`dalle.interop`.
"""

import dataclasses
import functools
import html
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import tokenizers
import torch

from dalle.config import Config
from dalle.errors import CheckpointError, ConfigError, ParameterError, PromptError
from dalle.text.bpe import TextTokenizer
from dalle.text.cleaning import clean_caption
from dalle.text.tokenizer import PromptTokenizer, check_prompt
from dalle.text.yttm import YouTokenToMe

__all__ = ["ClassTokenizer", "PaddedTokenizer", "PaddedTokenizerConfig", "load_text_tokenizer"]


Settings = TypeVar("Settings", bound=Config)


def _clean_as_clip(text: str) -> str:
    """CLIP's `basic_clean` and `whitespace_clean`: mend encodings, HTML entities twice, one space for any blanks."""
    try:
        import ftfy
    except ImportError as error:
        raise PromptError("this model's prompts are mended by ftfy first: pip install 'dalle-serve[text]'") from error
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip().lower()


CLEANERS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "lower": lambda text: text.lower().strip(),
    "clip": _clean_as_clip,
    "caption": clean_caption,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaddedTokenizerConfig(Config):
    """A tokenizer with padding on the right."""

    model: str
    """The text of the model: a `tokenizer.json` of the `tokenizers` package, or YouTokenToMe's file."""
    format: Literal["tokenizers", "yttm"]
    clean: Literal["none", "lower", "clip", "caption"] = "none"
    """What is done to a prompt first: nothing; lower case and no blanks around it; what CLIP does; what T5's
    captions were cleaned of."""
    text_length: int
    pad_id: int
    begin_id: int | None = None
    """Set before the first token of every prompt."""
    end_id: int | None = None
    """Set after the last token of every prompt; of one that is cut, only with `end_when_cut`."""
    end_when_cut: bool = False

    def __post_init__(self) -> None:
        if self.text_length < 1:
            raise ConfigError(f"text_length is {self.text_length}; it must be at least 1")


class PaddedTokenizer(PromptTokenizer):
    """Text to ids and back, with padding on the right."""

    kind = "padded"

    def __init__(self, config: PaddedTokenizerConfig) -> None:
        """Raises `CheckpointError` for a model that cannot be read, or ids outside its vocabulary."""
        self.config = config
        self.text_length = config.text_length
        self._encode: Callable[[str], list[int]]
        self._decode: Callable[[list[int]], str]
        if config.format == "yttm":
            yttm = YouTokenToMe(config.model)
            self._encode, self._decode, self.vocab_size = yttm.encode, yttm.decode, yttm.vocab_size
        else:
            try:
                bpe = tokenizers.Tokenizer.from_str(config.model)
            except Exception as error:  # the package raises bare Exception
                raise CheckpointError(f"this is no tokenizer.json of the tokenizers package: {error}") from error
            # Rows are laid out here, where a prompt that is too long can be refused.
            bpe.no_truncation()
            bpe.no_padding()
            self._encode, self._decode = lambda text: list(bpe.encode(text).ids), bpe.decode
            self.vocab_size = 1 + max(bpe.get_vocab(with_added_tokens=True).values(), default=-1)
        for token in (config.pad_id, config.begin_id, config.end_id):
            if token is not None and not 0 <= token < self.vocab_size:
                raise CheckpointError(f"its padding, begin or end is {token}; ids are in 0..{self.vocab_size - 1}")

    def tokenize(self, text: str) -> list[int]:
        check_prompt(text)
        return self._encode(CLEANERS[self.config.clean](text))

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """The text of one row, padding, begin and end dropped. Raises `ParameterError` for an id outside the
        vocabulary."""
        ids = ids.tolist() if isinstance(ids, torch.Tensor) else list(ids)
        for position, token in enumerate(ids):
            if not isinstance(token, int) or not 0 <= token < self.vocab_size:
                raise ParameterError(
                    f"the text id at position {position} is {token!r}; it must be one of 0..{self.vocab_size - 1}"
                )
        added = (self.config.pad_id, self.config.begin_id, self.config.end_id)
        return self._decode([token for token in ids if token not in added])

    @property
    def max_tokens(self) -> int:
        return self.text_length - (self.config.begin_id is not None) - (self.config.end_id is not None)

    def row(self, tokens: list[int]) -> list[int]:
        """Of too many tokens as many as there are places, with or without the end as the project has it."""
        begin, end = ([] if token is None else [token] for token in (self.config.begin_id, self.config.end_id))
        if self.config.end_when_cut:
            tokens = tokens[: self.max_tokens]
        row = [*begin, *tokens, *end][: self.text_length]
        return row + [self.config.pad_id] * (self.text_length - len(row))

    @functools.cached_property
    def content(self) -> bytes:
        return json.dumps(self.config.to_dict(), ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        return cls(_read(path, PaddedTokenizerConfig))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassTokenizerConfig(Config):
    """A tokenizer of class labels."""

    num_classes: int


class ClassTokenizer(PromptTokenizer):
    """A prompt is a class: a whole number from 0 in decimal digits, as "207". Its row is that one id; the null caption
    is the id after the last class."""

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
        """The class as a number; "" for the null caption. Raises `ParameterError` for another id."""
        (label,) = ids.tolist() if isinstance(ids, torch.Tensor) else ids
        if not 0 <= label <= self.num_classes:
            raise ParameterError(f"the class is {label}; it must be one of 0..{self.num_classes}")
        return str(label) if label < self.num_classes else ""

    @property
    def max_tokens(self) -> int:
        return 1

    def row(self, tokens: list[int]) -> list[int]:
        return tokens

    @property
    def null_ids(self) -> torch.Tensor:
        return torch.tensor([self.num_classes])

    @property
    def content(self) -> bytes:
        return json.dumps({"num_classes": self.num_classes}).encode()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        return cls(_read(path, ClassTokenizerConfig).num_classes)


KINDS: dict[str, type[PromptTokenizer]] = {one.kind: one for one in (TextTokenizer, PaddedTokenizer, ClassTokenizer)}


def load_text_tokenizer(kind: object, path: Path) -> PromptTokenizer:
    """The text tokenizer of a model directory. Raises `CheckpointError` for a kind that there is not, and as `load`
    does."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise CheckpointError(f"{path} is a text tokenizer of kind {kind!r}; this release knows {', '.join(KINDS)}")
    return KINDS[kind].load(path)


def _read(path: str | Path, kind: type[Settings]) -> Settings:
    try:
        content: Any = json.loads(Path(path).read_bytes())
        return kind.from_dict(content)
    except (OSError, ValueError, RecursionError) as error:  # ConfigError is a ValueError
        raise CheckpointError(f"{path} is no text tokenizer written by this library: {error}") from error
