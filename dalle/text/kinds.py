"""The kinds of text tokenizers, by the name that a model directory's `config.json` has for each."""

from pathlib import Path

from dalle.errors import CheckpointError
from dalle.text.bpe import TextTokenizer
from dalle.text.classes import ClassTokenizer
from dalle.text.marian import MarianTokenizer
from dalle.text.padded import PaddedTokenizer
from dalle.text.tokenizer import PromptTokenizer

__all__ = ["KINDS", "load_text_tokenizer"]

KINDS: dict[str, type[PromptTokenizer]] = {
    one.kind: one for one in (TextTokenizer, PaddedTokenizer, ClassTokenizer, MarianTokenizer)
}


def load_text_tokenizer(kind: str, path: Path) -> PromptTokenizer:
    """Read the text tokenizer of a model directory.

    Raises `CheckpointError` for an unknown kind, and for a file that is missing, damaged or not this library's.
    """
    if kind not in KINDS:
        raise CheckpointError(f"{path} is a text tokenizer of kind {kind!r}; this release knows {', '.join(KINDS)}")
    return KINDS[kind].load(path)
