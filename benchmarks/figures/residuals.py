"""Residual connections: gradients and hidden states of the decoder's own blocks with and without them."""

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.figures.canvas import COLOURS, Drawing, new_figure
from benchmarks.tables import table
from dalle.decoder.config import DecoderConfig
from dalle.decoder.decoder import Decoder
from dalle.transformer.block import Block

__all__ = ["Flow", "draw_residuals", "measure_flow", "without_residuals"]

SEEDS = (0, 1, 2)


def config_of(depth: int, width: int) -> DecoderConfig:
    return DecoderConfig(
        text_vocab_size=64,
        text_length=8,
        codebook_size=64,
        grid_height=4,
        grid_width=4,
        width=width,
        depth=depth,
        num_heads=width // 16,
        num_kv_heads=width // 16,
        head_dim=16,
        mlp_width=2 * width,
    )


def without_residuals(block: Block, x: Tensor, mask: Tensor, rotary: Tensor) -> Tensor:
    """The branches of a block one after the other, added to nothing."""
    x = block.after_attention(block.attention(block.attention_norm(x), mask, rotary, None))
    return block.after_mlp(block.mlp(block.mlp_norm(x)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow:
    """What reaches the first block of a new decoder, and what is left at the last one; means over seeds."""

    gradient: float
    """Norm of the loss's gradient by the weights of the first block's attention."""
    similarity: float
    """Mean cosine between the hidden states of two positions behind the last block: 1 if all are alike, NaN if
    all are zero."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """How a decoder is connected, and how its weights begin."""

    name: str
    residual: bool
    own_start: bool
    """Whether weights begin as the decoder's own do, small; else their deviation is 1 / sqrt(inputs), with which a
    layer keeps the size of its inputs."""


KINDS = (
    Kind(name="with residual connections", residual=True, own_start=True),
    Kind(name="without", residual=False, own_start=True),
    Kind(name="without, larger first weights", residual=False, own_start=False),
)


def measure_flow(depth: int, kind: Kind, *, width: int = 64, seeds: Sequence[int] = SEEDS) -> Flow:
    """One forward and backward pass of new decoders over random rows, in float64: gradients may be tiny."""
    gradients, similarities = [], []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            decoder = Decoder(config_of(depth, width)).double()
            for weight in [] if kind.own_start else decoder.blocks.parameters():
                if weight.ndim == 2:
                    nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            texts, codes = torch.randint(1, 64, (8, 8)), torch.randint(64, (8, 16))
        layout = decoder.layout
        ids, positions = layout.row(texts, codes)[:, :-1], torch.arange(layout.length - 1)
        mask = decoder.masks[0][positions][:, positions]
        x, rotary = decoder.embed(ids, positions), decoder.rotary[positions][None]
        for block in decoder.blocks:
            assert isinstance(block, Block)
            x = block(x, mask, rotary, None, None) if kind.residual else without_residuals(block, x, mask, rotary)
        hidden = decoder.final_norm(x)
        logits = decoder.image_logits(hidden[:, layout.first_code - 1 :])
        F.cross_entropy(logits.flatten(0, 1), codes.flatten()).backward()
        first = decoder.blocks[0]
        assert isinstance(first, Block) and first.attention.qkv.weight.grad is not None
        gradients.append(float(first.attention.qkv.weight.grad.norm()))
        units = x.detach() / x.detach().norm(dim=-1, keepdim=True)  # NaN where nothing is left
        length = units.shape[1]
        similarities.append(float((units @ units.mT).sum((1, 2)).mean() - length) / (length * (length - 1)))
    return Flow(gradient=sum(gradients) / len(seeds), similarity=sum(similarities) / len(seeds))


def draw_residuals(depths: Sequence[int] = (2, 4, 8, 16, 32), width: int = 64) -> Drawing:
    """Draw the gradient at the first block, and the similarity of positions behind the last, against the depth."""
    flows = {kind: [measure_flow(depth, kind, width=width) for depth in depths] for kind in KINDS}
    figure = new_figure(10.0, 3.8)
    gradients, similarities = figure.subplots(1, 2)
    for kind, colour in zip(KINDS, COLOURS, strict=False):
        look = {"color": colour, "marker": "o", "markersize": 4, "label": kind.name}
        gradients.plot(depths, [one.gradient for one in flows[kind]], **look)
        similarities.plot(depths, [one.similarity for one in flows[kind]], **look)
    gradients.set(yscale="log", ylim=(1e-12, 1e6), title="gradient at the first block", ylabel="norm")
    similarities.set(ylim=(0, 1.05), title="likeness of positions behind the last block", ylabel="mean cosine")
    for axes in (gradients, similarities):
        axes.set(xscale="log", xlabel="number of blocks")
        axes.set_xticks(depths, [str(depth) for depth in depths])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    rows = [
        [str(depth), *(f"{one.gradient:.1e}" for one in pair), *(f"{one.similarity:.3f}" for one in pair)]
        for depth, *pair in zip(depths, *flows.values(), strict=True)
    ]
    header = ("blocks", *(f"gradient {kind.name}" for kind in KINDS), *(f"cosine {kind.name}" for kind in KINDS))
    return Drawing(figure=figure, numbers=table(header, rows))
