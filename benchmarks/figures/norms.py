"""LayerNorm and RMSNorm beside BatchNorm: what a token's normalised channels depend on."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.figures.canvas import COLOURS, Drawing, new_figure, show_map
from dalle import DALLE

__all__ = ["Company", "Normed", "draw_norms", "hidden_states", "influence", "measure_company"]

PROMPT = "a sunflower, fluent 3d style emoji"
NEIGHBOURS = (
    "a red apple",
    "an owl",
    "green heart",
    "full moon",
    "blue circle",
    "soccer ball",
    "evergreen tree",
    "fish",
)
STYLES = ("noto", "twemoji", "emojione", "fluent flat")


class Normed(nn.Module):
    """A norm of hidden states (B, L, D) as a module of torch has it; BatchNorm takes the channels second, and computes
    its mean and variance over B and L, as in training."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.is_batch_norm = kind == "BatchNorm"
        kinds: dict[str, nn.Module] = {
            "BatchNorm": nn.BatchNorm1d(width, affine=False, track_running_stats=False),
            "LayerNorm": nn.LayerNorm(width, elementwise_affine=False),
            "RMSNorm": nn.RMSNorm(width, elementwise_affine=False, eps=1e-5),
        }
        self.norm = kinds[kind]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.mT).mT if self.is_batch_norm else self.norm(x)


KINDS = ("BatchNorm", "LayerNorm", "RMSNorm")


@torch.no_grad()
def hidden_states(model: DALLE, prompts: Sequence[str], num_tokens: int) -> Tensor:
    """Hidden states (B, L, D) of the last tokens of prompts, behind the first half of the model's layers."""
    tokenizer, decoder = model.text_tokenizer, model.decoder
    assert tokenizer is not None
    ids = tokenizer.encode_batch(prompts)[:, -num_tokens:]
    found: list[Tensor] = []
    middle = decoder.blocks[len(decoder.blocks) // 2]
    handle = middle.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    first = decoder.layout.first_code
    decoder(ids, torch.arange(first - num_tokens, first))
    handle.remove()
    return found[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Company:
    """The last token of a row, normalised alone and beside neighbours."""

    alone: Tensor
    """(D,)."""
    together: Tensor
    """(D,)."""

    @property
    def change(self) -> float:
        """Largest difference of a channel; 0 if no bit has changed."""
        return float((self.alone - self.together).abs().max())


@torch.inference_mode()
def measure_company(kind: str, states: Tensor, num_neighbours: int) -> Company:
    """Normalise the first row of states (B, L, D) alone, and with so many of the others."""
    norm = Normed(kind, states.shape[-1])
    alone, together = norm(states[:1])[0, -1], norm(states[: 1 + num_neighbours])[0, -1]
    return Company(alone=alone, together=together)


def influence(kind: str, states: Tensor) -> Tensor:
    """How strongly the output at each position depends on the input at each position: norms of derivatives (L, L) of
    one row (L, D)."""
    norm = Normed(kind, states.shape[-1])
    jacobian = torch.func.jacrev(lambda x: norm(x[None])[0])(states)
    assert isinstance(jacobian, Tensor)
    return jacobian.square().sum((1, 3)).sqrt()


def draw_norms(model: DALLE, num_tokens: int = 8, sizes: Sequence[int] = (1, 2, 4, 8, 16, 31)) -> Drawing:
    """Draw the channels of a token alone and in company; the largest change against the number of neighbours; and what
    a position's output depends on."""
    others = [f"{thing}, {style} style emoji" for style in STYLES for thing in NEIGHBOURS]
    states = hidden_states(model, [PROMPT, *others], num_tokens)
    figure = new_figure(13.0, 3.7)
    points, lines, *maps = figure.subplots(1, 5, width_ratios=(1.1, 1.1, 0.8, 0.8, 0.8))
    words = []
    for number, kind in enumerate(KINDS):
        one = measure_company(kind, states, sizes[-1])
        look = {"color": COLOURS[(1, 0, 2)[number]], "label": kind}
        if kind != "LayerNorm":
            points.scatter(one.alone, one.together, s=6, alpha=0.7, **look)
        changes = [measure_company(kind, states, size).change for size in sizes]
        lines.plot(sizes, changes, marker="o", markersize=4, ls="-" if number < 2 else "--", **look)
        words.append(f"{kind}: largest change {', '.join(f'{change:.3g}' for change in changes)}")
        table = influence(kind, states[0])
        show_map(maps[number], table / table.max(), largest=1.0)
        maps[number].set_title(kind, fontsize=10)
        maps[number].set_xlabel("depends on input at", fontsize=8)
        later = float(table.triu(1).max() / table.max())
        words.append(f"{kind}: dependence on a later token up to {later:.1%} of the largest one")
    maps[0].set_ylabel("output at position", fontsize=8)
    points.set(xlabel="a channel, alone", ylabel=f"the same channel beside {sizes[-1]} rows", title="one token")
    points.axline((0, 0), slope=1, color="#888888", lw=0.8)
    lines.set(xscale="log", xlabel="rows beside it", title="largest change of a channel")
    lines.set_xticks(sizes, [str(size) for size in sizes])
    lines.minorticks_off()
    lines.grid(alpha=0.3)
    for axes in (points, lines):
        axes.legend(fontsize=8, frameon=False)
    return Drawing(figure=figure, numbers="\n".join(words))
