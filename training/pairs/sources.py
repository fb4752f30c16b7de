"""Pictures with captions in a folder with text files, or in a CSV or JSONL file: the input of `training.folder`."""

import csv
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dalle.errors import DataError

__all__ = ["FoundPicture", "find_pictures"]

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


@dataclasses.dataclass(frozen=True)
class FoundPicture:
    """One picture of a source with its captions, or the reason why it gives no pair."""

    id: str
    """The picture's path as the source gives it, or the place of an invalid line."""
    path: Path
    captions: list[str]
    problem: str | None = None
    """Why the picture cannot be used; None if nothing is wrong so far."""


def find_pictures(source: Path, *, image_column: str, caption_column: str) -> Iterable[FoundPicture]:
    """The pictures of a source in its order: a folder with a text file beside each picture, or a .csv or .jsonl file
    with a column for the picture's path and one for its caption.

    Raises `DataError` for a source that is missing, of another kind or unreadable as a whole; what is wrong with one
    picture or line is its `problem`.
    """
    if source.is_dir():
        return _in_folder(source)
    if not source.exists():
        raise DataError(f"{source} does not exist")
    columns = (image_column, caption_column)
    match source.suffix.lower():
        case ".csv":
            return _in_table(source, _csv_rows(source, columns), columns)
        case ".jsonl":
            return _in_table(source, _jsonl_rows(source), columns)
    raise DataError(f"{source} is neither a folder nor a .csv or .jsonl file")


def _in_folder(folder: Path) -> Iterator[FoundPicture]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    texts = {path for path in files if path.suffix == ".txt"}
    used = set()
    for path in files:
        if path.suffix.lower() not in PICTURE_SUFFIXES:
            continue
        id, text = _name(path, folder), path.with_suffix(".txt")
        if text not in texts:
            yield FoundPicture(id, path, [], f"it has no caption: {text.name} is missing")
            continue
        used.add(text)
        try:
            captions = _lines(text.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            yield FoundPicture(id, path, [], f"{text.name} cannot be read as UTF-8: {error}")
            continue
        yield FoundPicture(id, path, captions, None if captions else f"it has no caption: {text.name} is empty")
    for text in sorted(texts - used):
        suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
        yield FoundPicture(_name(text, folder), text, [], f"no picture {text.stem} beside it ({suffixes})")


def _name(path: Path, folder: Path) -> str:
    """The path relative to the folder; bytes that are not UTF-8 become replacement characters."""
    return os.fsencode(path.relative_to(folder).as_posix()).decode(errors="replace")


Row = tuple[int, dict[str, Any] | str]
"""A line number, and the row as a mapping, or a text that says what is wrong with it."""


def _in_table(table: Path, rows: Iterator[Row], columns: tuple[str, str]) -> Iterator[FoundPicture]:
    image_column, caption_column = columns
    pictures: dict[str, list[str]] = {}
    for line, row in rows:
        where = f"{table.name}, line {line}"
        if isinstance(row, str):
            yield FoundPicture(where, table, [], row)
            continue
        picture, text = row.get(image_column), row.get(caption_column)
        if not isinstance(picture, str) or not picture.strip():
            yield FoundPicture(where, table, [], f"no picture path in {image_column!r}")
            continue
        texts = [part for part in (text if isinstance(text, list) else [text]) if isinstance(part, str)]
        if not all(map(_is_unicode, (picture, *texts))):
            yield FoundPicture(where, table, [], "it has unpaired surrogates, which are not Unicode characters")
            continue
        captions = [caption for part in texts for caption in _lines(part)]
        known = pictures.setdefault(picture.strip(), [])
        known.extend(caption for caption in dict.fromkeys(captions) if caption not in known)
    for picture, captions in pictures.items():
        problem = None if captions else f"it has no caption: {caption_column!r} has no text"
        yield FoundPicture(picture, table.parent / picture, captions, problem)


def _csv_rows(table: Path, required: tuple[str, str]) -> Iterator[Row]:
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            for column in required:
                if column not in columns:
                    raise DataError(f"{table} has no column {column!r}; its columns are {', '.join(columns)}")
            for row in reader:
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as CSV in UTF-8: {error}") from error


def _jsonl_rows(table: Path) -> Iterator[Row]:
    try:
        with open(table, encoding="utf-8-sig") as file:
            for line, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                try:
                    row = json.loads(text)
                except ValueError as error:
                    yield line, f"it is not JSON: {error}"
                else:
                    yield line, row if isinstance(row, dict) else "it is not a JSON object"
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table} cannot be read as UTF-8: {error}") from error


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
