"""Benchmark of drawing: seconds per picture, and the time of a step relative to the limit of the machine.

`python -m benchmarks.draw` prints a markdown table. A step of the engine reads every weight of the decoder once and
multiplies it for every slot. So its lower bound is the slower of two operations, both measured in the same run: reading
that many bytes, and as many multiplications in one large matrix product.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from dalle import DALLE, Engine, Request
from dalle.checkpoint.store import DEFAULT_MODEL
from dalle.model import NUM_SLOTS

__all__ = ["main"]

PROMPT = "a red panda, fluent 3d style emoji"


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median duration of several runs, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def machine_limits() -> tuple[float, float]:
    """Bytes read per second, and float32 operations per second."""
    block = torch.ones(2**26)
    reading = block.numel() * 4 / seconds(lambda: block.sum(), 9)
    matrix = torch.randn(2048, 2048)
    product = 2 * 2048**3 / seconds(lambda: matrix @ matrix, 9)
    return reading, product


def step_seconds(model: DALLE) -> float:
    """Median duration of a step with every slot busy, in seconds."""
    engine = Engine(model.decoder, num_slots=NUM_SLOTS)
    assert model.text_tokenizer is not None
    text_ids = model.text_tokenizer.encode(PROMPT)
    for seed in range(NUM_SLOTS // 2):
        engine.add(Request(text_ids=text_ids, null_ids=model.text_tokenizer.null_ids, params=model.sampling, seed=seed))
    engine.step()
    times = []
    for _ in range(model.num_codes - 2):
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def print_timings(
    model: Annotated[str, typer.Option(help="Name or directory of the model.")] = DEFAULT_MODEL,
    threads: Annotated[int, typer.Option(help="Number of CPU threads; 0 for the default of torch.")] = 0,
    repeats: Annotated[int, typer.Option(help="Number of runs to take the median of.")] = 5,
) -> None:
    """Measure one picture, four pictures, and a step relative to the limit of the machine."""
    if threads:
        torch.set_num_threads(threads)
    start = time.perf_counter()
    dalle = DALLE.load(model)
    loading = time.perf_counter() - start
    one = seconds(lambda: list(dalle.generate(PROMPT, seed=1)), repeats)
    four = seconds(lambda: list(dalle.generate(PROMPT, n=4, seed=1)), repeats)
    step = step_seconds(dalle)

    used = [p for name, p in dalle.decoder.named_parameters() if not name.startswith("embedding")]
    num_weights = sum(p.numel() for p in used) - dalle.decoder.config.text_vocab_size * dalle.decoder.config.width
    reading, product = machine_limits()
    limit = max(4 * num_weights / reading, 2 * num_weights * NUM_SLOTS / product)
    rows = {
        "load the model": f"{loading:.2f} s",
        "one picture": f"{one:.2f} s",
        "four pictures": f"{four:.2f} s, {4 / four:.1f} pictures/s",
        f"a step of {NUM_SLOTS} slots": f"{1e3 * step:.2f} ms",
        "the machine's limit for that step": f"{1e3 * limit:.2f} ms",
        "reading, multiplying": f"{reading / 1e9:.0f} GB/s, {product / 1e9:.0f} GFLOP/s",
        "step / limit": f"{step / limit:.2f}",
        "key-value cache": f"{dalle.decoder.new_cache(NUM_SLOTS).num_bytes / 1e6:.1f} MB",
    }
    print(f"{Path(model).name}, {num_weights / 1e6:.1f} M weights a step, {torch.get_num_threads()} threads\n")
    print("| what | figure |\n|---|---|")
    for what, figure in rows.items():
        print(f"| {what} | {figure} |")


def main() -> None:
    typer.run(print_timings)


if __name__ == "__main__":
    main()
