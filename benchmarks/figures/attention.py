"""Attention weights of the default model: the n x n map of a row, the heads of a layer on the grid, and a sentence."""

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from benchmarks.figures.canvas import COLOURS, Drawing, new_figure, show_map
from benchmarks.figures.observed import AttentionCall, DrawnRow, draw_row, observed, run_row
from dalle import DALLE

__all__ = ["draw_heads", "draw_map", "draw_sentence", "head_shares", "mirror_share", "sentence_weights"]

PROMPT, SEED = "a sunflower, fluent 3d style emoji", 7
LAYER, HEAD = 6, 3
"""Layer and head whose map is drawn, from 0."""
OTHERS = (
    "an owl in fluent flat style",
    "a red apple, noto style emoji",
    "green heart, twemoji style emoji",
    "full moon, noto style emoji",
)
"""Prompts whose rows show whether the head does there what it does in the one that is drawn."""
SENTENCE = "The animal didn't cross the street because it was too tired"
WORD = "it"


def _seen(call: AttentionCall) -> Tensor:
    assert call.mask is not None
    return call.mask.broadcast_to(1, 1, call.x.shape[1], call.x.shape[1])[0, 0]


def _mark_parts(axes: Axes, row: DrawnRow, length: int) -> None:
    """Draw the border between text and image, and name both sides."""
    border = row.num_text - 0.5
    axes.axhline(border, color=COLOURS[1], lw=1)
    axes.axvline(border, color=COLOURS[1], lw=1)
    middle = (border + length) / 2
    axes.set_xticks([border / 2, middle], ["text", "image"], fontsize=9)
    axes.set_yticks([border / 2, middle], ["text", "image"], fontsize=9, rotation=90, va="center")
    axes.tick_params(length=0)


def mirror_share(weights: Tensor, row: DrawnRow) -> float:
    """Mean weight of a map (L, L) on the code at the mirror image of the next code in its grid row, over the queries
    behind that code."""
    width = row.codes.shape[1]
    places = torch.arange(row.codes.numel() - 1)
    following = places + 1
    mirrored = following // width * width + width - 1 - following % width
    known = mirrored <= places
    return float(weights[row.num_text + places[known], row.num_text + mirrored[known]].mean())


def draw_map(model: DALLE, others: Sequence[str] = OTHERS) -> Drawing:
    """Draw the n x n map of one head, and the mean over the heads of its layer, for a row that the model has drawn."""
    row = draw_row(model, PROMPT, SEED)
    calls = run_row(model.decoder, row)
    layer = min(LAYER, len(calls) - 1)
    weights, seen = calls[layer].weights()[0], _seen(calls[layer])
    head = min(HEAD, len(weights) - 1)
    length = weights.shape[-1]
    figure = new_figure(9.6, 5.7)
    for axes, values, name in zip(
        figure.subplots(1, 2),
        (weights[head], weights.mean(0)),
        (f"layer {layer + 1}, head {head + 1}", f"layer {layer + 1}, mean of {len(weights)} heads"),
        strict=True,
    ):
        show_map(axes, values, seen, 1.0)
        _mark_parts(axes, row, length)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("keys: what is read", fontsize=9)
    figure.axes[0].set_ylabel("queries: who reads", fontsize=9)
    figure.suptitle(
        f'"{row.prompt}" and the codes drawn for it: {length} x {length} weights; grey: masked', fontsize=11
    )
    rows = [row, *(draw_row(model, prompt, SEED) for prompt in others)]
    mirrored = [mirror_share(run_row(model.decoder, one)[layer].weights()[0, head], one) for one in rows]
    on_text = weights[:, row.num_text :, : row.num_text].sum(-1).mean(-1)
    return Drawing(
        figure=figure,
        numbers=f"{length} x {length}; every row sums to 1 within {(weights.sum(-1) - 1).abs().max():.0e}; "
        f"{1 - seen.double().mean():.1%} of the map is masked; weight of codes on text, by head: "
        + ", ".join(f"{share:.2f}" for share in on_text.tolist())
        + "; weight of the head on the mirror image of the next code, here and in other pictures: "
        + ", ".join(f"{share:.2f}" for share in mirrored),
    )


@torch.no_grad()
def head_shares(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Which output channels each head writes to, without and with the output projection.

    Returns two tables (heads, heads): the share of the energy of head i's part of the output that lies in the j-th
    group of channels. The parts of all heads sum to the output.
    """
    queries, _, values = call.projected
    num_heads, head_dim = queries.shape[1], queries.shape[-1]
    group = num_heads // values.shape[1]
    attended = call.weights() @ values.repeat_interleave(group, dim=1)  # (B, heads, L, head_dim)
    projection = call.attention.output.weight.unflatten(1, (num_heads, head_dim))  # (D, heads, head_dim)
    parts = torch.einsum("bhlc,dhc->hbld", attended, projection)
    tables = []
    for written in (torch.eye(num_heads).repeat_interleave(head_dim, dim=1), parts.square().mean((1, 2))):
        groups = torch.stack([some.sum(-1) for some in written.tensor_split(num_heads, dim=-1)], dim=-1)
        tables.append(groups / groups.sum(-1, keepdim=True))
    return tables[0], tables[1]


@torch.inference_mode()
def draw_heads(model: DALLE) -> Drawing:
    """Draw where each head of a layer looks on the grid, from one code; and which channels each head writes to, without
    and with the output projection."""
    row = draw_row(model, PROMPT, SEED)
    calls = run_row(model.decoder, row)
    layer = min(LAYER, len(calls) - 1)
    weights = calls[layer].weights()[0]
    layout = model.decoder.layout
    height, width = layout.grid_height, layout.grid_width
    place = height // 2 * width + width // 2
    query = row.num_text + place
    num_heads = len(weights)
    figure = new_figure(2.0 * num_heads + 2.0, 5.0)
    halves = figure.add_gridspec(2, 1, height_ratios=(1.1, 1.0))
    upper, lower = (figure.add_subfigure(half) for half in (halves[0], halves[1]))
    panels = upper.subplots(1, num_heads + 1)
    panels[0].imshow(row.picture, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    panels[0].set_title("drawn", fontsize=9)
    seen = (torch.arange(layout.num_codes) <= place).view(height, width)
    for head, axes in enumerate(panels[1:]):
        grid = torch.zeros(layout.num_codes)
        grid[: place + 1] = weights[head, query, row.num_text : query + 1]
        show_map(axes, grid.view(height, width), seen, 1.0)
        axes.set_title(f"head {head + 1}; on text: {1 - float(grid.sum()):.0%}", fontsize=9)
    for axes in panels:
        axes.set(xticks=[], yticks=[])
        axes.add_patch(Rectangle((width // 2 - 0.5, height // 2 - 0.5), 1, 1, fill=False, ec=COLOURS[1], lw=2))
    upper.suptitle(f"Layer {layer + 1}: where the code in the red frame looks to find the next one", fontsize=10)
    tables = head_shares(calls[layer])
    names = ("heads concatenated: head i fills the i-th group of channels", "after the output projection")
    for axes, table, name in zip(lower.subplots(1, 2), tables, names, strict=True):
        axes.imshow(table.numpy(), cmap="GnBu", vmin=0.0, vmax=1.0)
        for i in range(num_heads):
            for j in range(num_heads):
                dark = float(table[i, j]) > 0.6
                axes.text(j, i, f"{table[i, j]:.2f}", ha="center", va="center", fontsize=7, color="w" if dark else "k")
        axes.set_title(name, fontsize=9)
        axes.set_xticks(range(num_heads), [f"group {j + 1}" for j in range(num_heads)], fontsize=6)
        axes.set_yticks(range(num_heads), [f"head {i + 1}" for i in range(num_heads)], fontsize=7)
    shares = tables[1]
    return Drawing(
        figure=figure,
        numbers=f"share of a head's output in a group of {shares.shape[0]} after the projection: "
        f"{shares.min():.2f} to {shares.max():.2f}",
    )


def sentence_weights(model: DALLE, sentence: str) -> tuple[tuple[str, ...], Tensor]:
    """The tokens of a text, and the weights of every layer on them: (layers, heads, L, L)."""
    tokenizer = model.text_tokenizer
    assert tokenizer is not None
    tokens = tokenizer.tokenize(sentence)
    layout = model.decoder.layout
    positions = torch.arange(layout.first_code - len(tokens) - 1, layout.first_code)
    ids = tokenizer.encode(sentence)[None, -len(tokens) - 1 :]
    with observed(model.decoder) as calls:
        model.decoder(ids, positions)
    words = (*(tokenizer.decode([token]) for token in tokens), "[EOS]")
    return words, torch.stack([call.weights()[0] for call in calls])


def draw_sentence(model: DALLE, sentence: str = SENTENCE, word: str = WORD) -> Drawing:
    """Draw what a word of a sentence attends to, as the lecture shows it: lines from the word to all words, in the
    colours of the heads."""
    words, weights = sentence_weights(model, sentence)
    place = words.index(word)
    layers = sorted({0, len(weights) // 2, len(weights) - 1})
    figure = new_figure(3.2 * len(layers) + 3.6, 6.2)
    *panels, table = figure.subplots(1, len(layers) + 1, width_ratios=[*[1.0] * len(layers), 1.5])
    for layer, axes in zip(layers, panels, strict=True):
        for side, align in ((0.0, "right"), (1.0, "left")):
            for i, text in enumerate(words):
                bold = "bold" if i == place else "normal"
                shade = "#bbbbbb" if side == 0.0 and i != place else "#222222" if i <= place else "#bbbbbb"
                axes.text(side, i, text or "_", ha=align, va="center", fontsize=8, color=shade, weight=bold)
        for head, row in enumerate(weights[layer, :, place].tolist()):
            for i, weight in enumerate(row[: place + 1]):
                offset = 0.16 * (head - (weights.shape[1] - 1) / 2)
                line = {"color": COLOURS[head % len(COLOURS)], "alpha": min(1.0, 2.5 * weight), "lw": 2.2}
                axes.plot([0.03, 0.97], [place + offset, i + offset], **line)
        axes.set(xlim=(-0.6, 1.6), ylim=(len(words) - 0.5, -0.5), title=f"layer {layer + 1}")
        axes.set_axis_off()
    mean = weights.mean((0, 1))
    show_map(table, mean, torch.ones_like(mean).tril().bool(), 1.0)
    table.set_xticks(range(len(words)), words, fontsize=6, rotation=90)
    table.set_yticks(range(len(words)), words, fontsize=6)
    table.set_title("mean of all layers and heads", fontsize=9)
    table.axhline(place - 0.5, color=COLOURS[1], lw=0.8)
    table.axhline(place + 0.5, color=COLOURS[1], lw=0.8)
    figure.suptitle(
        f'"{word}" in a model that has read captions of emoji alone: it has NOT learned such sentences', fontsize=11
    )
    shares = ", ".join(
        f"{text or '_'} {share:.3f}" for text, share in zip(words, mean[place, : place + 1], strict=False)
    )
    return Drawing(figure=figure, numbers=f"{len(words) - 1} tokens; weight of {word}: {shares}")
