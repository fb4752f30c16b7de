"""Folders in the layout of Hugging Face's `imagefolder`: metadata files with captions, and folders for splits.

A `metadata.jsonl`, `metadata.csv` or `metadata.parquet` has a column `file_name`, or one that ends with `_file_name`,
with paths relative to its own folder, and a column with the captions. Folders named `train`, `validation` and `test`,
or as `SPLITS` lists, are splits.
"""

import csv
import io
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path

import pyarrow
from pyarrow import parquet

from dalle.errors import DataError
from dalle.tables import decoding, json_rows

__all__ = [
    "CAPTION_COLUMN",
    "CAPTION_COLUMNS",
    "IMAGE_COLUMN",
    "chosen_columns",
    "find_metadata",
    "only_column",
    "settled",
    "split_of",
]

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SPLITS = {
    **dict.fromkeys(("train", "training"), "training"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Names of folders and files, and the splits that they are."""
FILE_NAME = "file_name"
IMAGE_COLUMN, CAPTION_COLUMN = "image", "caption"
CAPTION_COLUMNS = ("text", "captions", "prompt", "description")
"""Columns that hold captions where there is none of the name `caption`."""
SAMPLED_LINES = 100


def find_metadata(files: Sequence[Path]) -> list[Path]:
    """The metadata files among these files, in their order. Raises `DataError` for two in one folder."""
    found = [path for path in files if path.name in METADATA]
    for one, other in pairwise(found):
        if one.parent == other.parent:
            raise DataError(f"{one.parent} has both {one.name} and {other.name}; keep the one that is to be read")
    return found


def split_of(words: Sequence[str]) -> str:
    """The split that the first of these words names, if any of them does: `training`, `validation` or `test`. What is
    in none is for training."""
    return next((SPLITS[word] for word in words if word in SPLITS), "training")


def settled(splits: Sequence[str]) -> list[str | None]:
    """The splits, with tests for validation if nothing else is. All are None if there are no splits but one for
    training."""
    if {*splits} <= {"training"}:
        return [None] * len(splits)
    return ["validation" if split == "test" and "validation" not in splits else split for split in splits]


def chosen_columns(table: Path, image_column: str | None, caption_column: str | None) -> tuple[str, str]:
    """The columns of a .csv, .jsonl or .parquet file with the picture's path and the caption; given ones are kept.

    Otherwise the path is in `image` or `file_name`, in a metadata file in `file_name`, or in the only column whose name
    ends with `_file_name`; and the caption is in `caption`, or in the only column of `CAPTION_COLUMNS`. Raises
    `DataError` if several could be meant.
    """
    if image_column is not None and caption_column is not None:
        return image_column, caption_column
    try:
        names = _names(table)
    except (pyarrow.ArrowException, OSError, ValueError, csv.Error):
        names = []  # the reader of the table says what is wrong
    files = [name for name in names if name == FILE_NAME or name.endswith(f"_{FILE_NAME}")]
    first = [FILE_NAME, IMAGE_COLUMN] if table.name in METADATA else [IMAGE_COLUMN, FILE_NAME]
    texts = [name for name in names if name in CAPTION_COLUMNS]
    return (
        image_column
        or only_column(table, [name for name in first if name in names][:1] or files, "--image-column", first[0]),
        caption_column
        or only_column(
            table, [CAPTION_COLUMN] if CAPTION_COLUMN in names else texts, "--caption-column", CAPTION_COLUMN
        ),
    )


def only_column(table: Path, names: Sequence[str], option: str, default: str) -> str:
    """The only one of these columns, or the default if there are none. Raises `DataError` if there are several."""
    if len(names) > 1:
        listed = " and ".join(map(repr, names))
        raise DataError(f"{table} has the columns {listed}; choose one with {option}")
    return names[0] if names else default


def _names(table: Path) -> list[str]:
    """The columns of a table, or the keys of its first objects."""
    if table.suffix.lower() == ".parquet":
        return list(parquet.read_schema(table).names)
    with open(table, "rb") as file:
        encoding, errors = decoding(file.read(4))
        file.seek(0)
        text = io.TextIOWrapper(file, encoding, errors, newline="")
        if table.suffix.lower() == ".csv":
            return next(csv.reader(text), [])
        return list(dict.fromkeys(name for row in islice(json_rows(text), SAMPLED_LINES) for name in row.values))
