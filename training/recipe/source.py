"""The pictures of a recipe: shards that are built or handed in, and looked at before anything is trained on them."""

import dataclasses
from pathlib import Path

from dalle.errors import DataError
from training.folder import FolderOptions
from training.folder import build as build_folder
from training.pairs.shards import PairShards, find_shards
from training.recipe.options import RecipeOptions

__all__ = ["Source", "open_source"]

EMOJI = Path("data/emoji")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Shards of pairs, all pictures of one size."""

    folder: Path
    train: tuple[str, ...]
    val: tuple[str, ...]
    """Patterns of shards; those of training where no pair was set aside."""
    channels: int
    """4 if any picture is transparent somewhere, else 3."""


def open_source(options: RecipeOptions, image_size: int) -> Source:
    """The source that the options name, its shards built if they are not there yet.

    Raises `DataError` for pictures that cannot be used, and for shards of another size than image_size.
    """
    folder = _shards(options, image_size)
    train = (str(folder / "train*.tar"),)
    val = [str(folder / pattern) for pattern in ("val_combo.tar", "val*.tar") if list(folder.glob(pattern))]
    pairs = PairShards(find_shards(train))
    height, width = pairs.picture(0).shape[1:]
    if (height, width) != (image_size, image_size):
        raise DataError(
            f"the pictures of {folder} have {height} x {width} pixels; the model's have {image_size} x {image_size}: "
            "build the shards anew"
        )
    channels = 4 if pairs.has_transparency() else 3
    return Source(folder=folder, train=train, val=tuple(val[:1]) or train, channels=channels)


def _shards(options: RecipeOptions, image_size: int) -> Path:
    if options.shards is not None:
        return options.shards
    if options.pictures is None:
        # imported here, for its packages: whoever hands in shards needs no renderer
        from training.emoji.program import EmojiOptions
        from training.emoji.program import build as build_emoji

        if not (EMOJI / "contact_sheet.png").exists():
            build_emoji(EmojiOptions(out=EMOJI))
        return EMOJI
    folder = options.out / "shards"
    if not list(folder.glob("*.tar")):
        report = build_folder(FolderOptions(source=options.pictures, out=folder, size=image_size, val_fraction=0.05))
        if report.problems:
            print(f"{len(report.problems)} pictures or captions cannot be used: see {folder / 'problems.jsonl'}")
    return folder
