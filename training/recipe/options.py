"""The options of the recipe's command line, validated."""

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
    """Train a model on pictures with captions: text tokenizer, image tokenizer, decoder, and an evaluation.

    The artefact of each stage can be used alone. The same command resumes a run that was stopped. Exit codes: 0 done,
    2 a mistake of the caller, 4 stopped by SIGTERM, 130 by Ctrl-C.
    """

    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")]
    """Recipe: `emoji` (the next default model), or `tiny` (a test that everything runs)."""
    out: Path
    """Output folder for the artefacts of all stages."""
    minutes: float | None = None
    """Time budget in minutes for all stages together, from which each stage derives its number of steps. Downloads and
    the building of shards do not count. None: no budget; each stage takes the number of steps of the preset."""
    pictures: Path | None = None
    """Your own pictures with captions: a folder, or a .csv, .jsonl or .parquet file, as `python -m training.folder`
    takes them. None: the emoji data, built from its packages."""
    shards: Path | None = None
    """Folder of picture-caption shards to train on, instead of `pictures`. None: shards are built."""
    start_from: Path | None = None
    """Model directory of an earlier run whose folder is lost, to continue from. A finished image tokenizer is kept; an
    unfinished stage continues at the step at which the model was exported. None: start from the beginning."""
    export_minutes: float | None = None
    """Minutes between two exports of the model that a stage trains, so that it can be used before the stage ends.
    None: export at the end of each stage."""
    name: str | None = None
    """Name of the model, which the receipts in its pictures state. None: the name of `pictures` or `shards`, or
    `emoji`."""
    device: str = "auto"
    """Device to train on: `auto` (CUDA if it is available), `cpu` or `cuda`."""
    seed: int = 0
    """Random seed of all stages, in [0, 2^31)."""
    status: bool = False
    """Print the status of the run in the output folder, and do nothing else."""

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
            raise DataError(f"{self.out} is the folder of the pictures; give another folder for the artefacts")
        if self.pictures is not None and self.shards is not None:
            raise DataError("pictures and shards are both given; give only one")
        if self.source is not None and not self.source.exists():
            raise DataError(f"{self.source} does not exist")

    @property
    def source(self) -> Path | None:
        """The given pictures or shards; None for the emoji data."""
        return self.pictures or self.shards

    @property
    def model_name(self) -> str:
        """The given name of the model, or else the name of its source."""
        return self.name or ("emoji" if self.source is None else self.source.resolve().name)
