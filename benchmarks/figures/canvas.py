"""The look of the figures, and the parts that several of them share."""

import dataclasses
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

__all__ = ["COLOURS", "Drawing", "new_figure", "save", "show_map"]

DPI = 100
MAX_BYTES = 150_000
COLOURS = ("#2a6fbb", "#d1495b", "#3b8f5a", "#e0a030", "#7a5ea8")
HIDDEN = "#dddddd"
"""Colour of what a query may not attend to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure, and its numbers in words for the terminal."""

    figure: Figure
    numbers: str


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG; with a palette, which loses shades, only if it would be too large for the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    if path.stat().st_size > MAX_BYTES:
        with Image.open(path) as image:
            flat = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        flat.save(path, optimize=True)


def show_map(axes: Axes, values: Tensor, seen: Tensor | None = None, largest: float | None = None) -> None:
    """Draw a matrix (H, W) of values from 0 up, darker for larger; cells outside `seen` (H, W) are grey. Colours follow
    the square root, so that small weights are visible."""
    cells: NDArray[np.float64] = values.double().numpy()
    hidden = np.zeros(cells.shape, dtype=bool) if seen is None else ~seen.numpy()
    colours = matplotlib.colormaps["GnBu"].with_extremes(bad=HIDDEN)
    shown = np.ma.masked_array(np.sqrt(cells), hidden)
    axes.imshow(shown, cmap=colours, vmin=0.0, vmax=None if largest is None else largest**0.5, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
