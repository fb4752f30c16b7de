"""Merges the manifests of all shards into the results: Parquet and JSONL, invalid lines, and OpenAI's result files.

All results are written anew at the end of every run, as a stream. They depend only on the shards' manifests and on the
prompts.
"""

import base64
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import groupby
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from dalle.receipt import unpack_codes
from serving.batch.items import InvalidLine, Item, Shard
from serving.batch.manifest import Record, members, merged_records, to_line
from serving.batch.storage import Storage, StorageError
from serving.errors import ApiError
from serving.jobs import MODERATION_BLOCKED
from serving.responses import ImageData, ImagesResponse, InputTokens, OutputTokens, Timing, TranslationCard, Usage

__all__ = ["OPENAI_ERRORS", "OPENAI_OUTPUT", "REFUSED_FILE", "Counts", "merge"]

REFUSED_FILE = "refused.jsonl"
OPENAI_OUTPUT, OPENAI_ERRORS = "openai_output.jsonl", "openai_errors.jsonl"
Archive = Callable[[str], dict[str, bytes]]
"""A function from an archive's name to the files in it, by name."""
ROW_GROUP = 8192
SCHEMA = pa.schema(
    [
        ("line", pa.int64()),
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),
        ("index", pa.int64()),
        ("parameters", pa.string()),  # JSON
        ("model", pa.string()),
        ("model_digest", pa.string()),
        ("key", pa.string()),
        ("file", pa.string()),
        ("sha256", pa.string()),
        ("codes", pa.string()),
        ("codes_sha256", pa.string()),
        ("step", pa.string()),
        ("software", pa.string()),
        ("error_code", pa.string()),
        ("error", pa.string()),
    ]
)
PLACE = [pa.field("rank", pa.int64()), pa.field("score", pa.float64())]
"""Columns of a batch with candidates."""


@dataclasses.dataclass(kw_only=True)
class Counts:
    """Counts over all records."""

    num_drawn: int = 0
    num_invalid: int = 0
    """Number of invalid lines."""
    num_failed: int = 0
    """Number of pictures that could not be drawn."""
    num_blocked: int = 0
    """Number of pictures that the safety checks block."""
    openai_files: list[str] = dataclasses.field(default_factory=list)
    """Names of the result files in OpenAI's format; empty if no item has that format."""

    @property
    def num_refused(self) -> int:
        """Number of records with an error."""
        return self.num_invalid + self.num_failed + self.num_blocked


def merge(storage: Storage, shards: Iterable[Shard], *, candidates: bool = False) -> Counts:
    """Write all result files; `manifest.parquet` has the columns `rank` and `score` if any item has candidates. Every
    shard must be committed. Raises `StorageError`."""
    counts = Counts()
    schema = pa.schema([*SCHEMA, *PLACE]) if candidates else SCHEMA
    openai_lines = {OPENAI_OUTPUT: 0, OPENAI_ERRORS: 0}
    with ExitStack() as files:
        names = ("manifest.jsonl", "manifest.parquet", REFUSED_FILE, OPENAI_OUTPUT, OPENAI_ERRORS)
        streams = {name: files.enter_context(storage.replace(name)) for name in names}
        writer = files.enter_context(parquet.ParquetWriter(streams["manifest.parquet"], schema))
        group: list[Record] = []
        number = -1
        for shard, records in merged_records(storage, shards):
            number = shard.number
            for record in records:
                line = to_line(record)
                streams["manifest.jsonl"].write(line)
                if record["error"] is not None:
                    streams[REFUSED_FILE].write(line)
                counts.num_invalid += record["key"] is None
                blocked = record["key"] is not None and record["error_code"] == MODERATION_BLOCKED
                counts.num_blocked += blocked
                counts.num_failed += record["key"] is not None and record["error"] is not None and not blocked
                counts.num_drawn += record["error"] is None
                parameters = json.dumps(record["parameters"]) if record["parameters"] is not None else None
                place = {name: (record.get("ranking") or {}).get(name) for name in ("rank", "score")}
                group.append(record | place | {"parameters": parameters})
                if len(group) == ROW_GROUP:
                    writer.write_table(pa.Table.from_pylist(group, schema))
                    group = []
            for name, result in _openai_results(storage, shard, records):
                streams[name].write(to_line(result))
                openai_lines[name] += 1
        writer.write_table(pa.Table.from_pylist(group, schema))
    if not counts.num_refused:
        storage.remove(REFUSED_FILE)
    for name, num_lines in openai_lines.items():
        if num_lines:
            counts.openai_files.append(name)
        else:
            storage.remove(name)
    _remove_beyond(storage, number)
    return counts


def _remove_beyond(storage: Storage, last: int) -> None:
    """Remove manifests and archives of shards after the last one, left by an earlier run with more shards."""
    for folder, suffix in (("shards", ".jsonl"), ("pictures", ".tar")):
        for name in storage.list(folder):
            number = name.removesuffix(suffix)
            # files with any other name were not written by a batch
            if name.endswith(suffix) and re.fullmatch("[0-9]{6,18}", number) and int(number) > last:
                storage.remove(f"{folder}/{name}")


def _openai_results(storage: Storage, shard: Shard, records: list[Record]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the lines of OpenAI's result files, each after the name of its file."""
    by_line = {line: list(group) for line, group in groupby(records, lambda record: record["line"])}
    archive = functools.cache(lambda name: members(storage.read(name)))
    for entry in shard.entries:
        if entry.openai is None:
            continue
        drawn = by_line[entry.line]
        failed = next((record for record in drawn if record["error"] is not None), None)
        if isinstance(entry, InvalidLine):
            error = ApiError(400, entry.message, code=entry.code, param=entry.param)
            yield OPENAI_ERRORS, _openai_line(shard, entry, 400, error.body)
        elif failed is not None:
            blocked = failed["error_code"] == MODERATION_BLOCKED
            error = ApiError(400 if blocked else 500, failed["error"], code=failed["error_code"])
            yield OPENAI_ERRORS, _openai_line(shard, entry, error.status, error.body)
        else:
            yield OPENAI_OUTPUT, _openai_line(shard, entry, 200, _response_body(storage, entry, drawn, archive))


def _openai_line(shard: Shard, entry: Item | InvalidLine, status: int, body: dict[str, Any]) -> dict[str, Any]:
    name = f"batch_req_{shard.name}_{entry.line}"
    return {
        "id": name,
        "custom_id": entry.id,
        "response": {"status_code": status, "request_id": name, "body": body},
        "error": None,
    }


def _response_body(storage: Storage, item: Item, records: list[Record], archive: Archive) -> dict[str, Any]:
    """The body of the service's response to the same request, without times, and with paths in place of URLs."""
    options = item.openai or {}
    data: list[ImageData] = []
    translation = TranslationCard.of(item.translated)
    for record in records:
        codes = [list(ids) for ids in unpack_codes(record["codes"])]
        one = ImageData(seed=item.seed, index=record["index"], codes=codes if options["return_codes"] else None)
        if record.get("ranking") is not None:
            one.score, one.rank = record["ranking"]["score"], record["ranking"]["rank"]
        if record["file"] is not None and options["response_format"] == "url":
            one.url = record["file"]
        elif record["file"] is not None:
            one.b64_json = base64.b64encode(_content(storage, item, record, archive)).decode()
        one.revised_prompt = None if translation is None else translation.drawn_prompt
        data.append(one)
    num_codes, text = sum(map(len, codes)) * len(records), options["num_text_tokens"]
    body = ImagesResponse(
        created=0,
        id=records[0]["key"],
        model=options["model"] or records[0]["model"],
        data=data,
        background=item.background,
        output_format=item.image_format,
        size=options["size"],
        enlargement=item.enlargement if item.enlargement > 1 else None,
        candidates=None if item.choice is None else item.choice.best_of,
        rerank=None if item.choice is None else item.choice.rerank,
        clip=None if item.choice is None else item.choice.clip,
        translation=translation,
        warnings=None if item.translated.warning is None else [item.translated.warning],
        safety_identifier=options["safety_identifier"],
        seed=item.seed,
        system_fingerprint=f"fp_{records[0]['model_digest'][:12]}",
        usage=Usage(
            input_tokens=text,
            input_tokens_details=InputTokens(text_tokens=text, image_tokens=0),
            output_tokens=num_codes,
            output_tokens_details=OutputTokens(image_tokens=num_codes),
            total_tokens=text + num_codes,
        ),
        timing=Timing(queue=0, estimate=0, total=0),
    )
    return body.model_dump(mode="json", exclude_none=True, exclude={"timing", "quality"})


def _content(storage: Storage, item: Item, record: Record, archive: Archive) -> bytes:
    """The content of a picture's file. Raises `StorageError` if it has changed since it was committed."""
    name = record["file"]
    content = archive(name).get(f"{record['key']}.{item.image_format}") if name.endswith(".tar") else storage.read(name)
    if content is None or hashlib.sha256(content).hexdigest() != record["sha256"]:
        raise StorageError(f"{name} in {storage} is missing or damaged: it has changed since it was written")
    return content
