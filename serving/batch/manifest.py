"""Manifests: a record per picture and per invalid line, one file per shard.

A shard's manifest is its commit record: it is written after all pictures of the shard, and a shard without a valid
manifest is not done. Manifests have no times and no names of machines, so that a run that was killed and resumed leaves
the same bytes as an unbroken one. Times are in `log.jsonl`.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dalle.checkpoint import ModelFacts
from dalle.errors import ConfigError, ParameterError
from dalle.ranking import Ranking
from dalle.receipt import unpack_codes
from serving.batch.items import Choice, InvalidLine, Item, Shard, picture_key
from serving.batch.storage import Storage, StorageError
from serving.jobs import MODERATION_BLOCKED

__all__ = [
    "Record",
    "archive",
    "blank_records",
    "codes_digest",
    "has_only_other_pictures",
    "is_done",
    "known_codes",
    "known_ranking",
    "manifest_name",
    "members",
    "merged_records",
    "objects",
    "picture_file",
    "read_manifest",
    "to_line",
    "write_manifest",
]

Record = dict[str, Any]

PICTURE_FIELDS = ("negative_prompt", "seed", "index", "parameters", "model", "model_digest", "key")
"""Fields of a record that are known before the picture is drawn; null for an invalid line."""
DRAWN_FIELDS = ("file", "sha256", "codes", "codes_sha256", "step", "software", "error_code", "error")
"""Fields of a record that are known only after the picture is drawn."""
CHOSEN_FIELDS = ("index", "ranking")
"""Fields of the record of an item with candidates that are known only after the choice."""
LINE_SEPARATORS = re.compile("[\x85\u2028\u2029]")


def manifest_name(shard: Shard) -> str:
    return f"shards/{shard.name}.jsonl"


def picture_file(shard: Shard, item: Item, key: str, layout: str) -> str | None:
    """Path of a picture's file, relative to the folder: for `tar` the shard's archive, which has it as KEY.FORMAT; for
    `codes` None."""
    match layout:
        case "files":
            return f"pictures/{key[:2]}/{key}.{item.image_format}"
        case "tar":
            return f"pictures/{shard.name}.tar"
    return None


def blank_records(shard: Shard, model: str, model_digest: str) -> list[tuple[Item | None, Record]]:
    """The shard's records before anything is drawn: one per picture, with its item, and one per invalid line, with
    None. Records of an item with candidates are in the order of the ranks, and have the field `ranking`."""
    records: list[tuple[Item | None, Record]] = []
    for entry in shard.entries:
        common = {"line": entry.line, "id": entry.id, "prompt": entry.prompt}
        nothing = dict.fromkeys(PICTURE_FIELDS)
        undrawn = dict.fromkeys(DRAWN_FIELDS)
        if isinstance(entry, InvalidLine):
            error = {"error_code": entry.code, "error": entry.message}
            records.append((None, {**common, **nothing, **undrawn, **error}))
            continue
        for place in entry.places:
            of_picture = {
                "negative_prompt": entry.negative_prompt,
                "seed": entry.seed,
                "index": place if entry.choice is None else None,
                "parameters": entry.parameters,
                "model": model,
                "model_digest": model_digest,
                "key": picture_key(model_digest, entry, place),
            }
            given = {} if entry.translation is None else {"translation": entry.translation}
            ranking = {} if entry.choice is None else {"ranking": None}
            records.append((entry, {**common, **given, **of_picture, **ranking, **undrawn}))
    return records


def codes_digest(codes: Sequence[Sequence[int]]) -> str:
    """SHA-256 of the codes in row-major order, four bytes each, little-endian."""
    return hashlib.sha256(np.array(codes, dtype="<u4").tobytes()).hexdigest()


def to_line(values: Mapping[str, Any]) -> bytes:
    """A line of JSON in UTF-8. Characters that some programs take for the end of a line are escaped."""
    text = json.dumps(values, ensure_ascii=False)
    return LINE_SEPARATORS.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode() + b"\n"


def objects(content: bytes) -> list[Record]:
    """All lines that are JSON objects. Others are left out: a kill may have cut a line off."""
    found = []
    for line in content.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            one = json.loads(line)
            found += [one] if isinstance(one, dict) else []
    return found


def write_manifest(storage: Storage, shard: Shard, records: Iterable[Record]) -> None:
    """Commit a shard. Raises `StorageError`."""
    lines = b"".join(map(to_line, records))
    header = {"shard": shard.number, "digest": shard.digest, "sha256": hashlib.sha256(lines).hexdigest()}
    storage.write(manifest_name(shard), to_line(header) + lines)


def read_manifest(storage: Storage, shard: Shard) -> tuple[str | None, list[Record]]:
    """The digest of the shard that the manifest was written for, None if the manifest is missing or damaged; and the
    records that can be read."""
    first, _, lines = (storage.read(manifest_name(shard)) or b"").partition(b"\n")
    for header in objects(first):
        if header.get("sha256") == hashlib.sha256(lines).hexdigest():
            return header.get("digest"), objects(lines)
    return None, objects(lines)


def is_done(storage: Storage, shard: Shard, facts: ModelFacts, *, layout: str, retry_failed: bool) -> bool:
    """Whether a shard is committed and intact: every file that its manifest names exists and has that digest."""
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
        drawn = {*DRAWN_FIELDS, *(CHOSEN_FIELDS if item.choice is not None else ())}
        if record.keys() != blank.keys() or any(record[name] != blank[name] for name in blank.keys() - drawn):
            return False
        if record["error"] is not None:
            if retry_failed and record["error_code"] != MODERATION_BLOCKED:  # it would be blocked again
                return False
            continue
        if known_codes(record, facts) is None or record["file"] != picture_file(shard, item, blank["key"], layout):
            return False
        if item.choice is not None and known_ranking(record, item.choice) is None:
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
    """A record's packed codes; None if they are missing or damaged, or do not fit the model."""
    packed = record.get("codes")
    if not isinstance(packed, str):
        return None
    try:
        codes = unpack_codes(packed)
    except ParameterError:
        return None
    fit = (len(codes), len(codes[0])) == facts.grid and max(map(max, codes)) < facts.codebook_size
    return packed if fit and codes_digest(codes) == record.get("codes_sha256") else None


def known_ranking(record: Mapping[str, Any], choice: Choice) -> Ranking | None:
    """The place of a record's picture among these candidates; None if it is missing or of another choice."""
    try:
        ranking = Ranking.from_dict(record["ranking"])
    except (KeyError, TypeError, AttributeError, ConfigError, ParameterError):
        return None
    same = all(getattr(ranking, name) == value for name, value in dataclasses.asdict(choice).items())
    return ranking if same and record["index"] in range(choice.best_of) else None


def members(content: bytes | None) -> dict[str, bytes]:
    """The files in a tar archive, by name; empty for a damaged archive."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content or b"")) as archive:
            return {one.name: file.read() for one in archive if (file := archive.extractfile(one)) is not None}
    except (tarfile.TarError, OSError, EOFError):
        return {}


def archive(pictures: Iterable[tuple[Item, Record, bytes]]) -> bytes:
    """A tar archive in WebDataset's format, with KEY.FORMAT and KEY.json per picture. Deterministic in its bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for item, record, content in pictures:
            names = ("id", "seed", "index", "parameters", "model", "model_digest", "codes")
            metadata = {"captions": [item.prompt]} | {name: record[name] for name in names}
            metadata |= {} if item.choice is None else {"ranking": record["ranking"]}
            files = {item.image_format: content, "json": json.dumps(metadata, ensure_ascii=False).encode()}
            for suffix, part in files.items():
                info = tarfile.TarInfo(f"{record['key']}.{suffix}")
                info.size, info.mode = len(part), 0o644
                tar.addfile(info, io.BytesIO(part))
    return buffer.getvalue()


def has_only_other_pictures(storage: Storage, shards: Iterable[Shard], facts: ModelFacts) -> bool:
    """Whether the folder has committed pictures, and none of them belongs to these shards."""
    committed = False
    for shard in shards:
        drawn = {record.get("key") for record in read_manifest(storage, shard)[1] if record.get("codes") is not None}
        committed = committed or bool(drawn)
        if any(blank["key"] in drawn for item, blank in blank_records(shard, facts.name, facts.digest) if item):
            return False
    return committed


def merged_records(storage: Storage, shards: Iterable[Shard]) -> Iterator[tuple[Shard, list[Record]]]:
    """Yield each shard with its committed records. Raises `StorageError` for a shard that is not committed."""
    for shard in shards:
        digest, records = read_manifest(storage, shard)
        if digest != shard.digest:
            raise StorageError(f"shard {shard.name} is not the one that was drawn: the prompts changed during the run")
        yield shard, records
