"""Requests at random times, for `benchmarks.steadiness`: an engine under a load, and what queueing alone would cost."""

import dataclasses
import heapq
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dalle import Engine, Request

__all__ = ["LoadRun", "Turn", "arrival_times", "offer", "queueing", "saturated_rate", "static_rate"]

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
