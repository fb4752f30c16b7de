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
import heapq
import itertools
import json
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.tables import table
from dalle import DALLE, Engine, Request
from dalle.steps import StepKind, new_engine

__all__ = ["LoadRun", "Turn", "arrival_times", "main", "offer", "queueing", "saturated_rate"]

TARGET_LOAD = 0.8
LOAD_HEADER = ("slots", "load", "delivered", "turns", "requests", "median", "p95", "p95 of queueing")
LOADS = "0.2,0.4,0.6,0.8,0.9,0.95"
NUM_LONE = 3
NUM_ROUNDS = 5
"""Number of times that all slots are filled, to measure throughput."""
NUM_SIMULATED = 50_000
WARM_UP = 2
"""A load counts from so many durations of a lone request after its first arrival."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadRun:
    """One run at a load."""

    load: float
    """Offered pictures per second as a share of the static throughput."""
    delivered: float
    """Finished pictures per second, from the end of the warm-up to the end of the arrivals, as a share of the static
    throughput."""
    latencies: Sequence[float]
    """Latencies of the requests that arrive after the warm-up, in durations of a lone request."""

    @classmethod
    def of(
        cls, served: Sequence[tuple[float, float]], *, load: float, seconds: float, lone: float, static: float
    ) -> "LoadRun":
        """From arrivals and finishes in seconds, of requests that arrived within `seconds`."""
        start = WARM_UP * lone
        finished = sum(start < finish <= seconds for _, finish in served)
        return cls(
            load=load,
            delivered=finished / (seconds - start) / static,
            latencies=[(finish - arrival) / lone for arrival, finish in served if arrival > start],
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """One measurement of an engine of `slots` slots."""

    slots: int
    together: int
    """Number of pictures that all slots hold."""
    lone: float
    """Seconds of a request in an empty engine."""
    static: float
    """Pictures per second if all slots are filled at once."""
    saturated: float
    """Pictures per second if requests always wait."""
    runs: Sequence[LoadRun]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Turn":
        return cls(**values | {"runs": [LoadRun(**run) for run in values["runs"]]})


def arrival_times(rate: float, seconds: float, seed: int) -> list[float]:
    """Ascending arrival times in [0, seconds) of a Poisson process, given that it has rate * seconds arrivals."""
    return sorted(np.random.default_rng(seed).uniform(0, seconds, round(rate * seconds)).tolist())


def queueing(load: float, num_servers: int) -> list[float]:
    """Latencies of requests at a load in [0, 1), in durations of service, if service takes constant time and costs
    nothing more in company: a simulation of the queue M/D/c. No engine that serves in order has less."""
    gaps = np.random.default_rng(0).exponential(1 / (load * num_servers), NUM_SIMULATED)
    free, latencies = [0.0] * num_servers, list[float]()
    for arrival in np.cumsum(gaps).tolist():
        finish = max(arrival, free[0]) + 1
        heapq.heapreplace(free, finish)
        latencies.append(finish - arrival)
    return latencies


def offer(engine: Engine, requests: Iterator[Request], arrivals: Sequence[float]) -> list[tuple[float, float]]:
    """Add a request at each arrival time and step until all are finished. Returns arrival and finish of each request
    in seconds from now, in the order of the finishes."""
    pending, open_requests, served = deque(arrivals), dict[int, float](), list[tuple[float, float]]()
    start = time.perf_counter()
    while pending or open_requests:
        now = time.perf_counter() - start
        while pending and pending[0] <= now:
            open_requests[engine.add(next(requests))] = pending.popleft()
        if not open_requests:
            time.sleep(pending[0] - now)
            continue
        finished = engine.step().finished
        now = time.perf_counter() - start
        served += [(open_requests.pop(request_id), now) for request_id in finished]
    return served


def saturated_rate(engine: Engine, requests: Iterator[Request], num_together: int) -> float:
    """Pictures per second while requests always wait. The `num_together` pictures start at equal distances, so that no
    two of them finish in the same step if there are as many steps."""
    num_codes = engine.layout.num_codes
    added = set[int]()
    for number in range(num_together):
        added.add(engine.add(next(requests)))
        for _ in range(num_codes * number // num_together, num_codes * (number + 1) // num_together):
            added -= engine.step().finished.keys()
    num_finished, start = 0, time.perf_counter()
    for _ in range(NUM_ROUNDS * num_codes):
        if not engine.num_waiting:
            added.add(engine.add(next(requests)))
        finished = engine.step().finished
        num_finished += len(finished)
        added -= finished.keys()
    seconds = time.perf_counter() - start
    for request_id in added:
        engine.cancel(request_id)
    return num_finished / seconds


def static_rate(engine: Engine, requests: Iterator[Request], num_together: int) -> float:
    """Pictures per second if all slots are filled at once, again and again."""
    batches = [[next(requests) for _ in range(num_together)] for _ in range(NUM_ROUNDS)]
    start = time.perf_counter()
    for batch in batches:
        engine.run(batch)
    return NUM_ROUNDS * num_together / (time.perf_counter() - start)


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
