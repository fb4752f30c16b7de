"""What is known of shards and pictures while they are being drawn, and what was known of them before."""

import dataclasses

from dalle.checkpoint import ModelFacts
from dalle.errors import DalleError
from dalle.images import open_image
from dalle.pipeline import PromptRequest
from dalle.receipt import Receipt, pack_codes
from serving.batch.manifest import Record, codes_digest, known_codes, objects, picture_file, read_manifest
from serving.batch.plan import Layout, Row, Shard
from serving.batch.storage import WORK, Storage

__all__ = ["OpenShard", "Picture", "codes_in_file", "codes_of_before", "journal_name"]


@dataclasses.dataclass(eq=False)
class Picture:
    """A picture on its way through a worker."""

    shard: "OpenShard"
    row: Row
    record: Record
    request: PromptRequest
    same: list[Record] = dataclasses.field(default_factory=list)
    """Records of other lines of the shard that ask for the very same picture."""
    content: bytes = b""

    @property
    def num_rows(self) -> int:
        return 2 if self.request.params.guided else 1

    def fail(self, error: DalleError) -> None:
        """Note that it cannot be drawn."""
        self.record.update(error_code="not_drawn", error=str(error))


@dataclasses.dataclass(eq=False)
class OpenShard:
    """A shard that is being worked on."""

    shard: Shard
    records: list[Record]
    pictures: dict[str, Picture]
    num_left: int
    num_drawn: int = 0
    num_rows_drawn: int = 0
    times: dict[str, float] = dataclasses.field(default_factory=dict)


def journal_name(shard: Shard) -> str:
    """Where codes are noted as soon as they are drawn."""
    return f"{WORK}/{shard.name}.jsonl"


def codes_of_before(storage: Storage, opened: OpenShard, facts: ModelFacts, layout: Layout) -> dict[str, str]:
    """Packed codes, by key, of the pictures of a shard that were drawn before: by its manifest, its journal, or the
    receipts in PNGs."""
    _, records = read_manifest(storage, opened.shard)
    records += objects(storage.read(journal_name(opened.shard)) or b"")
    found = {str(record.get("key")): codes for record in records if (codes := known_codes(record, facts)) is not None}
    known = {key: found[key] for key in opened.pictures.keys() & found.keys()}
    for key, picture in opened.pictures.items():
        if key not in known and (codes := codes_in_file(storage, picture, facts, layout)) is not None:
            known[key] = codes
    return known


def codes_in_file(storage: Storage, picture: Picture, facts: ModelFacts, layout: Layout) -> str | None:
    """The codes in the receipt of a PNG that is there, if it is the picture that is wanted."""
    row, record = picture.row, picture.record
    name = picture_file(picture.shard.shard, row, record["key"], layout)
    if layout != "files" or row.image_format != "png" or name is None:
        return None
    content = storage.read(name)
    if content is None:
        return None
    try:
        with open_image(content, formats=("PNG",)) as image:
            image.load()
            receipt = Receipt.from_text(image.text)  # type: ignore[attr-defined]  # of Pillow's PngImageFile
    except DalleError:
        return None
    expected = {
        "prompt": row.prompt,
        "negative_prompt": row.negative_prompt,
        "seed": row.seed,
        "index": record["index"],
        "parameters": row.parameters,
        "model_digest": facts.digest,
    }
    if any(getattr(receipt, field) != value for field, value in expected.items()):
        return None
    packed = pack_codes(receipt.codes)
    return known_codes({"codes": packed, "codes_sha256": codes_digest(receipt.codes)}, facts)
