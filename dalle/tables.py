"""Rows of tables, for training's captions and for batches' prompts: CSV, JSONL and Parquet, and lines of plain text.

A row that cannot be read becomes a `Row` with a fault, and the rows after it are read as usual. Text is UTF-8, or
UTF-16 or UTF-32 as programs of Windows write them. Index columns that pandas writes are left out. Memory holds a row at
a time, or a batch of rows of a Parquet file.
"""

import codecs
import csv
import dataclasses
import json
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, TextIO

from dalle.errors import DataError

__all__ = ["MAX_LINE", "Row", "csv_rows", "decoding", "json_rows", "parquet_rows", "text_rows"]

MAX_LINE = 2**20
"""Limit on the length of a line, in characters. A longer line is a fault, and is not held in memory."""
MAX_DEPTH = 100
"""Limit on the nesting of a line of JSON. It lies far below that of Python's stack, by which the same line could be
read in one place and rejected in another."""
SNIFFED_BYTES = 4
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark begins it
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks, and the encodings that they announce."""
STRINGS_AND_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
WITHOUT_NAME = re.compile(r"Unnamed: \d+(\.\d+)*")
"""The name that pandas gives to a column of a CSV file without a name, such as an index that was written before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table, or the reason why it cannot be read."""

    number: int
    """Number of the row's first line in the file, from 1, as editors count; in Parquet the number of the row."""
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Values by column, without empty cells."""
    fault: str | None = None
    """Why the row cannot be read; None if it can."""


def decoding(start: bytes) -> tuple[str, str]:
    """The encoding of a text that begins with these bytes, at least four if there are so many, and the error handler
    with which bytes that are not in this encoding become lone surrogates, which the readers here report."""
    for mark, encoding in MARKS.items():
        if start.startswith(mark):
            return encoding, "surrogatepass"
    zeros = [byte == 0 for byte in start[:SNIFFED_BYTES]]
    if zeros == [False, True, False, True]:
        return "utf-16-le", "surrogatepass"
    if zeros == [True, False, True, False]:
        return "utf-16-be", "surrogatepass"
    return "utf-8-sig", "surrogateescape"


def text_rows(file: TextIO, column: str) -> Iterator[Row]:
    """Yield each line of a text that is not blank, without the white space around it, as the value of `column`."""
    for number, text in _raw_lines(file):
        if text is None or text.strip():
            fault = _fault_of(text, file)
            values = {column: text.strip()} if text is not None and fault is None else {}
            yield Row(number=number, values=values, fault=fault)


def json_rows(file: TextIO) -> Iterator[Row]:
    """Yield the object in each line of a text that is not blank."""
    for row in text_rows(file, "json"):
        if row.fault is not None:
            yield row
            continue
        text = row.values["json"]
        if (depth := _depth(text)) > MAX_DEPTH:
            fault = f"the line is not valid JSON: it is nested {depth} levels deep; the limit is {MAX_DEPTH}"
            yield Row(number=row.number, fault=fault)
            continue
        try:
            values = json.loads(text)
        except ValueError as error:
            yield Row(number=row.number, fault=f"the line is not valid JSON: {error}")
            continue
        if isinstance(values, dict):
            yield Row(number=row.number, values=values)
        else:
            yield Row(number=row.number, fault=f"the line is JSON, but not an object: {text[:80]}")


def _depth(text: str) -> int:
    """Number of levels that arrays and objects are nested in a line of JSON; 0 if there are too few brackets for the
    limit."""
    depth = deepest = 0
    if text.count("[") + text.count("{") > MAX_DEPTH:
        for found in STRINGS_AND_BRACKETS.finditer(text):
            depth += (found[0] in ("[", "{")) - (found[0] in ("]", "}"))
            deepest = max(deepest, depth)
    return deepest


def csv_rows(
    file: TextIO,
    required: Sequence[str],
    known: Sequence[str] | None = None,
    *,
    is_row: Callable[[dict[str, str]], bool] = lambda _: False,
) -> Iterator[Row]:
    """Yield the rows of a CSV file with a header, which was opened with newline="". Blank rows are left out.

    required: columns that the header must have. known: columns that it may have; None: any others, too.
    is_row: whether values by column are surely a row of their own. A quote that would take such a line into its cell
        counts as not closed.
    Raises `DataError` for an invalid header.
    """
    csv.field_size_limit(MAX_LINE)
    header: list[str] | str = []
    records = _csv_records(
        file, lambda cells: len(cells) == len(header) and is_row(dict(zip(header, cells, strict=True)))
    )
    _, header = next(records, (1, []))
    if isinstance(header, str):
        raise DataError(f"the header is not valid CSV: {header}")
    index = _index_width(header)
    _check_columns([name for name in header[index:] if name.strip()], required, known)
    for number, cells in records:
        if isinstance(cells, str):
            yield Row(number=number, fault=f"the line is not valid CSV: {cells}")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        fault = _fault_of("".join(cells), file)
        if any(cell.strip() for cell in cells[len(header) :]):
            fault = f"the line has {len(cells)} cells, but the header has {len(header)}"
        values = {}
        for name, cell in list(zip(header, cells, strict=False))[index:]:
            if cell.strip() and not name.strip():
                if known is None:
                    continue
                fault = f"the cell {cell[:80]!r} is in a column without a name"
            elif cell.strip():
                values[name] = cell
        yield Row(number=number, fault=fault) if fault else Row(number=number, values=values)


def parquet_rows(
    file: Any, required: Sequence[str], known: Sequence[str] | None = None, *, at_once: int = 1024
) -> Iterator[Row]:
    """Yield the rows of a `pyarrow.parquet.ParquetFile`, which is an argument so that this library works without
    pyarrow. Arguments and errors are those of `csv_rows`, and the errors of pyarrow. at_once: rows that are in memory
    at the same time.

    A named index of pandas is a column like others where it is known, and left out otherwise.
    """
    index = (file.schema_arrow.pandas_metadata or {}).get("index_columns", [])
    names = file.schema_arrow.names[_index_width(file.schema_arrow.names) :]
    names = [name for name in names if name not in index or (name in known if known is not None else name in required)]
    _check_columns(names, required, known)
    number = 0
    for batch in file.iter_batches(batch_size=at_once, columns=names if known is not None else list(required)):
        for values in _batch_values(batch):
            number += 1
            if isinstance(values, str):
                yield Row(number=number, fault=f"the row has a value that cannot be read: {values}")
            else:
                yield Row(number=number, values={name: cell for name, cell in values.items() if not _is_missing(cell)})


def _batch_values(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch of pyarrow as mappings; the reason instead of a row that cannot be converted."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for place in range(batch.num_rows):
            try:
                yield from batch.slice(place, 1).to_pylist()
            except (ValueError, OverflowError) as error:
                yield str(error)


def _index_width(names: Sequence[str]) -> int:
    """The number of columns without a name that a table begins with: the index, written by pandas."""
    return next((i for i, name in enumerate(names) if name.strip() and not WITHOUT_NAME.fullmatch(name)), len(names))


def _raw_lines(file: TextIO) -> Iterator[tuple[int, str | None]]:
    """Yield number and content of each line, with its line end; None for a line that is too long."""
    number = 0
    while text := file.readline(MAX_LINE):
        number += 1
        too_long = len(text) == MAX_LINE and text[-1] not in "\r\n"
        while too_long and (more := file.readline(MAX_LINE)) and more[-1] not in "\r\n":
            pass
        yield number, None if too_long else text


def _fault_of(text: str | None, file: TextIO) -> str | None:
    if text is None:
        return f"the line has more than {MAX_LINE} characters"
    if any("\ud800" <= character <= "\udfff" for character in text):
        encoding = "UTF-8" if file.encoding.startswith("utf-8") else file.encoding[:6].upper()
        return f"the line is not {encoding}"
    return None


def _csv_records(file: TextIO, is_row: Callable[[list[str]], bool]) -> Iterator[tuple[int, list[str] | str]]:
    """Yield each record: the number of its first line, and its cells or the error in that line.

    An unclosed quote would turn the rest of the file, or what is before a later quote, into one cell. So after an error
    only the first line is given up, and the lines read after it are parsed again. is_row: as in `csv_rows`, of the
    cells of a line.
    """
    lines = _raw_lines(file)
    ahead: deque[tuple[int, str | None]] = deque()
    taken: list[tuple[int, str | None]] = []

    def text_of_next() -> Iterator[str]:
        while line := ahead.popleft() if ahead else next(lines, None):
            taken.append(line)
            if line[1] is None:
                raise csv.Error(_fault_of(None, file))
            yield line[1]

    while True:
        taken.clear()
        try:
            cells: list[str] | str | None = next(csv.reader(text_of_next(), strict=True), None)
            if any(is_row(next(csv.reader([text or ""]), [])) for _, text in taken[1:]):
                raise csv.Error
        except csv.Error as error:
            ahead.extendleft(reversed(taken[1:]))
            is_open = len(taken) > 1 or "end of data" in str(error)
            cells = "a quote is opened and not closed" if is_open else str(error)
        if cells is None:
            return
        yield taken[0][0], cells


def _is_missing(value: object) -> bool:
    """Whether a cell is empty: None, or NaN in a column of floats."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _check_columns(names: list[str], required: Sequence[str], known: Sequence[str] | None) -> None:
    listed = ", ".join(repr(name[:80]) for name in names)
    for name in required:
        if name not in names:
            hint = "; cells must be separated by commas" if len(names) == 1 and re.search("[;\t]", names[0]) else ""
            raise DataError(f"there is no column {name!r}; the columns are {listed}{hint}")
    checked = names if known is not None else [name for name in names if name in required]
    if len(set(checked)) < len(checked):
        raise DataError(f"column names must be unique; the columns are {listed}")
    for name in checked if known is not None else []:
        if name not in (known or ()):
            near = get_close_matches(name, known or (), 1)
            hint = f"did you mean {near[0]}?" if near else f"known columns are {', '.join(known or ())}"
            raise DataError(f"unknown column {name[:80]!r}; {hint}")
