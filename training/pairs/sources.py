"""Pictures with captions in a folder with text files, metadata or tables, or in a CSV, JSONL or Parquet file: the input
of `training.folder`."""

import dataclasses
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow
from pyarrow import parquet

from dalle.errors import DataError
from dalle.tables import Row, csv_rows, decoding, json_rows, parquet_rows
from training.pairs.embedded import embedded_columns, embedded_pictures, find_tables
from training.pairs.found import FoundPicture, is_unicode, lines_of
from training.pairs.imagefolder import chosen_columns, find_metadata, settled, split_of

__all__ = ["PICTURE_SUFFIXES", "find_pictures"]

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
TABLE_SUFFIXES = {".csv", ".jsonl", ".parquet"}


def find_pictures(
    source: Path, *, image_column: str | None = None, caption_column: str | None = None
) -> Iterable[FoundPicture]:
    """The pictures of a source in its order: a folder with a text file beside each picture, with metadata files (see
    `training.pairs.imagefolder`) or with tables that hold pictures (see `training.pairs.embedded`); or a .csv, .jsonl
    or .parquet file with a column for the picture, or its path, and one for its caption. Columns that are None are
    chosen by their names.

    Raises `DataError` for a source that is missing, of another kind or unreadable as a whole; what is wrong with one
    picture or line is its `problem`.
    """
    columns = (image_column, caption_column)
    if source.is_dir():
        unreadable: list[OSError] = []
        files = sorted(
            Path(parent, name) for parent, _, names in os.walk(source, onerror=unreadable.append) for name in names
        )
        found: Iterator[FoundPicture]
        if metadata := find_metadata(files):
            found = _in_imagefolder(source, files, metadata, columns)
        elif tables := find_tables(files):
            found = embedded_pictures(tables, source, image_column=image_column, caption_column=caption_column)
        else:
            found = _in_folder(source, files)
        return itertools.chain(found, _unreadable(source, unreadable))
    if not source.exists():
        raise DataError(f"{source} does not exist")
    if source.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError(f"{source} is neither a folder nor a .csv, .jsonl or .parquet file")
    embedded = embedded_columns(source) if source.suffix.lower() == ".parquet" else []
    if embedded and image_column in (None, *embedded):
        return embedded_pictures([source], source.parent, image_column=image_column, caption_column=caption_column)
    return _in_table(source, chosen_columns(source, *columns))


def _in_folder(folder: Path, files: Sequence[Path]) -> Iterator[FoundPicture]:
    # of two texts that differ in the case of their suffix, the lower case is sorted last and wins
    texts = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt"}
    used = set()
    for path in files:
        if path.suffix.lower() not in PICTURE_SUFFIXES:
            continue
        id, text = _name(path, folder), texts.get(path.with_suffix(""))
        if text is None:
            yield FoundPicture(id, path, [], f"it has no caption: {path.with_suffix('.txt').name} is missing")
            continue
        used.add(text)
        if not (path.is_file() and text.is_file()):
            yield FoundPicture(id, path, [], f"{path.name} or {text.name} is no file, or a link to one that is missing")
            continue
        try:
            content = text.read_bytes()
            captions = lines_of(content.decode(decoding(content[:4])[0]))
        except (OSError, UnicodeDecodeError) as error:
            yield FoundPicture(id, path, [], f"{text.name} cannot be read: {error}; save it as UTF-8")
            continue
        yield FoundPicture(id, path, captions, None if captions else f"it has no caption: {text.name} is empty")
    for text in (path for path in files if path.suffix.lower() == ".txt" and path not in used):
        suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
        yield FoundPicture(_name(text, folder), text, [], f"no picture {text.stem} beside it ({suffixes})")


def _unreadable(folder: Path, faults: Sequence[OSError]) -> Iterator[FoundPicture]:
    for fault in faults:
        path = Path(fault.filename)
        yield FoundPicture(_name(path, folder), path, [], f"the folder cannot be read: {fault.strerror}")


def _in_imagefolder(
    folder: Path, files: Sequence[Path], metadata: Sequence[Path], columns: tuple[str | None, str | None]
) -> Iterator[FoundPicture]:
    found: list[FoundPicture] = []
    named: dict[Path, Path] = {}
    for table in metadata:
        prefix = table.parent.relative_to(folder)
        for one in _in_table(table, chosen_columns(table, *columns)):
            path = Path(os.path.normpath(one.path))
            other = table if one.path == table else named.setdefault(path, table)
            problem = one.problem if other == table else f"{other} names the same picture"
            found.append(dataclasses.replace(one, id=os.path.normpath(prefix / one.id), problem=problem))
    splits = settled([split_of(Path(one.id).parts[:-1]) for one in found])
    for one, split in zip(found, splits, strict=True):
        yield dataclasses.replace(one, split=split)
    for path in files:
        if path.suffix.lower() in PICTURE_SUFFIXES and path not in named:
            yield FoundPicture(_name(path, folder), path, [], "no metadata file names it")


def _name(path: Path, folder: Path) -> str:
    """The path relative to the folder; bytes that are not UTF-8 become replacement characters."""
    return os.fsencode(path.relative_to(folder).as_posix()).decode(errors="replace")


def _in_table(table: Path, columns: tuple[str, str]) -> Iterator[FoundPicture]:
    image_column, caption_column = columns
    pictures: dict[str, list[str]] = {}
    for row in _rows(table, columns):
        where = f"{table.name}, {'row' if table.suffix.lower() == '.parquet' else 'line'} {row.number}"
        picture, text = row.values.get(image_column), row.values.get(caption_column)
        texts = [part for part in (text if isinstance(text, list) else [text]) if isinstance(part, str)]
        problem = row.fault
        if problem is None and (not isinstance(picture, str) or not picture.strip()):
            problem = f"no picture path in {image_column!r}"
        elif problem is None and not all(map(is_unicode, (str(picture), *texts))):
            problem = "it has unpaired surrogates, which are not Unicode characters"
        if problem is not None:
            yield FoundPicture(where, table, [], problem)
            continue
        captions = [caption for part in texts for caption in lines_of(part)]
        known = pictures.setdefault(str(picture).strip(), [])
        known.extend(caption for caption in dict.fromkeys(captions) if caption not in known)
    for picture, captions in pictures.items():
        problem = None if captions else f"it has no caption: {caption_column!r} has no text"
        yield FoundPicture(picture, table.parent / picture, captions, problem)


def _rows(table: Path, columns: tuple[str, str]) -> Iterator[Row]:
    number = 0
    try:
        with open(table, "rb") as file:
            start = file.read(4)
            file.seek(0)
            if table.suffix.lower() == ".parquet":
                for row in parquet_rows(parquet.ParquetFile(file), columns):
                    number = row.number
                    yield row
                return
            encoding, errors = decoding(start)
            text = io.TextIOWrapper(file, encoding, errors, newline="")
            if table.suffix.lower() == ".csv":
                yield from csv_rows(text, columns, is_row=lambda values: _is_picture(table, values[columns[0]]))
            else:
                yield from json_rows(text)
    except DataError as error:
        raise DataError(f"{table}: {error}") from error
    except pyarrow.ArrowException as error:
        raise DataError(f"{table} cannot be read after row {number}: {error}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{table} cannot be read: {error}") from error


def _is_picture(table: Path, name: str) -> bool:
    """Whether a cell names a picture that is there. One with a NUL character does not."""
    try:
        return bool(name.strip()) and (table.parent / name.strip()).is_file()
    except (OSError, ValueError):
        return False
