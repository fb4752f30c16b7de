"""Readers of files of prompts: JSONL, CSV, Parquet, plain text, and OpenAI's Batch JSONL. Each yields `Line`s.

Fields are read here, by `dalle.tables`, and validated in `plan`. A line that cannot be read becomes a `Line` with a
fault, and the lines after it are read as usual. Memory holds a line at a time, or a batch of rows of a Parquet file;
and a digest per custom_id, since each must be unique.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import fsspec

from dalle.errors import DataError
from dalle.tables import Row, csv_rows, decoding, json_rows, parquet_rows, text_rows

__all__ = ["Line", "read_prompts"]

KINDS = {"jsonl", "ndjson", "csv", "parquet", "txt"}
OPENAI_URL = "/v1/images/generations"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the file: its fields, or why it cannot be read."""

    number: int
    """Line number in the file, from 1, as editors count; in Parquet the number of the row."""
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of a body of `POST /v1/images/generations`, and `id`. Not validated yet."""
    fault: str | None = None
    """Why the line cannot be read; None if it can."""
    openai: bool = False
    """Whether the line has OpenAI's Batch format. Its result is then written in that format, too."""


def read_prompts(path: str, known: Sequence[str]) -> Iterator[Line]:
    """Yield the lines of a file, given by path or URL. Blank lines are left out.

    known: names that columns of CSV and Parquet may have.
    Raises `DataError` for a file that cannot be read, has an unknown extension, or has an invalid header.
    """
    kind = path.rpartition(".")[2].lower()
    if kind not in KINDS:
        raise DataError(f"{path} has an unknown extension: it must be .jsonl, .csv, .parquet or .txt")
    try:
        with fsspec.open(path, "rb") as file:
            if kind == "parquet":
                yield from _read_parquet(file, known)
                return
            encoding, errors = decoding(file.read(4))
        with fsspec.open(path, "r", encoding=encoding, errors=errors, newline="") as file:
            match kind:
                case "txt":
                    yield from map(_line, text_rows(file, "prompt"))
                case "csv":
                    yield from map(_line, csv_rows(file, ["prompt"], known))
                case _:
                    yield from _read_jsonl(json_rows(file))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _read_jsonl(rows: Iterator[Row]) -> Iterator[Line]:
    first_uses: dict[bytes, int] = {}
    for row in rows:
        values = row.values
        if "custom_id" in values or values.keys() == {"method", "url", "body"}:
            yield _openai_line(row.number, values, first_uses)
        else:
            yield _line(row)


def _openai_line(number: int, values: dict[str, Any], first_uses: dict[bytes, int]) -> Line:
    """Read a request of OpenAI's Batch format. first_uses: digest of each custom_id so far -> number of its line;
    results are matched by custom_id, so a second use is a fault."""
    name, body = values.get("custom_id"), values.get("body")
    identity: dict[str, Any] = {"id": name}
    if not name or not isinstance(name, str):
        fault = "the request has no custom_id, or one that is not a text"
    elif (first := first_uses.setdefault(_digest(name), number)) != number:
        fault = f"the custom_id is already used in line {first}"
    elif values.get("method") != "POST" or values.get("url") != OPENAI_URL:
        asked = f"{values.get('method')} {values.get('url')}"
        fault = f"the request is {asked[:80]!r}; it must be 'POST {OPENAI_URL}'"
    elif not isinstance(body, dict):
        fault = "the request has no body"
    elif unknown := sorted(values.keys() - {"custom_id", "method", "url", "body"}):
        fault = f"the request has unknown keys: {', '.join(map(str, unknown))[:80]}"
    else:
        return Line(number=number, fields={**body, **identity}, openai=True)
    return Line(number=number, fields=identity, fault=fault, openai=True)


def _digest(text: str) -> bytes:
    """A digest of 8 bytes: keeping the texts themselves would take too much memory."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8]


def _read_parquet(file: BinaryIO, known: Sequence[str]) -> Iterator[Line]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for row in parquet_rows(parquet.ParquetFile(file), ["prompt"], known):
            number = row.number
            yield _line(row)
    except pyarrow.ArrowException as error:
        raise ValueError(f"after row {number}: {error}") from error


def _line(row: Row) -> Line:
    return Line(number=row.number, fields=row.values, fault=row.fault)
