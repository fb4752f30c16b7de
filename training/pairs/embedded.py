"""Pictures inside of tables, as Hugging Face's `datasets` writes them: Parquet files of the hub, and folders that
`Dataset.save_to_disk` or `DatasetDict.save_to_disk` has written.

A picture is a struct with `bytes`, or bytes alone. `train-00000-of-00008.parquet`, `validation-...` and `test-...`, and
folders of these names, are splits. Rows are read one after the other: memory holds a few of them, or a row group of a
Parquet file (100 pictures in those of the hub).
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc, parquet, types

from dalle.errors import DataError
from dalle.tables import Row, parquet_rows
from training.pairs.found import FoundPicture, is_unicode, lines_of
from training.pairs.imagefolder import CAPTION_COLUMN, CAPTION_COLUMNS, IMAGE_COLUMN, only_column, settled, split_of

__all__ = ["embedded_columns", "embedded_pictures", "find_tables"]

STATE, INFO = "state.json", "dataset_info.json"
ROWS_AT_ONCE = 16
BUFFER_BYTES = 2**20
"""Bytes that are read from a Parquet file at once. Without this, pyarrow holds each row group twice."""


class _ArrowStream:
    """A file of `save_to_disk`, with the parts of `pyarrow.parquet.ParquetFile` that `parquet_rows` needs."""

    def __init__(self, path: Path) -> None:
        self._reader = ipc.open_stream(pyarrow.memory_map(str(path)))
        self.schema_arrow = self._reader.schema

    def iter_batches(self, *, batch_size: int, columns: Sequence[str]) -> Iterator[Any]:
        for batch in self._reader:
            chosen = batch.select(list(columns))
            for start in range(0, batch.num_rows, batch_size):
                yield chosen.slice(start, batch_size)


def find_tables(files: Sequence[Path]) -> list[Path]:
    """The tables with pictures among the files of a folder, in their order: those of `save_to_disk`, or else Parquet
    files, if one of them holds pictures. Raises `DataError` for a `state.json` that cannot be read."""
    known = {*files}
    saved: list[Path] = []
    for path in files:
        if path.name == STATE and path.with_name(INFO) in known:
            try:
                names = [one["filename"] for one in json.loads(path.read_text(encoding="utf-8"))["_data_files"]]
                saved += [path.with_name(name) for name in names]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path} is not of datasets.Dataset.save_to_disk: {error!r}") from error
    tables = [path for path in files if path.suffix.lower() == ".parquet"]
    return saved or (tables if any(map(embedded_columns, tables)) else [])


def embedded_columns(table: Path) -> list[str]:
    """The columns of a .parquet or .arrow file that hold pictures; none if it cannot be read."""
    try:
        with _opened(table) as file:
            return [field.name for field in file.schema_arrow if _holds_pictures(field)]
    except DataError:
        return []


def _holds_pictures(field: Any) -> bool:
    kind = field.type
    if types.is_struct(kind):
        return any(_is_bytes(part.type) for part in kind if part.name == "bytes")
    return _is_bytes(kind)


def _is_bytes(kind: Any) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind)


@contextmanager
def _opened(table: Path) -> Iterator[Any]:
    """A table; what is wrong with it in the body is a `DataError`."""
    try:
        if table.suffix.lower() == ".parquet":
            with parquet.ParquetFile(table, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
                yield file
        else:
            yield _ArrowStream(table)
    except DataError as error:
        raise DataError(f"{table}: {error}") from error
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{table} cannot be read: {error}") from error


def embedded_pictures(
    tables: Sequence[Path], folder: Path, *, image_column: str | None, caption_column: str | None
) -> Iterator[FoundPicture]:
    """The pictures of these tables, row by row. Columns that are None are chosen by their names.

    The captions of later rows with the same picture in the same split are added to those of the first one, which has
    been yielded by then. Whether a picture has captions is known only at the end.

    Raises `DataError` for a table that cannot be read, and for one whose columns could be several.
    """
    splits = settled(
        [split_of([*path.relative_to(folder).parts[:-1], *re.split(r"[-_. ]+", path.name)]) for path in tables]
    )
    if len({*splits}) == 1:
        splits = [None] * len(tables)
    known: dict[tuple[str | None, bytes], list[str]] = {}
    for table, split in zip(tables, splits, strict=True):
        columns = _columns(table, image_column, caption_column)
        for row in _rows(table, columns):
            where = f"{table.relative_to(folder).as_posix()}, row {row.number}"
            content, problem = _content(table, row, columns)
            if content is None:
                yield FoundPicture(where, table, [], problem, split)
                continue
            digest = hashlib.sha256(content).digest()
            captions = known.get((split, digest))
            is_new = captions is None
            if captions is None:
                captions = known[split, digest] = []
            captions += [caption for caption in _captions(row, columns[1]) if caption not in captions]
            if is_new:
                yield FoundPicture(where, table, captions, None, split, key=digest.hex(), content=content)


def _columns(table: Path, image_column: str | None, caption_column: str | None) -> tuple[str, str]:
    with _opened(table) as file:
        names, embedded = file.schema_arrow.names, embedded_columns(table)
    texts = [name for name in names if name in CAPTION_COLUMNS]
    return (
        image_column
        or only_column(table, [IMAGE_COLUMN] if IMAGE_COLUMN in embedded else embedded, "--image-column", IMAGE_COLUMN),
        caption_column
        or only_column(
            table, [CAPTION_COLUMN] if CAPTION_COLUMN in names else texts, "--caption-column", CAPTION_COLUMN
        ),
    )


def _rows(table: Path, columns: tuple[str, str]) -> Iterator[Row]:
    with _opened(table) as file:
        yield from parquet_rows(file, columns, at_once=ROWS_AT_ONCE)


def _content(table: Path, row: Row, columns: tuple[str, str]) -> tuple[bytes | None, str | None]:
    """The bytes of a row's picture, or why there are none."""
    if row.fault is not None:
        return None, row.fault
    picture = row.values.get(columns[0])
    content = picture.get("bytes") if isinstance(picture, dict) else picture
    if isinstance(content, bytes) and content:
        return content, None
    if isinstance(picture, dict) and isinstance(name := picture.get("path"), str):
        try:
            return (table.parent / name).read_bytes(), None
        except (OSError, ValueError) as error:
            return None, f"{columns[0]!r} has no bytes, and {name} cannot be read: {error}"
    return None, f"no picture in {columns[0]!r}"


def _captions(row: Row, column: str) -> list[str]:
    text = row.values.get(column)
    parts = [part for part in (text if isinstance(text, list) else [text]) if isinstance(part, str)]
    return list(dict.fromkeys(caption for part in parts if is_unicode(part) for caption in lines_of(part)))
