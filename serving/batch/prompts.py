"""Readers of files of prompts: JSONL, CSV, Parquet, plain text, and OpenAI's Batch JSONL. Each yields `Line`s.

Fields are read here and validated in `plan`. A line that cannot be read becomes a `Line` with a fault, and the lines
after it are read as usual. Memory holds a line at a time, or a batch of rows of a Parquet file; and a digest per
custom_id, since each must be unique.
"""

import csv
import dataclasses
import hashlib
import io
import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, TextIO

import fsspec

from dalle.errors import DataError

__all__ = ["Line", "read_prompts"]

MAX_LINE = 2**20
"""Limit on the length of a line, in characters. A longer line is a fault, and is not held in memory."""
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
    readers: dict[str, Callable[[TextIO], Iterator[Line]]] = {
        "jsonl": _read_jsonl,
        "ndjson": _read_jsonl,
        "txt": _read_text,
        "csv": partial(_read_csv, known=known),
    }
    kind = path.rpartition(".")[2].lower()
    if kind != "parquet" and kind not in readers:
        raise DataError(f"{path} has an unknown extension: it must be .jsonl, .csv, .parquet or .txt")
    try:
        if kind == "parquet":
            with fsspec.open(path, "rb") as file:
                yield from _read_parquet(path, file, known)
        else:
            # bytes that are not UTF-8 become lone surrogates, which make the line invalid
            with fsspec.open(path, "r", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                yield from readers[kind](file)
    except DataError:
        raise
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _raw_lines(file: TextIO) -> Iterator[tuple[int, str | None]]:
    """Yield number and content of each line, with its line end; None for a line that is too long."""
    number = 0
    while text := file.readline(MAX_LINE):
        number += 1
        too_long = len(text) == MAX_LINE and text[-1] not in "\r\n"
        while too_long and (more := file.readline(MAX_LINE)) and more[-1] not in "\r\n":
            pass
        yield number, None if too_long else text


def _lines(file: TextIO) -> Iterator[tuple[int, str | None]]:
    """Yield number and stripped content of each line that is not blank; None for a line that is too long."""
    for number, text in _raw_lines(file):
        if text is None or text.strip():
            yield number, text and text.strip()


def _fault_of(text: str | None) -> str | None:
    if text is None:
        return f"the line has more than {MAX_LINE} characters"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "the line is not UTF-8"
    return None


def _read_text(file: TextIO) -> Iterator[Line]:
    for number, text in _lines(file):
        fault = _fault_of(text)
        yield Line(number=number, fault=fault) if fault else Line(number=number, fields={"prompt": text})


def _read_jsonl(file: TextIO) -> Iterator[Line]:
    first_uses: dict[bytes, int] = {}
    for number, text in _lines(file):
        fault = _fault_of(text)
        if fault is not None or text is None:
            yield Line(number=number, fault=fault)
            continue
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield Line(number=number, fault=f"the line is not valid JSON: {error}")
            continue
        if not isinstance(values, dict):
            yield Line(number=number, fault=f"the line is JSON, but not an object: {text[:80]}")
        elif "custom_id" in values or values.keys() == {"method", "url", "body"}:
            yield _openai_line(number, values, first_uses)
        else:
            yield Line(number=number, fields=values)


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


def _read_csv(file: TextIO, known: Sequence[str]) -> Iterator[Line]:
    csv.field_size_limit(MAX_LINE)
    records = _csv_records(file)
    _, header = next(records, (1, []))
    if isinstance(header, str):
        raise DataError(f"the header is not valid CSV: {header}")
    _check_header(header, known)
    for number, cells in records:
        if isinstance(cells, str):
            yield Line(number=number, fault=f"the line is not valid CSV: {cells}")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        fault = _fault_of("".join(cells))
        if len(cells) > len(header):
            fault = f"the line has {len(cells)} cells, but the header has {len(header)}"
        fields = {name: cell for name, cell in zip(header, cells, strict=False) if cell.strip()}
        yield Line(number=number, fault=fault) if fault else Line(number=number, fields=fields)


def _csv_records(file: TextIO) -> Iterator[tuple[int, list[str] | str]]:
    """Yield each record: the number of its first line, and its cells or the error in that line.

    An unclosed quote would turn the rest of the file into one cell. So after an error only the first line is given up,
    and the lines read after it are parsed again.
    """
    lines = _raw_lines(file)
    ahead: deque[tuple[int, str | None]] = deque()
    taken: list[tuple[int, str | None]] = []

    def text_of_next() -> Iterator[str]:
        while line := ahead.popleft() if ahead else next(lines, None):
            taken.append(line)
            if line[1] is None:
                raise csv.Error(_fault_of(None))
            yield line[1]

    while True:
        taken.clear()
        try:
            cells: list[str] | str | None = next(csv.reader(text_of_next(), strict=True), None)
        except csv.Error as error:
            ahead.extendleft(reversed(taken[1:]))
            cells = str(error)
        if cells is None:
            return
        yield taken[0][0], cells


def _read_parquet(path: str, file: io.BufferedIOBase, known: Sequence[str]) -> Iterator[Line]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        table = parquet.ParquetFile(file)
        _check_header(table.schema_arrow.names, known)
        for batch in table.iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                fields = {name: value for name, value in values.items() if not _is_missing(value)}
                yield Line(number=number, fields=fields)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} cannot be read after row {number}: {error}") from error


def _is_missing(value: object) -> bool:
    """Whether a cell is empty: None, or NaN in a column of floats."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _check_header(names: list[str], known: Sequence[str]) -> None:
    if "prompt" not in names:
        raise DataError(f"there is no column 'prompt'; the columns are {', '.join(map(repr, names))}")
    if len(set(names)) < len(names):
        raise DataError(f"column names must be unique; the columns are {', '.join(map(repr, names))}")
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known columns are {', '.join(known)}"
            raise DataError(f"unknown column {name[:80]!r}; {hint}")
