"""What a batch says about its pictures: a record for each, in a manifest for each shard, and all of them merged.

A shard's manifest is its commit record: it is written when all pictures of the shard are, and a shard without one, or
with one that is not what it should be, is not done. Manifests say what was drawn and nothing about when or by whom, so
that a run that was killed and started again leaves the same bytes as one that was not. Times are in `log.jsonl`.
"""

import contextlib
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dalle.checkpoint import ModelFacts
from dalle.errors import ParameterError
from dalle.receipt import unpack_codes
from serving.batch.plan import InvalidLine, Item, Shard, picture_key
from serving.batch.storage import Storage, StorageError

__all__ = [
    "Record",
    "archive",
    "blank_records",
    "codes_digest",
    "is_done",
    "known_codes",
    "manifest_name",
    "members",
    "merged_records",
    "objects",
    "picture_file",
    "read_manifest",
    "shares_none",
    "to_line",
    "write_manifest",
]

Record = dict[str, Any]

NOT_OF_REFUSED = ("negative_prompt", "seed", "index", "parameters", "model", "model_digest", "key")
DRAWN_FIELDS = ("file", "sha256", "codes", "codes_sha256", "software", "error_code", "error")
"""What is known of a picture only when it is drawn."""
LINE_SEPARATORS = re.compile("[\x85\u2028\u2029]")


def manifest_name(shard: Shard) -> str:
    return f"shards/{shard.name}.jsonl"


def picture_file(shard: Shard, item: Item, key: str, layout: str) -> str | None:
    """Where a picture is, relative to the folder; for `tar` the shard's archive, in which it is KEY.FORMAT."""
    match layout:
        case "files":
            return f"pictures/{key[:2]}/{key}.{item.image_format}"
        case "tar":
            return f"pictures/{shard.name}.tar"
    return None


def blank_records(shard: Shard, model: str, model_digest: str) -> list[tuple[Item | None, Record]]:
    """A record for each picture of a shard, and for each refused line, with all that is known before anything is
    drawn; and the picture's item, None for an invalid line."""
    records: list[tuple[Item | None, Record]] = []
    for entry in shard.entries:
        common = {"line": entry.line, "id": entry.id, "prompt": entry.prompt}
        nothing = dict.fromkeys(NOT_OF_REFUSED)
        undrawn = dict.fromkeys(DRAWN_FIELDS)
        if isinstance(entry, InvalidLine):
            error = {"error_code": entry.code, "error": entry.message}
            records.append((None, {**common, **nothing, **undrawn, **error}))
            continue
        for index in range(entry.first_index, entry.first_index + entry.n):
            of_picture = {
                "negative_prompt": entry.negative_prompt,
                "seed": entry.seed,
                "index": index,
                "parameters": entry.parameters,
                "model": model,
                "model_digest": model_digest,
                "key": picture_key(model_digest, entry, index),
            }
            records.append((entry, {**common, **of_picture, **undrawn}))
    return records


def codes_digest(codes: Sequence[Sequence[int]]) -> str:
    """SHA-256 of the ids row by row, each as four bytes, little-endian."""
    return hashlib.sha256(np.array(codes, dtype="<u4").tobytes()).hexdigest()


def to_line(values: Mapping[str, Any]) -> bytes:
    """A line of JSON. Letters stay as they are, but what some programs take for the end of a line."""
    text = json.dumps(values, ensure_ascii=False)
    return LINE_SEPARATORS.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode() + b"\n"


def objects(content: bytes) -> list[Record]:
    """The lines that are objects of JSON; a kill may have cut one."""
    found = []
    for line in content.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            one = json.loads(line)
            found += [one] if isinstance(one, dict) else []
    return found


def write_manifest(storage: Storage, shard: Shard, records: Iterable[Record]) -> None:
    """Commit a shard."""
    lines = b"".join(map(to_line, records))
    header = {"shard": shard.number, "digest": shard.digest, "sha256": hashlib.sha256(lines).hexdigest()}
    storage.write(manifest_name(shard), to_line(header) + lines)


def read_manifest(storage: Storage, shard: Shard) -> tuple[str | None, list[Record]]:
    """The digest of the shard that a manifest is of, None if it is not whole, and the records that can be read."""
    first, _, lines = (storage.read(manifest_name(shard)) or b"").partition(b"\n")
    for header in objects(first):
        if header.get("sha256") == hashlib.sha256(lines).hexdigest():
            return header.get("digest"), objects(lines)
    return None, objects(lines)


def is_done(storage: Storage, shard: Shard, facts: ModelFacts, *, layout: str, retry_failed: bool) -> bool:
    """Whether a shard is committed, and all that its manifest says is so: every picture is there, with its digest."""
    digest, records = read_manifest(storage, shard)
    blanks = blank_records(shard, facts.name, facts.digest)
    if digest != shard.digest or len(records) != len(blanks):
        return False
    packed = storage.read(f"pictures/{shard.name}.tar") if layout == "tar" else None
    parts = members(packed)
    seen: dict[str, tuple[Item, Record, bytes]] = {}
    for record, (item, blank) in zip(records, blanks, strict=True):
        if item is None:
            if record != blank:
                return False
            continue
        if record.keys() != blank.keys() or any(
            record[name] != blank[name] for name in blank.keys() - set(DRAWN_FIELDS)
        ):
            return False
        if record["error"] is not None:
            if retry_failed:
                return False
            continue
        if known_codes(record, facts) is None or record["file"] != picture_file(shard, item, blank["key"], layout):
            return False
        if layout == "codes" or record["key"] in seen:
            continue
        name = f"{record['key']}.{item.image_format}"
        content = (parts.get(name) if layout == "tar" else storage.read(record["file"])) or b""
        if hashlib.sha256(content).hexdigest() != record["sha256"]:
            return False
        seen[record["key"]] = (item, record, content if layout == "tar" else b"")
    return layout != "tar" or packed == archive(seen.values())


def known_codes(record: Mapping[str, Any], facts: ModelFacts) -> str | None:
    """The codes that a record has, packed, if they are whole and of this model."""
    packed = record.get("codes")
    if not isinstance(packed, str):
        return None
    try:
        codes = unpack_codes(packed)
    except ParameterError:
        return None
    fit = (len(codes), len(codes[0])) == facts.grid and max(map(max, codes)) < facts.codebook_size
    return packed if fit and codes_digest(codes) == record.get("codes_sha256") else None


def members(content: bytes | None) -> dict[str, bytes]:
    """The files of an archive; none of a damaged one."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content or b"")) as archive:
            return {one.name: file.read() for one in archive if (file := archive.extractfile(one)) is not None}
    except (tarfile.TarError, OSError, EOFError):
        return {}


def archive(pictures: Iterable[tuple[Item, Record, bytes]]) -> bytes:
    """Pictures as WebDataset has them: KEY.FORMAT and KEY.json of each. The same pictures give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for item, record, content in pictures:
            names = ("id", "seed", "index", "parameters", "model", "model_digest", "codes")
            metadata = {"captions": [item.prompt]} | {name: record[name] for name in names}
            files = {item.image_format: content, "json": json.dumps(metadata, ensure_ascii=False).encode()}
            for suffix, part in files.items():
                info = tarfile.TarInfo(f"{record['key']}.{suffix}")
                info.size, info.mode = len(part), 0o644
                tar.addfile(info, io.BytesIO(part))
    return buffer.getvalue()


def shares_none(storage: Storage, shards: Iterable[Shard], facts: ModelFacts) -> bool:
    """Whether pictures were committed, and none of them is one of these shards': then the prompts are others."""
    committed = False
    for shard in shards:
        drawn = {record.get("key") for record in read_manifest(storage, shard)[1] if record.get("codes") is not None}
        committed = committed or bool(drawn)
        if any(blank["key"] in drawn for item, blank in blank_records(shard, facts.name, facts.digest) if item):
            return False
    return committed


def merged_records(storage: Storage, shards: Iterable[Shard]) -> Iterator[tuple[Shard, list[Record]]]:
    """Each shard with its committed records. Raises `StorageError` for one that is not committed."""
    for shard in shards:
        digest, records = read_manifest(storage, shard)
        if digest != shard.digest:
            raise StorageError(f"shard {shard.name} is not what was drawn: the prompts were changed meanwhile")
        yield shard, records
