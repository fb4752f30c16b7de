"""A shard while a worker draws it, and recovery of codes that an earlier run has drawn for it."""

import dataclasses

from dalle.checkpoint import ModelFacts
from dalle.errors import DalleError
from dalle.images import open_image
from dalle.pipeline import PromptRequest
from dalle.receipt import Receipt, pack_codes
from serving.batch.items import Item, Layout, Shard
from serving.batch.manifest import Record, codes_digest, known_codes, objects, picture_file, read_manifest
from serving.batch.storage import WORK, Storage
from serving.safety.errors import ModerationError

__all__ = ["OpenShard", "Picture", "codes_in_png", "journal_name", "recover_codes"]


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
class OpenShard:
    """A shard while a worker draws it."""

    shard: Shard
    records: list[Record]
    pictures: dict[str, Picture]
    """By key. Items that ask for the very same picture share one."""
    num_left: int
    """Number of pictures whose codes are not drawn yet."""
    num_drawn: int = 0
    num_rows_drawn: int = 0
    """Number of rows (token sequences) drawn in this run."""
    times: dict[str, float] = dataclasses.field(default_factory=dict)


def journal_name(shard: Shard) -> str:
    """Name of the shard's journal, to which codes are appended as soon as they are drawn."""
    return f"{WORK}/{shard.name}.jsonl"


def recover_codes(storage: Storage, opened: OpenShard, facts: ModelFacts, layout: Layout) -> dict[str, str]:
    """Packed codes, by key, of the shard's pictures that an earlier run has drawn: from the shard's manifest, its
    journal, or the receipts in PNG files."""
    _, records = read_manifest(storage, opened.shard)
    records += objects(storage.read(journal_name(opened.shard)) or b"")
    found = {str(record.get("key")): codes for record in records if (codes := known_codes(record, facts)) is not None}
    known = {key: found[key] for key in opened.pictures.keys() & found.keys()}
    for key, picture in opened.pictures.items():
        if key not in known and (codes := codes_in_png(storage, picture, facts, layout)) is not None:
            known[key] = codes
    return known


def codes_in_png(storage: Storage, picture: Picture, facts: ModelFacts, layout: Layout) -> str | None:
    """Packed codes from the receipt in the picture's existing PNG file. None if there is no file, or its receipt is of
    another picture."""
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
        "index": record["index"],
        "parameters": item.parameters,
        "model_digest": facts.digest,
        "translation": item.translated.translation,
    }
    if any(getattr(receipt, field) != value for field, value in expected.items()):
        return None
    packed = pack_codes(receipt.codes)
    return known_codes({"codes": packed, "codes_sha256": codes_digest(receipt.codes)}, facts)
