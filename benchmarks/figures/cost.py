"""What the n x n map costs: time and memory of one layer's attention against the number of tokens, measured.

Three ways to the same result: written out (product, softmax, product), torch's kernel, which computes the map in blocks
and stores none of it, and torch's kernel with a mask as the decoder calls it.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.figures.canvas import COLOURS, Drawing, new_figure
from benchmarks.tables import table

__all__ = ["Cost", "draw_cost", "measure_cost", "peak_bytes"]

HEADS, HEAD_DIM = 5, 64
"""Sizes of a layer of the default model."""
TURNS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one layer's attention for one row."""

    way: str
    num_tokens: int
    seconds: float
    """Processor time of one thread, the smallest of three runs."""
    peak: int
    """Largest number of bytes that were allocated at a time, inputs and mask not counted."""


def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention as the formula has it: the scores of all pairs are a tensor."""
    return ((q / q.shape[-1] ** 0.5) @ k.mT).softmax(-1) @ v


def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """torch's kernel without a mask."""
    return F.scaled_dot_product_attention(q, k, v)


def masked_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """torch's kernel with a causal mask (L, L), which all heads share."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "written out": written_out,
    "kernel": kernel,
    "kernel and mask": masked_kernel,
}


def peak_bytes(run: Callable[[], object]) -> int:
    """Largest number of bytes that a function has allocated at a time, by torch's allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = run()
    assert found.profiler is not None and found.profiler.kineto_results is not None
    events = [one for one in found.profiler.kineto_results.events() if one.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    del result
    return peak


@torch.inference_mode()
def measure_cost(way: str, num_tokens: int) -> Cost:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, num_tokens, HEAD_DIM, generator=generator) for _ in range(3))
    mask = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()

    def run() -> Tensor:
        return WAYS[way](q, k, v, mask)

    peak = peak_bytes(run)
    times = []
    for _ in range(TURNS):
        start = time.thread_time()  # one thread: other programs on the machine do not count
        run()
        times.append(time.thread_time() - start)
    return Cost(way=way, num_tokens=num_tokens, seconds=min(times), peak=peak)


def draw_cost(lengths: Sequence[int] = (64, 128, 256, 512, 1024, 2048, 4096)) -> Drawing:
    """Draw time and peak memory of the three ways against the number of tokens n, with lines of slope n and n^2."""
    costs = {way: [measure_cost(way, length) for length in lengths] for way in WAYS}
    figure = new_figure(10.0, 4.0)
    memory, times = figure.subplots(1, 2)
    for way, colour in zip(WAYS, (COLOURS[1], COLOURS[0], COLOURS[2]), strict=True):
        look = {"color": colour, "marker": "o", "markersize": 4, "label": way}
        memory.plot(lengths, [one.peak / 1e6 for one in costs[way]], **look)
        times.plot(lengths, [1e3 * one.seconds for one in costs[way]], **look)
    ends = [lengths[0], lengths[-1]]
    one_map = [HEADS * n * n * 4 / 1e6 for n in ends]
    one_output = [HEADS * HEAD_DIM * n * 4 / 1e6 for n in ends]
    memory.plot(ends, one_map, color="#888888", ls=":", lw=1, label="one map: heads x n x n x 4 bytes")
    memory.plot(ends, one_output, color="#888888", ls="--", lw=1, label="the result: n x D x 4 bytes")
    memory.set(ylabel="peak, MB", title="memory of one layer, one row")
    times.set(ylabel="ms", title="time of one layer, one row")
    for axes in (memory, times):
        axes.set(xscale="log", yscale="log", xlabel="n: tokens of the row")
        axes.set_xticks(lengths, [f"{n:,}" for n in lengths], fontsize=8)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    rows = [
        [f"{n:,}", *(f"{costs[way][i].peak / 1e6:,.2f}" for way in WAYS)]
        + [f"{1e3 * costs[way][i].seconds:,.2f}" for way in WAYS]
        for i, n in enumerate(lengths)
    ]
    header = ("n", *(f"{way}, MB" for way in WAYS), *(f"{way}, ms" for way in WAYS))
    return Drawing(figure=figure, numbers=table(header, rows))
