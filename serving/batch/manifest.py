"""What a batch says about its pictures: a record for each, in a manifest for each shard, and all of them merged.

A shard's manifest is its commit record: it is written when all pictures of the shard are, and a shard without one, or
with one that is not what it should be, is not done. Manifests say what was drawn and nothing about when or by whom, so
that a run that was killed and started again leaves the same bytes as one that was not. Times are in `log.jsonl`.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from dalle.checkpoint import ModelFacts
from dalle.errors import ParameterError
from dalle.receipt import unpack_codes
from serving.batch.plan import Refusal, Row, Shard, picture_key
from serving.batch.storage import Storage, StorageError

__all__ = [
    "Record",
    "blank_records",
    "codes_digest",
    "is_done",
    "known_codes",
    "manifest_name",
    "merged_records",
    "picture_file",
    "read_manifest",
    "write_manifest",
]

Record = dict[str, Any]

NOT_OF_REFUSED = ("negative_prompt", "seed", "index", "parameters", "model", "model_digest", "key")
DRAWN_FIELDS = ("file", "sha256", "codes", "codes_sha256", "software", "error_code", "error")
"""What is known of a picture only when it is drawn."""


def manifest_name(shard: Shard) -> str:
    return f"shards/{shard.name}.jsonl"


def picture_file(shard: Shard, row: Row, key: str, layout: str) -> str | None:
    """Where a picture is, relative to the folder; for `tar` the shard's archive, in which it is KEY.FORMAT."""
    match layout:
        case "files":
            return f"pictures/{key[:2]}/{key}.{row.image_format}"
        case "tar":
            return f"pictures/{shard.name}.tar"
    return None


def blank_records(shard: Shard, model: str, model_digest: str) -> list[tuple[Row | None, Record]]:
    """A record for each picture of a shard, and for each refused line, with all that is known before anything is
    drawn; and the picture's row, None for a refusal."""
    records: list[tuple[Row | None, Record]] = []
    for entry in shard.entries:
        common = {"line": entry.line, "id": entry.id, "prompt": entry.prompt}
        nothing = dict.fromkeys(NOT_OF_REFUSED)
        undrawn = dict.fromkeys(DRAWN_FIELDS)
        if isinstance(entry, Refusal):
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


def write_manifest(storage: Storage, shard: Shard, records: Iterable[Record]) -> None:
    """Commit a shard."""
    header = {"shard": shard.number, "digest": shard.digest}
    lines = (json.dumps(one, ensure_ascii=False) for one in chain([header], records))
    storage.write(manifest_name(shard), ("\n".join(lines) + "\n").encode())


def read_manifest(storage: Storage, shard: Shard) -> tuple[str | None, list[Record]]:
    """The digest of the shard that a manifest is of, and its records as they are; (None, []) if there is none that can
    be read."""
    content = storage.read(manifest_name(shard))
    try:
        header, *records = map(json.loads, (content or b"").decode().splitlines())
        if all(isinstance(one, dict) for one in (header, *records)):
            return header.get("digest"), records
    except (ValueError, RecursionError):
        pass
    return None, []


def is_done(storage: Storage, shard: Shard, facts: ModelFacts, *, layout: str, retry_failed: bool) -> bool:
    """Whether a shard is committed, and all that its manifest says is so: every picture is there, with its digest."""
    digest, records = read_manifest(storage, shard)
    blanks = blank_records(shard, facts.name, facts.digest)
    if digest != shard.digest or len(records) != len(blanks):
        return False
    archive = _members(storage.read(f"pictures/{shard.name}.tar")) if layout == "tar" else {}
    seen: dict[str, str] = {}
    for record, (row, blank) in zip(records, blanks, strict=True):
        if row is None:
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
        if known_codes(record, facts) is None or record["file"] != picture_file(shard, row, blank["key"], layout):
            return False
        if layout == "codes":
            continue
        if record["key"] not in seen:
            name = f"{record['key']}.{row.image_format}"
            content = archive.get(name) if layout == "tar" else storage.read(record["file"])
            seen[record["key"]] = hashlib.sha256(content or b"").hexdigest()
        if seen[record["key"]] != record["sha256"]:
            return False
    return True


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


def _members(content: bytes | None) -> dict[str, bytes]:
    """The files of an archive; none of a damaged one."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content or b"")) as archive:
            return {one.name: file.read() for one in archive if (file := archive.extractfile(one)) is not None}
    except (tarfile.TarError, OSError, EOFError):
        return {}


def merged_records(storage: Storage, shards: Iterable[Shard]) -> Iterator[tuple[Shard, list[Record]]]:
    """Each shard with its committed records. Raises `StorageError` for one that is not committed."""
    for shard in shards:
        digest, records = read_manifest(storage, shard)
        if digest != shard.digest:
            raise StorageError(f"shard {shard.name} is not what was drawn: the prompts were changed meanwhile")
        yield shard, records
