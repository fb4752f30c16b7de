"""Build shards from your own pictures with captions: `python -m training.folder SOURCE --out SHARDS`.

SOURCE is one of
- a folder: every picture in it, at any depth, with its captions in a text file of the same name (`cat.jpg`, `cat.txt`)
- a folder in the layout of Hugging Face's `imagefolder`: `metadata.jsonl`, `.csv` or `.parquet` with a column
  `file_name` and one for the caption; pictures in folders `train`, `validation` and `test` stay apart
- a data set of Hugging Face's `datasets`: a folder of Parquet files that hold the pictures, as the hub has them, or a
  folder that `save_to_disk` has written; its splits stay apart
- a .csv file with a header, a .jsonl file of objects, or a .parquet file: a column for the picture's path, absolute or
  relative to the file (in Parquet also for the picture itself), and a column for its caption

The captions of rows with the same picture are joined.

Every non-empty line of a text is a caption of its own; .jsonl and .parquet files may also give a list of captions.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm

from dalle.errors import DataError, ImageError
from dalle.files import check_output
from dalle.images import load_image
from training.command import exit_on_mistake, parse
from training.next_step import after_folder
from training.pairs.found import FoundPicture
from training.pairs.problems import PROBLEMS_FILE, Problem, why_foreign, write_problems
from training.pairs.shard_writer import ShardWriter, encode_webp
from training.pairs.sources import find_pictures
from training.pairs.spool import Spool
from training.run_folder import locked

__all__ = ["FolderOptions", "Report", "build", "main", "position", "summary"]

PAIRS_PER_SHARD = 5000
SIZES = range(8, 2049)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """Build picture-caption shards for training from your own pictures.

    Pictures are rotated as their EXIF orientation says, cropped to the centred square and resized; transparency is
    kept. Pictures and lines that cannot be used are skipped and listed in problems.jsonl in the output folder.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A folder of pictures with .txt files beside them or with metadata (Hugging Face's imagefolder); a data set of
    `datasets` (a folder of Parquet files with pictures, or of `save_to_disk`); or a .csv, .jsonl or .parquet file of
    picture paths and captions."""
    out: Path
    """Output folder for train-000.tar, train-001.tar, ... and val.tar. It must not hold shards yet."""
    size: int = 128
    """Side of the square pictures in pixels."""
    val_fraction: float = 0.01
    """Share of the pairs, approximately, that are written to val.tar for validation; 0 for none. A hash of its path
    decides for each pair, so the choice does not depend on the rest of the source. Where the hashes leave training or
    validation without a pair, it gets the one that is nearest. A source with splits of its own keeps them."""
    image_column: str | None = None
    """Column of a table, or key of a .jsonl file, with the picture or its path. None: `image` or `file_name`, or the
    only column of a data set that holds pictures."""
    caption_column: str | None = None
    """Column of a table, or key of a .jsonl file, with the caption. None: `caption`, or the only one of
    `text`, `captions`, `prompt` and `description`."""

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise DataError(f"size is {self.size}; it must be in {SIZES.start}..{SIZES.stop - 1}")
        if not 0 <= self.val_fraction < 1:
            raise DataError(f"val-fraction is {self.val_fraction}; it must be at least 0 and below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The result of a build: numbers of pairs, and the problems."""

    num_train: int
    num_val: int
    num_test: int = 0
    """Pairs in test.tar, which is written for a source with splits for both validation and tests."""
    moved_to: Literal["training", "validation"] | None = None
    """The split that got a pair in spite of its hash, as it would have been empty."""
    problems: list[Problem]
    """One for each skipped picture or line, in the order of the source."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Item:
    """A picture of the source, and its place in the spool if it is there."""

    picture: FoundPicture
    place: tuple[int, int] | None = None


def position(id: str) -> float:
    """Position of an id in [0, 1), from its hash. Pairs are written in this order; the first ones are for
    validation."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:6]) / 2**48


def build(options: FolderOptions) -> Report:
    """Write the shards and the list of problems.

    Raises `DataError`, without writing a shard, if the source is none of these kinds, if nothing in it can be used,
    or if the output folder already holds shards.
    """
    if held := sorted(options.out.glob("*.tar")):
        raise DataError(f"{options.out} already holds {held[0].name}; choose a new folder, or delete its shards")
    check_output(options.out / PROBLEMS_FILE, "a list of problems", why_foreign, overwrite=True)
    with Spool(options.out) as spool:
        found = list(_spooled(options, spool))
        return _write(found, spool, options)


def _spooled(options: FolderOptions, spool: Spool) -> Iterator[_Item]:
    """The pictures of the source; those inside of tables are encoded and put into the spool."""
    columns = {"image_column": options.image_column, "caption_column": options.caption_column}
    for one in tqdm(find_pictures(options.source, **columns), desc="find pictures", unit="picture", leave=False):
        if one.content is None:
            yield _Item(one)
            continue
        kept = dataclasses.replace(one, content=None)
        try:
            yield _Item(kept, spool.add(_encoded(one.content, options.size)))
        except ImageError as error:
            yield _Item(dataclasses.replace(kept, problem=str(error)))


def _encoded(source: Path | bytes, size: int) -> bytes:
    return encode_webp(load_image(source, size=(size, size), mode="RGBA"))


def _write(found: Sequence[_Item], spool: Spool, options: FolderOptions) -> Report:
    positions = [position(one.picture.key or one.picture.id) for one in found]
    shuffled = sorted(range(len(found)), key=lambda number: (positions[number], found[number].picture.id))
    has_splits = any(one.picture.split is not None for one in found)
    problems_by_number: dict[int, str] = {}
    moved_to: Literal["training", "validation"] | None = None
    with (
        locked(options.out, keep=False),
        ShardWriter(options.out, "train", pairs_per_shard=PAIRS_PER_SHARD) as train,
        ShardWriter(options.out, "val") as val,
        ShardWriter(options.out, "test") as test,
    ):
        writers = {"training": train, "validation": val, "test": test}
        # a pair is written when the next one is found: the first is for validation, and the last for training
        waiting: tuple[float, tuple[str, bytes, dict[str, Any]]] | None = None
        for key, number in enumerate(tqdm(shuffled, desc="pictures", unit="picture")):
            one, place = found[number].picture, found[number].place
            try:
                if one.problem is not None:
                    raise ImageError(one.problem)
                if not one.captions:
                    raise ImageError("it has no caption")
                webp = _encoded(one.path, options.size) if place is None else spool.read(place)
            except ImageError as error:
                problems_by_number[number] = str(error)
                continue
            metadata = {"id": one.id, "style": "", "captions": one.captions, "weight": 1.0, "keywords_en": []}
            pair = (f"{key:09d}", webp, metadata)
            if has_splits:
                writers[one.split or "training"].write(*pair)
                continue
            if waiting is not None:
                for_val = waiting[0] < options.val_fraction
                needed = options.val_fraction > 0 and not val.num_pairs
                (val if for_val or needed else train).write(*waiting[1])
                moved_to = "validation" if needed and not for_val else moved_to
            waiting = (positions[number], pair)
        if waiting is not None:
            for_val = waiting[0] < options.val_fraction
            moved_to = "training" if for_val and val.num_pairs and not train.num_pairs else moved_to
            (val if for_val and train.num_pairs else train).write(*waiting[1])
        problems = [
            Problem(found[number].picture.id, problems_by_number[number]) for number in sorted(problems_by_number)
        ]
        write_problems(options.out / PROBLEMS_FILE, problems)
        if not train.num_pairs + val.num_pairs + test.num_pairs:
            first = (
                f"; the first of {len(problems)} problems: {problems[0].id}: {problems[0].problem}" if problems else ""
            )
            raise DataError(f"{options.source} has no picture with a caption that can be used{first}")
    numbers = {"num_train": train.num_pairs, "num_val": val.num_pairs, "num_test": test.num_pairs}
    return Report(**numbers, moved_to=moved_to, problems=problems)


def summary(report: Report, options: FolderOptions) -> str:
    """The result of a build as a text: the numbers of pairs, and splits that are empty or were."""
    tests = f" and {report.num_test} for tests" if report.num_test else ""
    lines = [f"{report.num_train} pairs for training, {report.num_val} for validation{tests} in {options.out}"]
    if report.problems:
        lines[0] += f"; {len(report.problems)} skipped, see {options.out / PROBLEMS_FILE}"
    if report.moved_to is not None:
        lines.append(
            f"by their hashes, with val-fraction {options.val_fraction:g}, no pair would be for {report.moved_to}: one "
            "is moved there"
        )
    if not report.num_val:
        why = "with val-fraction 0" if options.val_fraction == 0 else "there is only one pair"
        why = why if report.num_train <= 1 or options.val_fraction == 0 else "none of its split can be used"
        lines.append(f"no pair is for validation, {why}: validate on the training shards")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Ends with exit code 2, and one line on stderr, if the source cannot be used."""
    with exit_on_mistake():
        options = parse(FolderOptions, "training.folder", arguments)
        report = build(options)
        print(summary(report, options))
        print(after_folder(options.out))


if __name__ == "__main__":
    main()
