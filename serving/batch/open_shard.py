"""A shard while a worker draws it, and recovery of codes that an earlier run has drawn for it."""

import dataclasses

from torch import Tensor

from dalle.checkpoint import ModelFacts
from dalle.errors import DalleError
from dalle.images import open_image
from dalle.pipeline import PromptRequest
from dalle.ranking import Ranking
from dalle.receipt import Receipt, pack_codes
from serving.batch.items import Choice, Item, Layout, Shard, candidate_key, contest_key
from serving.batch.manifest import (
    Record,
    codes_digest,
    known_codes,
    known_ranking,
    objects,
    picture_file,
    read_manifest,
)
from serving.batch.storage import WORK, Storage
from serving.safety.errors import ModerationError

__all__ = [
    "Candidate",
    "Chosen",
    "Contest",
    "OpenShard",
    "Picture",
    "journal_name",
    "open_contest",
    "receipt_in_png",
    "recover_chosen",
    "recover_codes",
]


@dataclasses.dataclass(eq=False)
class Picture:
    """A picture while a worker draws it."""

    shard: "OpenShard"
    item: Item
    record: Record
    request: PromptRequest
    duplicates: list[Record] = dataclasses.field(default_factory=list)
    """Records of other items of the shard that ask for the very same picture."""
    content: bytes = b""
    """The encoded file, from its encoding until it is written."""
    contest: "Contest | None" = None
    """The candidates that it is chosen among; None for an item without any."""
    rank: int | None = None
    """Its place among them; None without candidates."""

    @property
    def key(self) -> str:
        """Its name."""
        key: str = self.record["key"]
        return key

    @property
    def num_rows(self) -> int:
        """Number of rows (token sequences): two for a guided picture, one for any other."""
        return self.request.num_slots

    def fail(self, error: DalleError) -> None:
        """Mark the picture's record as failed."""
        self.record.update(error_code="not_drawn", error=str(error))

    def refuse(self, error: ModerationError) -> None:
        """Mark the picture's record as refused by a safety check, without its codes."""
        self.withhold()
        self.record.update(error_code=error.refused.code, error=str(error))

    def withhold(self) -> None:
        """Remove the codes from the picture's record: they are the picture."""
        self.record.update(dict.fromkeys(("codes", "codes_sha256", "step", "software")))


@dataclasses.dataclass(eq=False)
class Candidate:
    """A candidate while a worker draws it. It becomes no file itself."""

    contest: "Contest"
    key: str
    request: PromptRequest

    @property
    def num_rows(self) -> int:
        """Number of rows (token sequences): two for a guided candidate, one for any other."""
        return self.request.num_slots


@dataclasses.dataclass(eq=False)
class Contest:
    """All candidates of an item, and the pictures that are chosen among them. Items of a shard that differ in `n` alone
    share one."""

    shard: "OpenShard"
    choice: Choice
    candidates: list[Candidate] = dataclasses.field(default_factory=list)
    """By index."""
    pictures: list[Picture] = dataclasses.field(default_factory=list)
    """By rank, from 1."""
    codes: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    """Codes (N,) of the finished candidates, by index."""
    drawn: set[int] = dataclasses.field(default_factory=set)
    """Indices of those that were drawn in this run."""

    @property
    def is_complete(self) -> bool:
        return len(self.codes) == len(self.candidates)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """A picture that an earlier run has chosen."""

    codes: str
    """Packed codes."""
    index: int
    ranking: Ranking


@dataclasses.dataclass(eq=False)
class OpenShard:
    """A shard while a worker draws it."""

    shard: Shard
    records: list[Record]
    pictures: dict[str, Picture]
    """By key. Items that ask for the very same picture share one."""
    num_left: int
    """Number of pictures whose codes are not known yet."""
    contests: dict[str, Contest] = dataclasses.field(default_factory=dict)
    """By their keys."""
    num_drawn: int = 0
    num_rows_drawn: int = 0
    """Number of rows (token sequences) drawn in this run."""
    times: dict[str, float] = dataclasses.field(default_factory=dict)


def open_contest(opened: OpenShard, picture: Picture, model_digest: str) -> None:
    """Enter a picture in the contest that it is chosen in, which is opened by its first picture. Pictures of an item
    are entered in the order of their ranks."""
    item = picture.item
    assert item.choice is not None
    key = contest_key(model_digest, item)
    if key not in opened.contests:
        contest = opened.contests[key] = Contest(opened, item.choice)
        for index in item.indices:
            request = dataclasses.replace(picture.request, index=index)
            contest.candidates.append(Candidate(contest, candidate_key(model_digest, item, index), request))
    picture.contest = opened.contests[key]
    picture.contest.pictures.append(picture)
    picture.rank = len(picture.contest.pictures)


def journal_name(shard: Shard) -> str:
    """Name of the shard's journal, to which codes are appended as soon as they are drawn."""
    return f"{WORK}/{shard.name}.jsonl"


def recover_codes(storage: Storage, opened: OpenShard, facts: ModelFacts, layout: Layout) -> dict[str, str]:
    """Packed codes, by key, of the shard's candidates, and of its pictures without any, that an earlier run has drawn:
    from the shard's manifest, its journal, or the receipts in PNG files."""
    _, records = read_manifest(storage, opened.shard)
    records += objects(storage.read(journal_name(opened.shard)) or b"")
    found = {str(record.get("key")): codes for record in records if (codes := known_codes(record, facts)) is not None}
    pictures = {key: picture for key, picture in opened.pictures.items() if picture.contest is None}
    candidates = {one.key for contest in opened.contests.values() for one in contest.candidates}
    known = {key: found[key] for key in (pictures.keys() | candidates) & found.keys()}
    for key, picture in pictures.items():
        if key not in known and (receipt := receipt_in_png(storage, picture, facts, layout)) is not None:
            known[key] = pack_codes(receipt.codes)
    return known


def recover_chosen(storage: Storage, opened: OpenShard, facts: ModelFacts, layout: Layout) -> dict[str, Chosen]:
    """The shard's pictures, by key, that an earlier run has chosen among candidates: from the shard's manifest, or the
    receipts in PNG files.

    The index of such a picture is no part of its key, so a manifest counts only if it is intact.
    """
    if not opened.contests:
        return {}
    digest, records = read_manifest(storage, opened.shard)
    by_key = {record.get("key"): record for record in records} if digest is not None else {}
    found: dict[str, Chosen] = {}
    for contest in opened.contests.values():
        for picture in contest.pictures:
            record = by_key.get(picture.key, {})
            codes, ranking = known_codes(record, facts), known_ranking(record, contest.choice)
            if codes is not None and ranking is not None and ranking.rank == picture.rank:
                found[picture.key] = Chosen(codes=codes, index=record["index"], ranking=ranking)
            elif (receipt := receipt_in_png(storage, picture, facts, layout)) is not None:
                assert receipt.ranking is not None
                codes = pack_codes(receipt.codes)
                found[picture.key] = Chosen(codes=codes, index=receipt.index, ranking=receipt.ranking)
    return found


def receipt_in_png(storage: Storage, picture: Picture, facts: ModelFacts, layout: Layout) -> Receipt | None:
    """The receipt in the picture's existing PNG file. None if there is no file, or its receipt is of another
    picture."""
    item, record = picture.item, picture.record
    name = picture_file(picture.shard.shard, item, record["key"], layout)
    if layout != "files" or item.image_format != "png" or name is None:
        return None
    content = storage.read(name)
    if content is None:
        return None
    try:
        with open_image(content, formats=("PNG",)) as image:
            image.load()
            receipt = Receipt.from_text(image.text)  # type: ignore[attr-defined]  # an attribute of Pillow's PngImageFile
    except DalleError:
        return None
    expected = {
        "prompt": item.prompt,
        "negative_prompt": item.negative_prompt,
        "seed": item.seed,
        "parameters": item.parameters,
        "model_digest": facts.digest,
        "translation": item.translated.translation,
    }
    if any(getattr(receipt, field) != value for field, value in expected.items()):
        return None
    packed = {"codes": pack_codes(receipt.codes), "codes_sha256": codes_digest(receipt.codes)}
    return receipt if _has_place(receipt, picture) and known_codes(packed, facts) is not None else None


def _has_place(receipt: Receipt, picture: Picture) -> bool:
    """Whether a receipt has the picture's index, or its rank among the same candidates."""
    if picture.contest is None:
        return receipt.ranking is None and receipt.index == picture.record["index"]
    if receipt.ranking is None:
        return False
    place = {"index": receipt.index, "ranking": receipt.ranking.to_dict()}
    fits = known_ranking(place, picture.contest.choice) is not None and receipt.ranking.rank == picture.rank
    # the choice may have been made in this run
    return fits and all(picture.record[name] in (None, value) for name, value in place.items())
