"""`PaddedTokenizer`: text tokenizers of other projects that pad on the right.

The text ids (T,) of a prompt are `[begin] token ... token [end] [PAD] ... [PAD]`. Tokens are found by a model of the
`tokenizers` package (minDALL-E, CLIP's, and any `tokenizer.json` in DALLE-pytorch) or of YouTokenToMe (DALLE-pytorch,
ruDALL-E).

The tokenizer is one JSON file in a model directory. `dalle.interop` makes it from the files of other projects.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import tokenizers
import torch

from dalle.config import Config
from dalle.errors import CheckpointError, ConfigError, ParameterError
from dalle.text.cleaning import CLEANERS
from dalle.text.clip import clip_encoder
from dalle.text.tokenizer import PromptTokenizer, check_prompt
from dalle.text.yttm import YouTokenToMe

__all__ = ["PaddedTokenizer", "PaddedTokenizerConfig", "read_config"]

Settings = TypeVar("Settings", bound=Config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaddedTokenizerConfig(Config):
    """Configuration of a tokenizer that pads on the right."""

    model: str
    """Text of the model file: a `tokenizer.json` of the `tokenizers` package, or a model of YouTokenToMe."""
    format: Literal["tokenizers", "yttm"]
    clean: Literal["none", "lower", "clip", "caption"] = "none"
    """How a prompt is cleaned before it is tokenized: see `CLEANERS` in `dalle.text.cleaning`."""
    text_length: int
    pad_id: int
    begin_id: int | None = None
    """Id before the first token of every prompt, if any."""
    end_id: int | None = None
    """Id after the last token of every prompt, if any."""
    end_when_cut: bool = False
    """Whether a truncated prompt ends in `end_id` too."""

    def __post_init__(self) -> None:
        if self.text_length < 1:
            raise ConfigError(f"text_length is {self.text_length}; it must be at least 1")


class PaddedTokenizer(PromptTokenizer):
    """Converts text to ids and back, with padding on the right."""

    kind = "padded"

    def __init__(self, config: PaddedTokenizerConfig) -> None:
        """Raises `CheckpointError` for a model that cannot be read, and for an id outside its vocabulary."""
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
                raise CheckpointError(f"this is not a tokenizer.json of the tokenizers package: {error}") from error
            # Text ids are padded by this class, which can reject a prompt that is too long.
            bpe.no_truncation()
            bpe.no_padding()
            is_clip = config.clean == "clip"
            self._encode = clip_encoder(bpe) if is_clip else lambda text: list(bpe.encode(text).ids)
            self._decode = bpe.decode
            self.vocab_size = 1 + max(bpe.get_vocab(with_added_tokens=True).values(), default=-1)
        for token in (config.pad_id, config.begin_id, config.end_id):
            if token is not None and not 0 <= token < self.vocab_size:
                raise CheckpointError(f"its padding, begin or end is {token}; ids are in 0..{self.vocab_size - 1}")

    def tokenize(self, text: str) -> list[int]:
        check_prompt(text)
        return self._encode(CLEANERS[self.config.clean](text))

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """The text of text ids (T,), without padding, begin and end.

        Raises `ParameterError` for an id outside the vocabulary.
        """
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

    def pad(self, tokens: list[int]) -> list[int]:
        """Lay out tokens as text ids (T,). With `end_when_cut`, tokens are cut to `max_tokens` and the end follows;
        else the ids are cut to T, and the end may be lost."""
        begin, end = ([] if token is None else [token] for token in (self.config.begin_id, self.config.end_id))
        if self.config.end_when_cut:
            tokens = tokens[: self.max_tokens]
        ids = [*begin, *tokens, *end][: self.text_length]
        return ids + [self.config.pad_id] * (self.text_length - len(ids))

    @functools.cached_property
    def content(self) -> bytes:
        return json.dumps(self.config.to_dict(), ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        return cls(read_config(path, PaddedTokenizerConfig))


def read_config(path: str | Path, kind: type[Settings]) -> Settings:
    """The configuration in a tokenizer's file. Raises `CheckpointError` if the file is missing, damaged or invalid."""
    try:
        content: Any = json.loads(Path(path).read_bytes())
        return kind.from_dict(content)
    except (OSError, ValueError, RecursionError) as error:  # ConfigError is a ValueError
        raise CheckpointError(f"{path} is not a text tokenizer written by this library: {error}") from error
