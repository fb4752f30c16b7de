"""Figures of the experiments: losses against the step, and pictures in rows."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from training.curves import Curve

__all__ = ["draw_losses", "draw_pictures"]

DPI, SHEET_DPI = 110, 85
PANELS = {"val/image_loss": "validation loss of a code, nats", "val/text_loss": "validation loss of a text id, nats"}


def draw_losses(runs: Mapping[str, Mapping[str, Curve]], reference: str, path: Path) -> None:
    """Draw the validation losses of runs against the step, and the differences of the first loss from that of the
    reference at the same step.

    runs: what each run has logged, by its name, KIND-SEED; runs of one kind have one colour, and those of another seed
        than the reference's are dashed.
    """
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    kinds = [*dict.fromkeys(name.rpartition("-")[0] for name in runs)]
    main, *_ = PANELS
    base = dict(runs[reference][main])
    for name, scalars in runs.items():
        kind, _, seed = name.rpartition("-")
        is_main = seed == reference.rpartition("-")[2]
        look = {"color": f"C{kinds.index(kind)}", "ls": "-" if is_main else "--", "marker": "o" if is_main else "x"}
        label = kind if is_main else f"{kind}, seed {seed}"
        for axes, panel in ((left, main), (right, "val/text_loss")):
            axes.plot(*zip(*scalars[panel], strict=True), label=label, markersize=3, lw=1.2, **look)
        differences = [(step, loss - base[step]) for step, loss in scalars[main] if step in base]
        middle.plot(*zip(*differences, strict=True), label=label, markersize=3, lw=1.2, **look)
    left.set_ylabel(PANELS[main])
    middle.set_ylabel(f"the same, less that of {reference.rpartition('-')[0]}")
    right.set_ylabel(PANELS["val/text_loss"])
    for axes in (left, middle, right):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    _save(figure, path, DPI)


def draw_pictures(rows: Mapping[str, Sequence[Image.Image]], prompts: Sequence[str], path: Path) -> None:
    """Draw rows of pictures, each with its name on the left, below the prompts."""
    figure = Figure(figsize=(1.3 * len(prompts) + 0.4, 1.3 * len(rows) + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), len(prompts), squeeze=False)
    for axes_row, (name, pictures) in zip(grid, rows.items(), strict=True):
        axes_row[0].set_ylabel(name, fontsize=9)
        for axes, picture in zip(axes_row, pictures, strict=True):
            axes.imshow(np.asarray(picture))
            axes.set(xticks=[], yticks=[])
            for side in axes.spines.values():
                side.set_color("#dddddd")
    for axes, prompt in zip(grid[0], prompts, strict=True):
        axes.set_title("\n".join(textwrap.wrap(prompt, 20)), fontsize=7)
    _save(figure, path, SHEET_DPI)


def _save(figure: Figure, path: Path, dpi: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
