"""`Vocabulary`: what a model knows, for people who look for words to type; the optional `vocabulary.json` of a model
directory.

No digest covers the file, since a receipt's picture does not depend on it: it decides which prompts are English beyond
doubt and so are not translated, and how English ones are worded, and the receipt has the outcome as its prompt. It may
be added, changed or removed. It is a JSON object with the fields of `Vocabulary`; unknown keys are ignored.
"""

import base64
import binascii
import dataclasses
import functools
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from dalle.checkpoint.files import VOCABULARY_FILE
from dalle.config import Config, require
from dalle.errors import CheckpointError, ConfigError
from dalle.files import atomic_write

__all__ = [
    "MAX_LENGTH",
    "STOP_WORDS",
    "Style",
    "Vocabulary",
    "read_vocabulary",
    "unknown_words",
    "usable_vocabulary",
    "words_of",
    "write_vocabulary",
]

MAX_BYTES = 8 << 20
MAX_LENGTH = 200
"""Most characters of a name, a phrase, an example or the description."""
MAX_STYLES, MAX_OTHERS, MAX_EXAMPLES, MAX_CONCEPTS, MAX_WORDS = 64, 12, 12, 20_000, 50_000
MAX_PICTURE_BYTES = 16 << 10
PICTURE_START, PICTURE_KIND = b"RIFF", b"WEBP"
STOP_WORDS = frozenset(
    """a about an and any are as at be but by can could create do draw drawing drawn emoji emojis for from generate get
    give has have how i icon icons illustration image images in into is it like look looking looks make me my need of on
    one or photo pic picture pictures please show some something sticker style styled styles that the their there these
    this those to two very want we with would you your""".split()
)
"""Words that say nothing about what a picture shows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style(Config):
    """A style that a model draws in."""

    name: str
    """Such as `fluent 3d`."""
    phrase: str
    """The words of a prompt for it, such as `fluent 3d style emoji`, which follow the thing and a comma."""
    others: tuple[str, ...] = ()
    """Other names of the style, which its captions have too, such as `3d`."""
    picture: str = ""
    """A small WebP file that the model drew in the style, in base64; empty for none."""

    def __post_init__(self) -> None:
        _check_text("the name of a style", self.name)
        _check_text(f"the phrase of the style {self.name!r}", self.phrase)
        require(
            len(self.others) <= MAX_OTHERS,
            f"the style {self.name!r} has {len(self.others)} other names; the limit is {MAX_OTHERS}",
        )
        for other in self.others:
            _check_text(f"another name of the style {self.name!r}", other)
        try:
            content = base64.b64decode(self.picture, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ConfigError(f"the picture of the style {self.name!r} is no base64: {error}") from error
        require(
            not content or (content[:4], content[8:12]) == (PICTURE_START, PICTURE_KIND),
            f"the picture of the style {self.name!r} is not a WebP file",
        )
        require(
            len(content) <= MAX_PICTURE_BYTES,
            f"the picture of the style {self.name!r} has {len(content)} bytes; the limit is {MAX_PICTURE_BYTES}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary(Config):
    """What a model was trained to draw. Every list may be empty."""

    description: str = ""
    """What to type, in a sentence; empty if nobody wrote one."""
    examples: tuple[str, ...] = ()
    """Whole prompts."""
    styles: tuple[Style, ...] = ()
    concepts: tuple[str, ...] = ()
    """Names of things, without style."""
    synonyms: tuple[tuple[str, ...], ...] = ()
    """Concepts that have other names: the concept, and then these, each of which names no other concept."""
    words: tuple[str, ...] = ()
    """Further words of the training captions, in lower case: synonyms, keywords."""

    def __post_init__(self) -> None:
        require(
            len(self.description) <= MAX_LENGTH and "\n" not in self.description,
            f"description has {len(self.description)} characters; it is one line of at most {MAX_LENGTH}",
        )
        limits = {"examples": MAX_EXAMPLES, "styles": MAX_STYLES, "concepts": MAX_CONCEPTS, "words": MAX_WORDS}
        for name, limit in limits.items():
            values: Sequence[Any] = getattr(self, name)
            require(len(values) <= limit, f"{name} has {len(values)} entries; the limit is {limit}")
            texts = [one.name if isinstance(one, Style) else one for one in values]
            for text in texts:
                _check_text(f"an entry of {name}", text)
            require(len({*texts}) == len(texts), f"{name} has an entry twice")
        self._check_synonyms()

    def _check_synonyms(self) -> None:
        short = next((names for names in self.synonyms if len(names) < 2), None)
        require(short is None, f"synonyms has {short}; it must be a concept and its other names")
        concepts, others = {*self.concepts}, [other for _, *others in self.synonyms for other in others]
        require(len(others) <= MAX_WORDS, f"synonyms has {len(others)} other names; the limit is {MAX_WORDS}")
        for other in others:
            _check_text("an entry of synonyms", other)
        unknown = next((names[0] for names in self.synonyms if names[0] not in concepts), None)
        require(unknown is None, f"synonyms has {unknown!r}, which is no concept")
        require(len({*others} - concepts) == len(others), "synonyms has a name of two concepts")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`. Unknown keys, which later versions may write, are ignored. Raises `ConfigError` as
        `Config.from_dict` does for anything else."""
        require(isinstance(values, dict), f"the vocabulary must be an object, not {type(values).__name__}")
        known = _known(cls, values)
        if isinstance(styles := known.get("styles"), list):
            known["styles"] = [_known(Style, one) if isinstance(one, dict) else one for one in styles]
        return super().from_dict(known)

    def facts(self) -> dict[str, Any]:
        """Description, examples, styles and concepts as values for JSON, without pictures and further words."""
        styles = [{"name": style.name, "phrase": style.phrase} for style in self.styles]
        return {
            "description": self.description,
            "examples": [*self.examples],
            "styles": styles,
            "concepts": [*self.concepts],
        }

    def knows(self, prompt: str) -> bool:
        """Whether the captions of the training had at least one word of a prompt, in singular or plural. Stop words and
        the words of styles do not count; a prompt of such words alone is known, and so is every prompt if the
        vocabulary has neither concepts nor words."""
        words = set(words_of(prompt)) - self._style_words
        return not words or not self._known_words or any(self._has(word) for word in words)

    def knows_all(self, prompt: str) -> bool:
        """Whether a prompt has words, and the captions of the training had every one of them, stop words and the words
        of styles left out. Numbers are known."""
        words = set(words_of(prompt))
        return bool(words) and all(word in self._style_words or word.isdigit() or self._has(word) for word in words)

    def _has(self, word: str) -> bool:
        endings = [end for end in ("s", "es", "ies", "ing", "ed") if word.endswith(end) and len(word) > len(end) + 2]
        stems = [word.removesuffix(end) + rest for end in endings for rest in ("", "e", "y")]
        return any(form in self._known_words for form in (word, f"{word}s", f"{word}es", *stems))

    @functools.cached_property
    def _known_words(self) -> frozenset[str]:
        names = (*self.concepts, *(other for _, *others in self.synonyms for other in others))
        return frozenset((*self.words, *(word for name in names for word in words_of(name))))

    @functools.cached_property
    def _style_words(self) -> frozenset[str]:
        return frozenset(word for style in self.styles for word in words_of(f"{style.name} {style.phrase}"))


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without stop words."""
    found = re.findall(r"[^\W_]+", re.sub("['\u2019]s\\b", "", text.lower()))
    return [word for word in found if word not in STOP_WORDS]


def unknown_words(prompt: str) -> str:
    """The warning of a prompt of which no word is known to the model, for a message to continue."""
    shown = f"{prompt[:60]}..." if len(prompt) > 60 else prompt
    return f"the model was trained on no word of {shown!r}, and will draw something else"


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of a model directory, or None if it has none.

    Raises `CheckpointError`, naming the file, if it is damaged or has a value outside its limits.
    """
    path = folder / VOCABULARY_FILE
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise CheckpointError(f"{path} has {size} bytes; a vocabulary has at most {MAX_BYTES}")
        return Vocabulary.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def usable_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of a model directory, or None if it has none. A damaged one is left out with a warning: the model
    draws without it."""
    try:
        return read_vocabulary(folder)
    except CheckpointError as error:
        warnings.warn(f"{error}; the model is used without its vocabulary", stacklevel=4)
        return None


def write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """Write the vocabulary of a model directory, in place of the one that it has."""
    path = folder / VOCABULARY_FILE
    atomic_write(path, json.dumps(vocabulary.to_dict(), ensure_ascii=False, separators=(",", ":")) + "\n")
    path.chmod(0o644)


def _known(config: type[Config], values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(config)}
    return {key: value for key, value in values.items() if key in names}


def _check_text(name: str, text: str) -> None:
    require(
        bool(text.strip()) and text.isprintable() and len(text) <= MAX_LENGTH,
        f"{name} is {text[:MAX_LENGTH]!r}; it must be one line of 1 to {MAX_LENGTH} characters that can be printed",
    )
