"""Positions: how alike two positions are to each kind, before any content.

Positions that are added have vectors, whose cosines are drawn. Rotary positions have none: a query and a key of ones,
rotated by the decoder's own table, give a score that depends on the two positions alone.
"""

import dataclasses
from typing import Literal

import torch
import torch.nn.functional as F
from matplotlib.patches import Rectangle
from torch import Tensor

from benchmarks.figures.canvas import COLOURS, Drawing, new_figure
from dalle import DALLE
from dalle.decoder.config import DecoderConfig
from dalle.decoder.decoder import Decoder
from dalle.decoder.request import Request
from dalle.decoder.sampling import SamplingParams
from dalle.steps import new_engine
from dalle.transformer.attention import apply_rotary

__all__ = ["LEARNING", "Learning", "draw_positions", "learn_positions", "neighbours", "similarity"]

Kind = Literal["sinusoidal", "learned", "rotary"]
PROMPTS = (
    "a red apple",
    "an owl",
    "green heart",
    "full moon",
    "soccer ball",
    "evergreen tree",
    "a sunflower",
    "a fish",
)
STYLES = ("noto", "twemoji", "emojione", "fluent 3d", "fluent flat", "flat color icon", "line icon", "clip art")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learning:
    """Sizes of the small decoder whose learned positions are drawn, and of its training."""

    pictures: int = 128
    """Pictures that the default model draws, to train on."""
    steps: int = 200
    batch_size: int = 16
    width: int = 64
    depth: int = 2


LEARNING = Learning()


def small_config(model: DALLE, kind: Kind, learning: Learning) -> DecoderConfig:
    width = learning.width
    return dataclasses.replace(
        model.decoder.config,
        width=width,
        depth=learning.depth,
        num_heads=width // 32,
        num_kv_heads=width // 32,
        head_dim=32,
        mlp_width=2 * width,
        positions=kind,
    )


def small_decoder(model: DALLE, kind: Kind, learning: Learning) -> Decoder:
    """A new small decoder, whose weights are the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder(small_config(model, kind, learning))


def similarity(decoder: Decoder) -> Tensor:
    """Likeness of every two positions of a row, (P, P) in [-1, 1]."""
    if decoder.position_embedding is not None:
        vectors = F.normalize(decoder.position_embedding().detach(), dim=-1)
        return vectors @ vectors.mT
    ones = torch.ones(1, decoder.layout.length, 1, decoder.config.head_dim)
    turned = apply_rotary(ones, decoder.rotary[None])[0, :, 0]
    return turned @ turned.mT / decoder.config.head_dim


@torch.inference_mode()
def drawn_rows(model: DALLE, number: int) -> tuple[Tensor, Tensor]:
    """Text ids (B, T) and codes (B, N) of pictures that the model draws, without guidance and at temperature 1."""
    prompts = [f"{thing}, {style} style emoji" for thing in PROMPTS for style in STYLES]
    params = SamplingParams(temperature=1.0, guidance_scale=1.0)
    requests: list[Request] = [
        model.request(prompts[i % len(prompts)], params, seed=0, index=i // len(prompts)) for i in range(number)
    ]
    engine = new_engine(model, num_slots=min(64, number))
    codes = {id(request): codes for request, codes in engine.stream(requests)}
    texts = torch.stack([request.text_ids for request in requests])
    return texts, torch.stack([codes[id(request)].cpu() for request in requests])


def learn_positions(model: DALLE, learning: Learning) -> tuple[Decoder, list[float]]:
    """Train a small decoder with learned positions on rows that the model has drawn; return it and its losses."""
    texts, codes = drawn_rows(model, learning.pictures)
    texts, codes = texts.clone(), codes.clone()
    decoder = small_decoder(model, "learned", learning)
    generator = torch.Generator().manual_seed(0)
    batches = torch.randint(len(texts), (learning.steps, learning.batch_size), generator=generator)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3, weight_decay=0.0)
    losses = []
    for batch in batches:
        _, logits = decoder.teacher_forced(texts[batch], codes[batch])
        loss = F.cross_entropy(logits.flatten(0, 1), codes[batch].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return decoder, losses


def draw_positions(model: DALLE, learning: Learning = LEARNING) -> Drawing:
    """Draw how alike positions are: of a row's end of text and its codes, and of one code with all codes."""
    learned, losses = learn_positions(model, learning)
    tables = {
        "sinusoidal": similarity(small_decoder(model, "sinusoidal", learning)),
        "learned: before": similarity(small_decoder(model, "learned", learning)),
        f"learned: {learning.steps} steps": similarity(learned),
        "rotary": similarity(small_decoder(model, "rotary", learning)),
        "rotary 2-D (default)": similarity(model.decoder),
    }
    layout = model.decoder.layout
    height, width = layout.grid_height, layout.grid_width
    first = max(0, layout.first_code - 8)
    row, column = height // 2, width // 2
    place = layout.first_code + row * width + column
    figure = new_figure(2.2 * len(tables), 4.9)
    whole, grids = figure.subplots(2, len(tables))
    words: list[str] = []
    for (name, table), upper, lower in zip(tables.items(), whole, grids, strict=True):
        image = upper.imshow(table[first:, first:].numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        border = layout.first_code - first - 0.5
        upper.axhline(border, color=COLOURS[2], lw=1)
        upper.axvline(border, color=COLOURS[2], lw=1)
        upper.set_title(name, fontsize=10)
        lower.imshow(
            table[place, layout.first_code :].view(height, width).numpy(),
            cmap="RdBu_r",
            vmin=-1,
            vmax=1,
            interpolation="nearest",
        )
        lower.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="black", lw=1.5))
        for axes in (upper, lower):
            axes.set(xticks=[], yticks=[])
        words.append(f"{name}: {neighbours(table, layout.first_code, height, width)}")
    whole[0].set_ylabel("last 8 of the text, and the codes", fontsize=8)
    grids[0].set_ylabel("the framed code and all codes", fontsize=8)
    figure.colorbar(image, ax=[*whole, *grids], shrink=0.6)
    words.append(f"loss of the small decoder: {losses[0]:.2f} to {sum(losses[-20:]) / len(losses[-20:]):.2f} nats")
    return Drawing(figure=figure, numbers="\n".join(words))


def neighbours(table: Tensor, first_code: int, height: int, width: int) -> str:
    """Mean likeness of a code to the one on its right, the one below it, and to all others."""
    codes = table[first_code:, first_code:].view(height, width, height, width)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    right = codes[rows, columns[:-1], rows, columns[1:]].mean()
    below = codes[rows[:-1], columns, rows[1:], columns].mean()
    number = height * width
    others = (codes.sum() - number) / (number * (number - 1))
    return f"to the right {right:.2f}, below {below:.2f}, all others {others:.2f}"
