"""The options of the recipe's command line, checked."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from dalle.errors import DataError
from training.recipe.presets import RECIPES

__all__ = ["RecipeOptions"]

MAX_MINUTES = 366 * 24 * 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Make a model of pictures and captions: both tokenizers, the decoder, figures and a sheet.

    Without `--minutes` every stage takes the preset's own number of steps. The same command goes on where it was
    stopped; each stage's artefact can be used alone.
    """

    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")]
    """`emoji` (the default model), or `tiny` (to see that everything runs)."""
    out: Path
    """Folder for all artefacts."""
    minutes: float | None = None
    """Budget in minutes for all stages together. Downloads, and making shards of pictures, are not counted."""
    pictures: Path | None = None
    """Your own pictures with captions, as `python -m training.folder` takes them. Default: emoji, from packages."""
    shards: Path | None = None
    """Folder of picture-caption shards that are there already, instead."""
    start_from: Path | None = None
    """Model directory of an earlier run whose folder is gone. An image tokenizer that was finished is kept; what was
    not finished goes on at the step that the model was exported at."""
    export_minutes: float | None = None
    """Write the model of the stage every so many minutes, so that it can be used while it is still trained."""
    name: str | None = None
    """Name of the model in its pictures' receipts. Default: that of the folder of pictures or shards, or `emoji`."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`."""
    seed: int = 0
    """Random seed of all stages."""
    status: bool = False
    """Only print how far the run in the folder is."""

    def __post_init__(self) -> None:
        if self.preset not in RECIPES:
            raise DataError(f"there is no preset {self.preset!r}; there are {', '.join(RECIPES)}")
        if self.minutes is not None and not 0 < self.minutes <= MAX_MINUTES:
            raise DataError(f"minutes is {self.minutes}; it must be above 0 and at most {MAX_MINUTES}")
        if self.export_minutes is not None and not self.export_minutes >= 0:
            raise DataError(f"export-minutes is {self.export_minutes}; it must not be negative")
        if not 0 <= self.seed < 2**31:
            raise DataError(f"seed is {self.seed}; it must be in [0, 2^31)")
        if self.pictures is not None and self.pictures.resolve() == self.out.resolve():
            raise DataError(f"{self.out} is the folder of the pictures; give another folder for what is made of them")
        if self.pictures is not None and self.shards is not None:
            raise DataError("pictures and shards are two sources; give one")
        if self.source is not None and not self.source.exists():
            raise DataError(f"{self.source} does not exist")

    @property
    def source(self) -> Path | None:
        """The pictures or shards that are handed in; None for emoji."""
        return self.pictures or self.shards

    @property
    def model_name(self) -> str:
        """The name that is given, or that of the source."""
        return self.name or ("emoji" if self.source is None else self.source.resolve().name)
