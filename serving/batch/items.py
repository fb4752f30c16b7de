"""What the lines of a file of prompts ask for: an `Item` or an `InvalidLine` each, in shards.

Consecutive lines form a shard, the unit of work: it is drawn and committed as a whole. A picture's name is a digest of
everything that it is drawn from.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal

from dalle.decoder.sampling import SamplingParams
from dalle.images import DrawnBackground, ImageFormat
from dalle.translation import PromptTranslation, TranslatedPrompt

__all__ = ["InvalidLine", "Item", "Layout", "Shard", "picture_key"]

Layout = Literal["files", "tar", "codes"]
"""How pictures are kept: a file each, a tar archive per shard, or their codes in the manifest alone."""


OUTPUT = {"background", "enlargement"}
"""Parameters of an item that say nothing about its codes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """A valid line: a prompt and how its pictures are drawn."""

    line: int
    id: str
    prompt: str
    negative_prompt: str | None
    seed: int
    first_index: int
    n: int
    parameters: dict[str, Any]
    """All fields of `SamplingParams`, with the model's defaults; `background` if the model draws transparency; and
    `enlargement` if the pictures are enlarged."""
    image_format: ImageFormat
    quality: int | None
    openai: dict[str, Any] | None
    """Fields of the request that its result in OpenAI's format repeats or depends on; None for any other format."""
    translation: dict[str, Any] | None = None
    """Fields of the `PromptTranslation` of its prompts, if they were translated."""

    @property
    def sampling(self) -> SamplingParams:
        """The sampling parameters."""
        return SamplingParams.from_dict({key: self.parameters[key] for key in self.parameters.keys() - OUTPUT})

    @property
    def translated(self) -> TranslatedPrompt:
        """The prompts as they are drawn."""
        given = None if self.translation is None else PromptTranslation.from_dict(self.translation)
        return TranslatedPrompt(prompt=self.prompt, negative_prompt=self.negative_prompt, translation=given)

    @property
    def background(self) -> DrawnBackground:
        """The background of the item's pictures: opaque if the model draws no transparency."""
        background: DrawnBackground = self.parameters.get("background", "opaque")
        return background

    @property
    def enlargement(self) -> int:
        """Whole factor by which the item's pictures are enlarged."""
        return int(self.parameters.get("enlargement", 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class InvalidLine:
    """A line that cannot be drawn, and the reason."""

    line: int
    id: str
    prompt: str
    code: str
    message: str
    param: str | None
    openai: dict[str, Any] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """Consecutive lines, drawn and committed together."""

    number: int
    entries: tuple[Item | InvalidLine, ...]
    digest: str
    """SHA-256 of the entries, the model and the settings."""

    @property
    def name(self) -> str:
        return f"{self.number:06d}"

    @property
    def items(self) -> Iterator[Item]:
        return (entry for entry in self.entries if isinstance(entry, Item))

    @property
    def num_pictures(self) -> int:
        return sum(item.n for item in self.items)

    @property
    def num_invalid(self) -> int:
        """Number of invalid lines."""
        return sum(isinstance(entry, InvalidLine) for entry in self.entries)

    @property
    def num_rows(self) -> int:
        """Number of rows (token sequences) that all pictures take: two for a guided picture, one for any other."""
        return sum(item.n * (2 if item.parameters["guidance_scale"] != 1 else 1) for item in self.items)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Shard":
        """The inverse of `to_json`."""
        values = json.loads(text)
        entries = tuple(InvalidLine(**one) if "code" in one else Item(**one) for one in values["entries"])
        return cls(number=values["number"], entries=entries, digest=values["digest"])


def picture_key(model_digest: str, item: Item, index: int) -> str:
    """A picture's name: 32 hexadecimal digits of SHA-256 over everything that its bytes depend on."""
    parameters = sorted(item.parameters.items())
    drawn_from: list[Any] = [model_digest, item.prompt, item.negative_prompt, parameters, item.seed, index]
    drawn_from += [] if item.translation is None else [item.translation]
    text = json.dumps([*drawn_from, item.image_format, item.quality], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
