"""Benchmark of continuous batching under load: latency and throughput when requests arrive at random times.

`python -m benchmarks.steadiness` draws guided pictures of the default model with an `Engine` in this process, without
pixels, and prints two markdown tables and a plot. Each turn measures, one after the other:

    lone       a request in an empty engine
    static     all slots filled at once, and again when all are finished: the throughput that the others are compared to
    saturated  requests always waiting, and slots at different positions of their rows
    loads      requests at random times, at shares of the static throughput

Arrivals are a Poisson process given its number of arrivals, so that the offered load is exact. All times are those of
the wall clock. The latency of a request counts from its place in the schedule, however late the engine takes it.
Every request has a text of its own, so no prefill is reused except that of the null caption.

With `--results` the measurements of several commands add up: `--slots 8`, then `--slots 16`, each below two minutes.
"""

import dataclasses
import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.load import LoadRun, Turn, arrival_times, offer, queueing, saturated_rate, static_rate
from benchmarks.tables import table
from dalle import DALLE, Engine, Request
from dalle.steps import StepKind, new_engine

__all__ = ["load_rows", "main", "measure", "throughput_rows"]

TARGET_LOAD = 0.8
LOAD_HEADER = ("slots", "load", "delivered", "turns", "requests", "median", "p95", "p95 of queueing")
LOADS = "0.2,0.4,0.6,0.8,0.9,0.95"
NUM_LONE = 3


def measure(engine: Engine, requests: Iterator[Request], loads: Sequence[float], seconds: float, seed: int) -> Turn:
    """Measure a turn. The target load runs for three times as many seconds as each of the others."""
    num_together = engine.num_slots // next(requests).num_slots

    def lone_seconds() -> float:
        return offer(engine, requests, [0.0])[0][1]

    lone = statistics.median(lone_seconds() for _ in range(NUM_LONE))
    static = static_rate(engine, requests, num_together)
    saturated = saturated_rate(engine, requests, num_together)
    runs = []
    for number, load in enumerate(loads):
        span = seconds * (3 if load == TARGET_LOAD else 1)
        served = offer(engine, requests, arrival_times(load * static, span, 100 * seed + number))
        runs.append(LoadRun.of(served, load=load, seconds=span, lone=lone, static=static))
    return Turn(slots=engine.num_slots, together=num_together, lone=lone, static=static, saturated=saturated, runs=runs)


def requests_of(model: DALLE) -> Iterator[Request]:
    """Requests of the default sampling parameters, each with random text ids."""
    example = model.request("emoji", model.sampling, seed=0)
    num_ids, generator = model.decoder.layout.num_text_ids, torch.Generator().manual_seed(0)
    for seed in itertools.count():
        text_ids = torch.randint(1, num_ids, example.text_ids.shape, generator=generator)
        yield dataclasses.replace(example, text_ids=text_ids, seed=seed)


def throughput_rows(turns: Sequence[Turn]) -> list[list[str]]:
    """For each number of slots, medians over the turns, and the lowest and highest ratio."""
    rows = []
    for slots in sorted({turn.slots for turn in turns}):
        chosen = [turn for turn in turns if turn.slots == slots]
        ratios = sorted(turn.saturated / turn.static for turn in chosen)
        lone, static = (statistics.median(getattr(turn, name) for turn in chosen) for name in ("lone", "static"))
        spread = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        rows.append([str(slots), str(len(chosen)), f"{lone:.3f}", f"{static:.1f}", spread])
    return rows


def by_load(turns: Sequence[Turn], slots: int) -> dict[float, list[LoadRun]]:
    """Runs of an engine of so many slots by load, ascending."""
    runs = sorted((run for turn in turns if turn.slots == slots for run in turn.runs), key=lambda run: run.load)
    return {load: list(group) for load, group in itertools.groupby(runs, key=lambda run: run.load)}


def percentiles(runs: Sequence[LoadRun], share: float) -> list[float]:
    """A percentile of the latencies of each run, ascending."""
    return sorted(float(np.percentile(run.latencies, share)) for run in runs)


def load_rows(turns: Sequence[Turn]) -> list[list[str]]:
    """For each number of slots and load, medians over the turns: latencies in durations of a lone request, the lowest
    and highest 95th percentile of a turn, and that of queueing alone."""
    rows = []
    for slots in sorted({turn.slots for turn in turns}):
        chosen = [turn for turn in turns if turn.slots == slots]
        # a picture of a full batch takes longer than a lone one: so does each one in the simulated queue
        service = statistics.median(turn.together / turn.static / turn.lone for turn in chosen)
        for load, runs in by_load(turns, slots).items():
            delivered = statistics.median(run.delivered for run in runs)
            num, high = sum(len(run.latencies) for run in runs), percentiles(runs, 95)
            alone = service * np.percentile(queueing(load, chosen[0].together), 95)
            middle, spread = statistics.median(percentiles(runs, 50)), f"({high[0]:.2f} to {high[-1]:.2f})"
            figures = [f"{middle:.2f}", f"{statistics.median(high):.2f} {spread}", f"{alone:.2f}"]
            rows.append([str(slots), f"{load:.0%}", f"{delivered:.0%}", str(len(runs)), str(num), *figures])
    return rows


def plot(turns: Sequence[Turn], path: Path) -> None:
    """Plot latencies and throughput against the offered load."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for number, slots in enumerate(sorted({turn.slots for turn in turns})):
        groups, color = by_load(turns, slots), f"C{number}"
        loads = [100 * load for load in groups]
        low, middle, high = (
            [statistics.median(percentiles(runs, share)) for runs in groups.values()] for share in (5, 50, 95)
        )
        left.plot(loads, middle, color=color, label=f"{slots} slots: median")
        left.plot(loads, high, color=color, ls="--", label="95th percentile")
        left.fill_between(loads, low, high, color=color, alpha=0.12, lw=0)
        delivered = [100 * statistics.median(run.delivered for run in runs) for runs in groups.values()]
        right.plot(loads, delivered, marker="o", color=color, label=f"{slots} slots")
        saturated = statistics.median(turn.saturated / turn.static for turn in turns if turn.slots == slots)
        right.axhline(100 * saturated, color=color, ls=":", label="saturated")
    left.axhline(2.5, color="k", lw=0.8, ls=":")
    left.set(ylabel="latency / a lone request's", ylim=(0, None))
    right.plot([0, 100], [0, 100], color="k", lw=0.8)
    right.set(ylabel="delivered, % of static throughput", xlim=(0, 100), ylim=(0, 110))
    for axes in (left, right):
        axes.set_xlabel("offered load, % of static throughput")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(
    slots: Annotated[str, typer.Option(help="Numbers of slots, with commas between them.")] = "8,16,32",
    loads: Annotated[str, typer.Option(help="Offered loads, as shares of the static throughput.")] = LOADS,
    turns: Annotated[int, typer.Option(help="Number of turns.")] = 2,
    seconds: Annotated[float, typer.Option(help="Seconds of arrivals at a load; three times as many at 0.8.")] = 6.0,
    step: Annotated[StepKind, typer.Option(help="Kind of step.")] = "eager",
    parallel: Annotated[int, typer.Option(help="Width of the windows of parallel decoding; 1 is code by code.")] = 1,
    results: Annotated[Path | None, typer.Option(help="JSON lines to append to; tables and plot show all.")] = None,
    out: Annotated[Path, typer.Option(help="File that the plot is written to.")] = Path("docs/pictures/steadiness.png"),
) -> None:
    """Measure latency and throughput of continuous batching under load; print tables and draw a plot."""
    model = DALLE.load(device="cpu")
    lines = results.read_text(encoding="utf-8").splitlines() if results is not None and results.exists() else []
    measured = [Turn.from_dict(json.loads(line)) for line in lines]
    print(f"step: {step}, {torch.get_num_threads()} threads, torch {torch.__version__}\n", flush=True)
    for number in (int(number) for number in slots.split(",") if number):
        engine, requests = new_engine(model, num_slots=number, step=step, parallel=parallel), requests_of(model)
        engine.run([next(requests)])
        for _ in range(turns):
            turn = measure(engine, requests, [float(load) for load in loads.split(",")], seconds, len(measured))
            measured.append(turn)
            if results is not None:
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(dataclasses.asdict(turn)) + "\n")
    header = ("slots", "turns", "lone request, s", "static, pictures/s", "saturated / static")
    print(table(header, throughput_rows(measured)), "\n")
    print(
        table(
            LOAD_HEADER,
            load_rows(measured),
        ),
        "\n",
    )
    plot(measured, out)
    print(f"plot: {out}")


if __name__ == "__main__":
    typer.run(main)
