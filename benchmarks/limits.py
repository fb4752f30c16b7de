"""The machine's limits, and the least time that a decoding step can take on it.

A step reads every weight that it uses once, reads the filled part of the cache, and multiplies every weight with every
row. It therefore takes at least as long as the slower of two things, both measured here: reading that many bytes from
the level of the memory that they fit in, and that many operations in one large matrix product.
"""

import bisect
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from dalle.decoder.config import DecoderConfig

__all__ = ["Machine", "StepWork", "measure_machine", "median_seconds", "product_rate", "step_work"]

READ_BYTES = tuple(2**power for power in (20, 22, 23, 24, 25, 26, 27, 28, 30))
"""Sizes at which reading is measured: 1 MiB to 1 GiB."""
PRODUCT_SIDE = 2048
"""Rows and columns of the matrices of the large product."""


CUDA_BYTES = (2**30,)
"""Sizes on CUDA: its memory alone, because smaller blocks are bound by launches."""
CUDA_SIDE = 8192


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median duration of several runs in seconds, after one run to warm up."""
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepWork:
    """The bytes that a step must read, and its operations."""

    weight_bytes: float
    cache_bytes: float
    operations: float
    """Multiplications and additions, counted separately."""

    @property
    def num_bytes(self) -> float:
        return self.weight_bytes + self.cache_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Measured limits of the machine, with all threads of torch."""

    reading: Mapping[int, float]
    """Bytes read per second, by the number of bytes that are read again and again."""
    product: float
    """Operations per second in a large matrix product."""

    def bandwidth(self, num_bytes: float) -> float:
        """Bytes per second for a working set of this size: interpolated between the measured sizes, on a logarithmic
        scale, and constant beyond them."""
        sizes = sorted(self.reading)
        if num_bytes <= sizes[0] or num_bytes >= sizes[-1]:
            return self.reading[sizes[0] if num_bytes <= sizes[0] else sizes[-1]]
        i = bisect.bisect_right(sizes, num_bytes)
        low, high = sizes[i - 1], sizes[i]
        share = math.log(num_bytes / low) / math.log(high / low)
        return self.reading[low] + share * (self.reading[high] - self.reading[low])

    def best(self, other: "Machine") -> "Machine":
        """The higher one of each limit: other work on the machine lowers what is measured, and nothing raises it."""
        reading = {size: max(rate, other.reading.get(size, 0.0)) for size, rate in self.reading.items()}
        return Machine(reading=reading, product=max(self.product, other.product))

    def step_seconds(self, work: StepWork) -> float:
        """The least time of a step in seconds: reading or multiplying, whichever is slower."""
        return max(work.num_bytes / self.bandwidth(work.num_bytes), work.operations / self.product)


def step_work(config: DecoderConfig, num_rows: int, num_filled: float, itemsize: int) -> StepWork:
    """The work of a step of `num_rows` rows, whose cache holds `num_filled` positions each, the step's own included.

    Counted are the weights of all blocks, the final norm and the image part of the head, once; one embedding per row;
    keys and values of the filled positions. `itemsize` is the number of bytes of a number.
    """
    width, head_dim = config.width, config.head_dim
    heads = config.num_heads + 2 * config.num_kv_heads
    attention = width * heads * head_dim + config.num_heads * head_dim * width
    gated = config.mlp in ("geglu", "swiglu")
    mlp = width * config.mlp_width * (3 if gated else 2)
    matrices = config.depth * (attention + mlp) + width * config.codebook_size
    norms = (2 * config.depth + 1) * width + (2 * config.depth * head_dim if config.qk_norm else 0)
    keys_and_values = 2 * config.depth * config.num_kv_heads * head_dim * num_filled
    attended = 2 * config.depth * config.num_heads * head_dim * num_filled
    return StepWork(
        weight_bytes=itemsize * (matrices + norms + num_rows * width),
        cache_bytes=itemsize * num_rows * keys_and_values,
        operations=2 * num_rows * (matrices + attended),
    )


def measure_machine(dtype: torch.dtype, repeats: int = 7, device: str = "cpu") -> Machine:
    """Measure reading at several sizes, and a large matrix product in a dtype, on a device."""
    on_cuda = torch.device(device).type == "cuda"
    sizes = CUDA_BYTES if on_cuda else READ_BYTES
    reading = {size: max(_bytes_per_second(size, repeats, device)) for size in sizes}
    return Machine(reading=reading, product=product_rate(dtype, repeats, device))


def product_rate(dtype: torch.dtype, repeats: int = 7, device: str = "cpu") -> float:
    """Operations per second in a large matrix product: multiplications and additions, counted separately."""
    side = CUDA_SIDE if torch.device(device).type == "cuda" else PRODUCT_SIDE
    left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: left @ right, repeats)


def _bytes_per_second(num_bytes: int, repeats: int, device: str) -> list[float]:
    """Bytes per second of a few operations over one block: no single one reaches the bandwidth at all levels. Copying
    counts what is read and what is written."""
    block = torch.ones(num_bytes // 4, device=device)
    matrix, vector = block.view(-1, 1024), torch.ones(1024, device=device)
    parts = block.chunk(torch.get_num_threads())
    target = torch.empty_like(block[: len(block) // 2])
    # a small block is read many times within one measurement, which a clock could not resolve otherwise
    times = max(1, 2**25 // num_bytes)

    def rate(run: Callable[[], object]) -> float:
        def all_times() -> None:
            for _ in range(times):
                run()

        return num_bytes * times / median_seconds(all_times, repeats)

    def dots(part: Tensor) -> None:
        for _ in range(times):
            torch.dot(part, part)

    with torch.inference_mode(), ThreadPoolExecutor(len(parts)) as pool:
        in_threads = num_bytes * times / median_seconds(lambda: list(pool.map(dots, parts)), repeats)
        return [
            in_threads,
            rate(lambda: block.sum()),
            rate(lambda: block.amax()),
            rate(lambda: matrix @ vector),
            rate(lambda: target.copy_(block[: len(target)])),
        ]
