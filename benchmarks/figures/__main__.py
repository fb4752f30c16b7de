"""Figures of docs/transformer.md: `python -m benchmarks.figures` draws all of them anew, and prints their numbers.

Everything runs on one thread with fixed seeds, so that only measured times and the last digits of numbers differ from
machine to machine. `python -m benchmarks.figures.links` renews the page's links to lines of code.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.figures.attention import draw_heads, draw_map, draw_sentence
from benchmarks.figures.canvas import Drawing, save
from benchmarks.figures.cost import draw_cost
from benchmarks.figures.drawing import draw_drawing
from benchmarks.figures.masks import draw_masks
from benchmarks.figures.norms import draw_norms
from benchmarks.figures.positions import draw_positions
from benchmarks.figures.residuals import draw_residuals
from benchmarks.figures.scale import draw_scale
from benchmarks.figures.translation import draw_translation
from benchmarks.figures.vision import draw_vision
from dalle import DALLE

FIGURES: dict[str, Callable[[DALLE], Drawing]] = {
    "map": draw_map,
    "scale": draw_scale,
    "heads": draw_heads,
    "masks": lambda model: draw_masks(),
    "cost": lambda model: draw_cost(),
    "positions": draw_positions,
    "norms": draw_norms,
    "residuals": lambda model: draw_residuals(),
    "sentence": draw_sentence,
    "translation": lambda model: draw_translation(),
    "vision": draw_vision,
    "drawing": draw_drawing,
}


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Figures to draw: {', '.join(FIGURES)}.")] = None,
    out: Annotated[Path, typer.Option(help="Folder that the figures are written to.")] = Path("docs/pictures"),
) -> None:
    """Draw the figures of docs/transformer.md, all of them or some, and print their numbers."""
    if unknown := sorted({*(names or ())} - {*FIGURES}):
        raise typer.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(FIGURES)}")
    torch.set_num_threads(1)
    model = DALLE.load()
    for name in names or FIGURES:
        drawing = FIGURES[name](model)
        path = out / f"transformer-{name}.png"
        save(drawing.figure, path)
        print(f"{path}, {path.stat().st_size / 1000:.0f} kB\n{drawing.numbers}\n", flush=True)


if __name__ == "__main__":
    typer.run(main)
