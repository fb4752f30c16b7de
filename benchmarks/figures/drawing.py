"""One row from the prompt to the picture: what is drawn after so many codes."""

import numpy as np

from benchmarks.figures.attention import SEED
from benchmarks.figures.canvas import Drawing, new_figure
from benchmarks.figures.observed import draw_row
from dalle import DALLE
from serving.engine.pictures import preview

__all__ = ["draw_drawing"]

PROMPTS = ("a sunflower, fluent 3d style emoji", "a red apple, noto style emoji", "an owl in fluent flat style")
PARTS = (0.125, 0.25, 0.5, 0.75, 1.0)


def draw_drawing(model: DALLE, prompts: tuple[str, ...] = PROMPTS) -> Drawing:
    """Draw pictures of prompts after an eighth, a quarter, a half, three quarters and all of their codes."""
    num_codes = model.decoder.layout.num_codes
    counts = [round(part * num_codes) for part in PARTS]
    figure = new_figure(1.7 * len(counts) + 0.5, 1.75 * len(prompts) + 0.4)
    grid = figure.subplots(len(prompts), len(counts), squeeze=False)
    first_codes = []
    for prompt, axes_row in zip(prompts, grid, strict=True):
        row = draw_row(model, prompt, SEED)
        codes = row.codes.flatten()
        first_codes.append(", ".join(str(code) for code in codes[:6].tolist()))
        axes_row[0].set_ylabel(prompt.replace(", ", ",\n", 1), fontsize=8)
        for count, axes in zip(counts, axes_row, strict=True):
            picture = row.picture if count == num_codes else preview(model, codes[:count]).convert("RGBA")
            axes.imshow(np.asarray(picture))
            axes.set(xticks=[], yticks=[])
    for count, axes in zip(counts, grid[0], strict=True):
        axes.set_title(f"{count} of {num_codes} codes", fontsize=9)
    numbers = [f"{prompt}: codes {codes}, ..." for prompt, codes in zip(prompts, first_codes, strict=True)]
    return Drawing(figure=figure, numbers="\n".join(numbers))
