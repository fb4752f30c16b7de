"""What the lines of a file of prompts ask for: an `Item` or an `InvalidLine` each, in shards.

Consecutive lines form a shard, the unit of work: it is drawn and committed as a whole. A picture's name is a digest of
everything that it is drawn from.

The index of a chosen picture is known only when all candidates of its item are drawn. So the pictures of an item with
candidates are planned, and named, by their rank: 1 to n, best first.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal

from dalle.decoder.sampling import SamplingParams
from dalle.defaults import Rerank
from dalle.images import DrawnBackground, ImageFormat
from dalle.translation import PromptTranslation, TranslatedPrompt

__all__ = ["Choice", "InvalidLine", "Item", "Layout", "Shard", "candidate_key", "contest_key", "picture_key"]

Layout = Literal["files", "tar", "codes"]
"""How pictures are kept: a file each, a tar archive per shard, or their codes in the manifest alone."""


OUTPUT = {"background", "enlargement"}
"""Parameters of an item that say nothing about its codes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """The candidates that an item's pictures are chosen among, and what decides the choice."""

    best_of: int
    """Number of candidates: the pictures 0 to `best_of` - 1 of the item's seed."""
    rerank: Rerank
    clip: str | None = None
    """Name of the CLIP model that judges; None for `likelihood`."""
    clip_digest: str | None = None


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
    choice: Choice | None = None
    """None if the item has no candidates: then all its pictures are kept."""

    @property
    def places(self) -> range:
        """The places of its pictures: their indices, or with candidates their ranks, from 1."""
        first = self.first_index if self.choice is None else 1
        return range(first, first + self.n)

    @property
    def indices(self) -> range:
        """Indices of the pictures that are drawn: with candidates all of these."""
        return range(self.first_index, self.first_index + self.n) if self.choice is None else range(self.choice.best_of)

    @property
    def num_rows(self) -> int:
        """Number of rows (token sequences) that they take: two for a guided picture, one for any other."""
        return len(self.indices) * (2 if self.parameters["guidance_scale"] != 1 else 1)

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
    def num_candidates(self) -> int:
        """Number of pictures that are drawn: of an item without candidates its pictures."""
        return sum(len(item.indices) for item in self.items)

    @property
    def num_invalid(self) -> int:
        """Number of invalid lines."""
        return sum(isinstance(entry, InvalidLine) for entry in self.entries)

    @property
    def num_rows(self) -> int:
        """Number of rows (token sequences) that all pictures and candidates take: two for a guided one, else one."""
        return sum(item.num_rows for item in self.items)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Shard":
        """The inverse of `to_json`."""
        values = json.loads(text)
        entries = tuple(InvalidLine(**one) if "code" in one else _item(one) for one in values["entries"])
        return cls(number=values["number"], entries=entries, digest=values["digest"])


def _item(values: dict[str, Any]) -> Item:
    choice = values["choice"]
    return Item(**values | {"choice": None if choice is None else Choice(**choice)})


def picture_key(model_digest: str, item: Item, place: int) -> str:
    """A picture's name: 32 hexadecimal digits of SHA-256 over everything that its bytes depend on. place: its index, or
    with candidates its rank."""
    if item.choice is None:
        return candidate_key(model_digest, item, place)
    return _digest([contest_key(model_digest, item), place])


def candidate_key(model_digest: str, item: Item, index: int) -> str:
    """The name of an item's candidate: that of the same picture of an item without candidates."""
    return _digest([*_drawn_from(model_digest, item), index, *_written_as(item)])


def contest_key(model_digest: str, item: Item) -> str:
    """A digest of everything that decides the choice among an item's candidates, and the form of the chosen pictures.
    Items that differ in `n` alone have the same."""
    assert item.choice is not None
    return _digest([*_drawn_from(model_digest, item), *_written_as(item), dataclasses.asdict(item.choice)])


def _drawn_from(model_digest: str, item: Item) -> list[Any]:
    return [model_digest, item.prompt, item.negative_prompt, sorted(item.parameters.items()), item.seed]


def _written_as(item: Item) -> list[Any]:
    return [*([] if item.translation is None else [item.translation]), item.image_format, item.quality]


def _digest(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values, ensure_ascii=False).encode()).hexdigest()[:32]
