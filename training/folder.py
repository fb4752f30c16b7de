"""Build shards from your own pictures with captions: `python -m training.folder SOURCE --out SHARDS`.

SOURCE is one of
- a folder: every picture in it, at any depth, with its captions in a text file of the same name (`cat.jpg`, `cat.txt`)
- a .csv file with a header, or a .jsonl file of objects: a column for the picture's path, absolute or relative to the
  file, and a column for its caption. The captions of rows with the same picture are joined.

Every non-empty line of a text is a caption of its own; a .jsonl file may also give a list of captions.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from dalle.errors import DataError, ImageError
from dalle.files import atomic_write
from dalle.images import load_image
from training.command import exit_on_mistake, parse
from training.pairs.shard_writer import ShardWriter, encode_webp
from training.pairs.sources import find_pictures

__all__ = ["FolderOptions", "Report", "build", "main", "position"]

PAIRS_PER_SHARD = 5000
SIZES = range(8, 2049)
PROBLEMS_FILE = "problems.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """Build picture-caption shards for training from your own pictures.

    Pictures are rotated as their EXIF orientation says, cropped to the centred square and resized; transparency is
    kept. Pictures and lines that cannot be used are skipped and listed in problems.jsonl in the output folder.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A folder of pictures with .txt files beside them, or a .csv or .jsonl file of picture paths and captions."""
    out: Path
    """Output folder for train-000.tar, train-001.tar, ... and val.tar. It must not hold shards yet."""
    size: int = 128
    """Side of the square pictures in pixels."""
    val_fraction: float = 0.01
    """Share of the pairs, approximately, that are written to val.tar for validation. A hash of its path decides for
    each pair, so the choice does not depend on the rest of the source."""
    image_column: str = "image"
    """Column of a .csv file, or key of a .jsonl file, with the path of the picture."""
    caption_column: str = "caption"
    """Column of a .csv file, or key of a .jsonl file, with the caption."""

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
    problems: list[dict[str, str]]
    """One for each skipped picture or line, in the order of the source: its `id`, and the `problem` as a text."""


def position(id: str) -> float:
    """Position of an id in [0, 1), from its hash. Pairs are written in this order; the first ones are for
    validation."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:6]) / 2**48


def build(options: FolderOptions) -> Report:
    """Write the shards and the list of problems.

    Raises `DataError`, without writing a shard, if the source is none of the three kinds, if nothing in it can be used,
    or if the output folder already holds shards.
    """
    if held := sorted(options.out.glob("*.tar")):
        raise DataError(f"{options.out} already holds {held[0].name}; choose a new folder, or delete its shards")
    found = list(
        find_pictures(options.source, image_column=options.image_column, caption_column=options.caption_column)
    )
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


def _write_problems(path: Path, problems: Sequence[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, "".join(json.dumps(problem, ensure_ascii=False) + "\n" for problem in problems))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Ends with exit code 2, and one line on stderr, if the source cannot be used."""
    with exit_on_mistake():
        options = parse(FolderOptions, "training.folder", arguments)
        report = build(options)
        left_out = f"; {len(report.problems)} skipped, see {options.out / PROBLEMS_FILE}" if report.problems else ""
        print(f"{report.num_train} pairs for training, {report.num_val} for validation in {options.out}{left_out}")


if __name__ == "__main__":
    main()
