"""The attention masks: every pattern over a short row, and what one code may attend to on the grid."""

from typing import get_args

from matplotlib.patches import Rectangle

from benchmarks.figures.canvas import COLOURS, Drawing, new_figure, show_map
from dalle.decoder.row_layout import RowLayout
from dalle.transformer.masks import Pattern, attention_mask

__all__ = ["draw_masks"]

PATTERNS: tuple[Pattern, ...] = get_args(Pattern)[:6]
CONVOLUTION_SIZE = 3
LAYOUT = RowLayout(text_length=4, grid_height=6, grid_width=6, text_vocab_size=8, pad_id=0)


def draw_masks(layout: RowLayout = LAYOUT) -> Drawing:
    """Draw the masks, and below each of them the view of one code."""
    figure = new_figure(2.1 * len(PATTERNS), 4.6)
    upper, lower = figure.subplots(2, len(PATTERNS))
    row, column = 2 * layout.grid_height // 3, layout.grid_width // 2
    query = layout.first_code + row * layout.grid_width + column
    counts = []
    for pattern, mask_axes, grid_axes in zip(PATTERNS, upper, lower, strict=True):
        mask = attention_mask(layout, pattern, CONVOLUTION_SIZE)
        show_map(mask_axes, 0.4 * mask.double(), mask, 1.0)
        border = layout.first_code - 0.5
        mask_axes.axhline(border, color=COLOURS[1], lw=1)
        mask_axes.axvline(border, color=COLOURS[1], lw=1)
        mask_axes.axhline(query, color=COLOURS[3], lw=1.5)
        mask_axes.set_title(f"{pattern.replace('_', ' ')}\n{mask.sum():,} of {mask.numel():,}", fontsize=9)
        grid = mask[query, layout.first_code :].view(layout.grid_height, layout.grid_width)
        show_map(grid_axes, 0.4 * grid.double(), grid, 1.0)
        grid_axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=COLOURS[3], lw=2))
        counts.append(f"{pattern} {int(mask.sum())}")
    upper[0].set_ylabel("rows of the mask: queries", fontsize=8)
    lower[0].set_ylabel("the framed code's view", fontsize=8)
    figure.suptitle(f"{layout.text_length} text ids and {layout.num_codes} codes; grey: masked", fontsize=10)
    return Drawing(figure=figure, numbers=f"allowed pairs of {layout.length**2}: {', '.join(counts)}")
