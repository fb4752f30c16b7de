"""The pictures of a recipe: shards that are given or built, and validated before the training begins."""

import dataclasses
from pathlib import Path

from dalle.errors import DataError
from training.folder import FolderOptions, summary
from training.folder import build as build_folder
from training.pairs.shards import PairShards, find_shards
from training.recipe.options import RecipeOptions

__all__ = ["Source", "open_source"]

EMOJI = Path("data/emoji")
EMOJI_DESCRIPTION = "Emoji, icons, clip art and flags, in English: name a thing, then a style."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Picture-caption shards for training and validation, with pictures of one size."""

    folder: Path
    """Folder of all shards."""
    train: tuple[str, ...]
    """Glob patterns of the training shards."""
    val: tuple[str, ...]
    """Glob patterns of the validation shards; those of training if there are no validation shards."""
    channels: int
    """4 if some pictures have transparent pixels, else 3."""
    description: str = ""
    """What a prompt for such pictures is, in a sentence; empty if that is not known."""


def open_source(options: RecipeOptions, image_size: int) -> Source:
    """The source that the options name; its shards are built if they do not exist yet.

    Raises `DataError` for pictures that cannot be used, and for shards whose pictures are not image_size pixels high
    and wide.
    """
    folder = _shards(options, image_size)
    train = (str(folder / "train*.tar"),)
    val = [str(folder / pattern) for pattern in ("val_combo.tar", "val*.tar") if list(folder.glob(pattern))]
    pairs = PairShards(find_shards(train))
    height, width = pairs.picture(0).shape[1:]
    if (height, width) != (image_size, image_size):
        raise DataError(
            f"the pictures of {folder} have {height} x {width} pixels; the model's have {image_size} x {image_size}: "
            "build the shards again"
        )
    channels = 4 if pairs.has_transparency() else 3
    return Source(
        folder=folder,
        train=train,
        val=tuple(val[:1]) or train,
        channels=channels,
        description=EMOJI_DESCRIPTION if options.source is None else "",
    )


def _shards(options: RecipeOptions, image_size: int) -> Path:
    if options.shards is not None:
        return options.shards
    if options.pictures is None:
        # imported here, as only this source needs the packages of the renderer
        from training.emoji.program import EmojiOptions
        from training.emoji.program import build as build_emoji

        if not (EMOJI / "contact_sheet.png").exists():
            build_emoji(EmojiOptions(out=EMOJI))
        return EMOJI
    folder = options.out / "shards"
    if not list(folder.glob("*.tar")):
        folder_options = FolderOptions(source=options.pictures, out=folder, size=image_size, val_fraction=0.05)
        print(summary(build_folder(folder_options), folder_options))
    return folder
