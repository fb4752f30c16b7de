"""Make shards of your own pictures with captions: `python -m training.folder SOURCE --out SHARDS`.

SOURCE is one of
- a folder: every picture in it, at any depth, with its captions in a text file of the same name (`cat.jpg`, `cat.txt`)
- a .csv file with a header, or a .jsonl file of objects: a column for the picture's path, relative to the file or
  absolute, and one for its caption. Rows that name the same picture add up.

Every non-empty line of a text is a caption of its own; a .jsonl file may also give a list of captions.
"""

import csv
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from dalle.errors import DataError, ImageError
from dalle.files import atomic_write
from dalle.images import load_image
from training.command import exit_on_mistake
from training.pairs.shard_writer import ShardWriter, encode_webp

__all__ = ["FolderOptions", "Report", "build", "main", "position"]

PAIRS_PER_SHARD = 5000
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
SIZES = range(8, 2049)
PROBLEMS_FILE = "problems.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """Turn pictures with captions into training shards.

    Pictures are cut to their centred square and resized; turned upright where the camera says so; what is
    transparent in them stays so. What cannot be used is listed in SHARDS/problems.jsonl, one line each, and left out.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A folder of pictures with .txt files beside them, or a .csv or .jsonl file of picture paths and captions."""
    out: Path
    """Folder for train-000.tar, train-001.tar, ... and val.tar. It must not hold shards yet."""
    size: int = 128
    """Side of the square pictures in pixels."""
    val_fraction: float = 0.01
    """About this share of the pairs goes to val.tar instead: always the same ones, whatever else is in the source."""
    image_column: str = "image"
    """Column, or key, of the picture's path in a .csv or .jsonl file."""
    caption_column: str = "caption"
    """Column, or key, of the caption."""

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise DataError(f"size is {self.size}; it must be in {SIZES.start}..{SIZES.stop - 1}")
        if not 0 <= self.val_fraction < 1:
            raise DataError(f"val-fraction is {self.val_fraction}; it must be at least 0 and below 1")


@dataclasses.dataclass(frozen=True)
class _Found:
    """What a source says about one picture."""

    id: str
    path: Path
    captions: list[str]
    problem: str | None = None
    """Why there is no pair in it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a source."""

    num_train: int
    num_val: int
    problems: list[dict[str, str]]
    """In the order of the source: `id`, the picture or line, and `problem`, in words."""


def position(id: str) -> float:
    """Where an id stands in [0, 1): a hash, the same everywhere. Pairs are written in this order, the first to val."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:6]) / 2**48


def build(options: FolderOptions) -> Report:
    """Write the shards and the list of problems.

    Raises `DataError` if the source is none of the three kinds, if nothing in it can be used, or if the output folder
    holds shards already. Then no shard is written.
    """
    if held := sorted(options.out.glob("*.tar")):
        raise DataError(f"{options.out} already holds {held[0].name}; choose a new folder, or delete its shards")
    found = list(_found(options))
    shuffled = sorted(range(len(found)), key=lambda number: (position(found[number].id), found[number].id))
    problems_by_number: dict[int, str] = {}
    with (
        ShardWriter(options.out, "train", pairs_per_shard=PAIRS_PER_SHARD) as train,
        ShardWriter(options.out, "val") as val,
    ):
        for key, number in enumerate(tqdm(shuffled, desc="pictures", unit="picture")):
            one = found[number]
            try:
                if one.problem is not None:
                    raise ImageError(one.problem)
                picture = encode_webp(load_image(one.path, size=(options.size, options.size), mode="RGBA"))
            except ImageError as error:
                problems_by_number[number] = str(error)
                continue
            metadata = {"id": one.id, "style": "", "captions": one.captions, "weight": 1.0, "keywords_en": []}
            writer = val if position(one.id) < options.val_fraction else train
            writer.write(f"{key:09d}", picture, metadata)
        problems = [
            {"id": found[number].id, "problem": problems_by_number[number]} for number in sorted(problems_by_number)
        ]
        _write_problems(options.out / PROBLEMS_FILE, problems)
        if not train.num_pairs + val.num_pairs:
            first = f"; the first of {len(problems)} problems: {problems[0]}" if problems else ""
            raise DataError(f"{options.source} has no picture with a caption that can be used{first}")
    return Report(num_train=train.num_pairs, num_val=val.num_pairs, problems=problems)


def _found(options: FolderOptions) -> Iterable[_Found]:
    source = options.source
    if source.is_dir():
        return _in_folder(source)
    if not source.exists():
        raise DataError(f"{source} does not exist")
    match source.suffix.lower():
        case ".csv":
            return _in_table(source, _csv_rows(source, options), options)
        case ".jsonl":
            return _in_table(source, _jsonl_rows(source), options)
    raise DataError(f"{source} is neither a folder nor a .csv or .jsonl file")


def _in_folder(folder: Path) -> Iterator[_Found]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    texts = {path for path in files if path.suffix == ".txt"}
    used = set()
    for path in files:
        if path.suffix.lower() not in PICTURE_SUFFIXES:
            continue
        id, text = _name(path, folder), path.with_suffix(".txt")
        if text not in texts:
            yield _Found(id, path, [], f"it has no caption: {text.name} is missing")
            continue
        used.add(text)
        try:
            captions = _lines(text.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            yield _Found(id, path, [], f"{text.name} cannot be read as UTF-8: {error}")
            continue
        yield _Found(id, path, captions, None if captions else f"it has no caption: {text.name} is empty")
    for text in sorted(texts - used):
        suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
        yield _Found(_name(text, folder), text, [], f"no picture {text.stem} beside it ({suffixes})")


def _name(path: Path, folder: Path) -> str:
    """The path within the folder; what is not UTF-8 in it becomes replacement characters."""
    return os.fsencode(path.relative_to(folder).as_posix()).decode(errors="replace")


Row = tuple[int, dict[str, Any] | str]
"""A line number, and the row by column or what is wrong with it."""


def _in_table(table: Path, rows: Iterator[Row], options: FolderOptions) -> Iterator[_Found]:
    pictures: dict[str, list[str]] = {}
    for line, row in rows:
        where = f"{table.name}, line {line}"
        if isinstance(row, str):
            yield _Found(where, table, [], row)
            continue
        picture, text = row.get(options.image_column), row.get(options.caption_column)
        if not isinstance(picture, str) or not picture.strip():
            yield _Found(where, table, [], f"no picture path in {options.image_column!r}")
            continue
        texts = [part for part in (text if isinstance(text, list) else [text]) if isinstance(part, str)]
        if not all(map(_is_unicode, (picture, *texts))):
            yield _Found(where, table, [], "it has halves of surrogate pairs, which are no characters")
            continue
        captions = [caption for part in texts for caption in _lines(part)]
        known = pictures.setdefault(picture.strip(), [])
        known.extend(caption for caption in dict.fromkeys(captions) if caption not in known)
    for picture, captions in pictures.items():
        problem = None if captions else f"it has no caption: {options.caption_column!r} has no text"
        yield _Found(picture, table.parent / picture, captions, problem)


def _csv_rows(table: Path, options: FolderOptions) -> Iterator[Row]:
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            for column in (options.image_column, options.caption_column):
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


def _write_problems(path: Path, problems: Sequence[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, "".join(json.dumps(problem, ensure_ascii=False) + "\n" for problem in problems))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Exit code 2, after one line on stderr, for a source that cannot be used."""
    with exit_on_mistake():
        options = tyro.cli(FolderOptions, args=arguments, prog="python -m training.folder")
        report = build(options)
    left_out = f"; {len(report.problems)} left out, see {options.out / PROBLEMS_FILE}" if report.problems else ""
    print(f"{report.num_train} pairs for training, {report.num_val} for validation in {options.out}{left_out}")


if __name__ == "__main__":
    main()
