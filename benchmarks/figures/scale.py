"""Division by the square root of the head's width: entropy and gradient of the softmax with and without it."""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.figures.attention import PROMPT, SEED
from benchmarks.figures.canvas import COLOURS, Drawing, new_figure
from benchmarks.figures.observed import AttentionCall, draw_row, observed, run_row
from dalle import DALLE
from dalle.transformer.attention import Attention

__all__ = ["Softness", "draw_scale", "softness", "softness_of"]

NUM_TOKENS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Softness:
    """How soft attention weights are."""

    deviation: float
    """Standard deviation of the scores, multiplied by the scale."""
    entropy: float
    """Mean entropy of a query's weights in bits."""
    gradient: float
    """Median norm of the derivatives of a query's weights by its scaled scores."""


def softness_of(call: AttentionCall, scale: float) -> Softness:
    """How soft the weights of a layer are with another scale. The derivatives of p = softmax(s) are diag(p) - p p^T."""
    queries, keys, _ = call.projected
    scores = scale * (queries @ keys.mT)
    p = call.weights(scale).double()
    jacobian = torch.diag_embed(p) - p[..., None] * p[..., None, :]
    return Softness(
        deviation=float(scores.std()),
        entropy=float(-(p * p.clamp_min(1e-300).log2()).sum(-1).mean()),
        gradient=float(jacobian.square().sum((-2, -1)).sqrt().median()),
    )


def softness(head_dim: int, *, seed: int = 0, num_tokens: int = NUM_TOKENS) -> tuple[Softness, Softness]:
    """Softness with and without the division, of a new `Attention` of one head over random tokens. Queries and keys are
    normalised, so their channels have a mean square of 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        attention = Attention(
            head_dim, 1, 1, head_dim, qkv_bias=False, output_bias=False, qk_norm_epsilon=1e-5, rotary_values=False
        )
        tokens: Tensor = torch.randn(1, num_tokens, head_dim)
    with observed(attention) as calls:
        attention(tokens, torch.ones(1, 1, num_tokens, num_tokens, dtype=torch.bool), None, None)
    (call,) = calls
    return softness_of(call, call.scale), softness_of(call, 1.0)


def draw_scale(model: DALLE, head_dims: Sequence[int] = (4, 8, 16, 32, 64, 128, 256, 512)) -> Drawing:
    """Draw entropy and gradient of the softmax against the head's width, with and without the division; and the weights
    of one query of the model."""
    pairs = [softness(head_dim) for head_dim in head_dims]
    figure = new_figure(12.0, 3.6)
    entropies, gradients, bars = figure.subplots(1, 3)
    for number, name in enumerate(("divided by sqrt(head_dim)", "not divided")):
        values = [pair[number] for pair in pairs]
        look = {"color": COLOURS[number], "marker": "o", "markersize": 4, "label": name}
        entropies.plot(head_dims, [one.entropy for one in values], **look)
        gradients.plot(head_dims, [one.gradient for one in values], **look)
    entropies.axhline(math.log2(NUM_TOKENS), color="#888888", ls=":", lw=1)
    entropies.set(xscale="log", xlabel="head_dim", ylabel="bits", ylim=(0, None), title="entropy of the weights")
    gradients.set(xscale="log", xlabel="head_dim", ylim=(0, None), title="gradient through the softmax")
    for axes in (entropies, gradients):
        axes.set_xticks(head_dims, [str(one) for one in head_dims], fontsize=8)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    entropies.legend(fontsize=8, frameon=False)
    row = draw_row(model, PROMPT, SEED)
    calls = run_row(model.decoder, row)
    call = calls[0]
    for number, scale in enumerate((call.scale, 1.0)):
        weights = call.weights(scale)[0, 0, -1].sort(descending=True).values[:16].tolist()
        bars.bar([i + 0.4 * number + 0.8 for i in range(len(weights))], weights, 0.4, color=COLOURS[number])
    bars.set(
        xlabel="keys, the heaviest first", ylabel="weight", title="the default model's last query, layer 1, head 1"
    )
    bars.set_xticks((1, 4, 8, 12, 16))
    bars.title.set_fontsize(10)
    lines = [
        f"head_dim {d}: scores {a.deviation:.2f} | {b.deviation:.2f}, entropy {a.entropy:.2f} | {b.entropy:.2f} bits, "
        f"gradient {a.gradient:.3f} | {b.gradient:.3f}"
        for d, (a, b) in zip(head_dims, pairs, strict=True)
    ]
    real = [[softness_of(call, scale).entropy for call in calls] for scale in (call.scale, 1.0)]
    means = [sum(values) / len(values) for values in real]
    lines.append(f"the model's own layers: {means[0]:.2f} bits divided, {means[1]:.2f} not divided")
    return Drawing(figure=figure, numbers="\n".join(["divided | not divided", *lines]))
