"""Benchmark of the service against the bare engine and a plain server, in one run on one machine.

`python -m benchmarks.serving` starts a plain FastAPI server with a lock (`benchmarks.plain_server`), then the service
on a local Ray, and runs the engine in this process, all with the default model. It prints a markdown table and draws a
plot: seconds for a single picture, pictures per second under load, latency against offered load, the time to the first
preview, and 64 clients at once.

The speed of a machine varies, by a fifth within a minute where this was written. So the engine and a server take turns,
a few pictures each, and are compared within a turn: the median of the ratios is given, with the lowest and the highest.
"""

import asyncio
import contextlib
import dataclasses
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer

from dalle import DALLE
from dalle.images import encode_image

__all__ = ["main"]

PROMPT = "a red panda, fluent 3d style emoji"
GENERATIONS = "/v1/images/generations"
LOADS = (0.25, 0.5, 0.75, 0.9)
"""Offered loads, as shares of the bare engine's pictures per second."""
START_SECONDS = 180


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latencies:
    """Latencies of requests for one picture each."""

    seconds: Sequence[float]
    rejected: int
    """Number of requests rejected with status 429."""
    span: float
    """Seconds from the first request to the last answer."""

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.seconds, share)) if self.seconds else float("nan")

    @property
    def rate(self) -> float:
        """Pictures per second."""
        return len(self.seconds) / self.span


def bare_engine(model: DALLE, num_alone: int, num_together: int) -> tuple[float, float]:
    """Returns seconds for a single picture, and pictures per second for many, pixels and PNGs included."""

    def seconds_for(n: int, seed: int) -> float:
        start = time.perf_counter()
        for picture in model.generate(PROMPT, n=n, seed=seed):
            encode_image(picture.image, format="png", text=picture.receipt.to_text())
        return time.perf_counter() - start

    seconds_for(1, 0)
    alone = statistics.median(seconds_for(1, seed) for seed in range(num_alone))
    return alone, num_together / seconds_for(num_together, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """One measurement of the engine and, right after it, of a server."""

    engine_alone: float
    """Seconds for a single picture."""
    server_alone: float
    engine_rate: float
    """Pictures per second under load."""
    server_rate: float

    @property
    def time_ratio(self) -> float:
        return self.server_alone / self.engine_alone

    @property
    def rate_ratio(self) -> float:
        return self.server_rate / self.engine_rate


def take_turns(model: DALLE, url: str, num_turns: int) -> list[Turn]:
    """Measure turns of 5 single pictures and 32 under load, for the engine and for the server."""
    turns = []
    for _ in range(num_turns):
        engine_alone, engine_rate = bare_engine(model, 5, 32)
        single, saturated = asyncio.run(closed_loop(url, 1, 5)), asyncio.run(closed_loop(url, 16, 2))
        turn = Turn(
            engine_alone=engine_alone,
            server_alone=single.percentile(50),
            engine_rate=engine_rate,
            server_rate=saturated.rate,
        )
        turns.append(turn)
    return turns


@contextlib.contextmanager
def server(*command: str, port: int) -> Iterator[str]:
    """Start a server process, and yield its address when it is ready."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(url + "/ready", timeout=10).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{' '.join(command)} does not become ready")
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def request_seconds(client: httpx.AsyncClient, url: str, seed: int) -> float | None:
    """Request a picture. Returns the seconds until the response, None if it was rejected."""
    start = time.perf_counter()
    response = await client.post(url + GENERATIONS, json={"prompt": PROMPT, "seed": seed})
    if response.status_code == 429:
        return None
    response.raise_for_status()
    return time.perf_counter() - start


def _latencies(answers: Sequence[float | None], span: float) -> Latencies:
    seconds = [one for one in answers if one is not None]
    return Latencies(seconds=seconds, rejected=len(answers) - len(seconds), span=span)


async def closed_loop(url: str, num_clients: int, num_each: int) -> Latencies:
    """Latencies with clients that send their next request as soon as the previous one is answered."""
    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=None)) as client:

        async def one(number: int) -> list[float | None]:
            return [await request_seconds(client, url, number * num_each + i) for i in range(num_each)]

        start = time.perf_counter()
        answers = await asyncio.gather(*map(one, range(num_clients)))
        return _latencies([one for some in answers for one in some], time.perf_counter() - start)


async def open_loop(url: str, rate: float, num: int) -> Latencies:
    """Latencies with requests at random times, on average `rate` per second, however many are still unanswered."""
    gaps = np.random.default_rng(0).exponential(1 / rate, num)
    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=None)) as client:
        start = time.perf_counter()
        tasks = []
        for seed, gap in enumerate(gaps):
            await asyncio.sleep(gap)
            tasks.append(asyncio.create_task(request_seconds(client, url, seed)))
        return _latencies(await asyncio.gather(*tasks), time.perf_counter() - start)


async def first_previews(url: str, num: int) -> tuple[float, float]:
    """Median seconds to the first of three previews, and to the picture."""
    firsts, lasts = [], []
    async with httpx.AsyncClient(timeout=300) as client:
        for seed in range(num):
            start = time.perf_counter()
            body = {"prompt": PROMPT, "seed": seed, "stream": True, "partial_images": 3}
            async with client.stream("POST", url + GENERATIONS, json=body) as response:
                times = [
                    time.perf_counter() - start async for line in response.aiter_lines() if line.startswith("event")
                ]
            firsts.append(times[0])
            lasts.append(times[-1])
    return statistics.median(firsts), statistics.median(lasts)


def plot(results: dict[str, dict[float, Latencies]], path: Path) -> None:
    """Plot latency against offered load: the median as a line, and a band up to the 95th percentile."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, points in results.items():
        rates = list(points)
        axes.plot(rates, [one.percentile(50) for one in points.values()], marker="o", label=name)
        axes.fill_between(
            rates,
            [one.percentile(50) for one in points.values()],
            [one.percentile(95) for one in points.values()],
            alpha=0.2,
        )
    axes.set(xlabel="requested pictures per second", ylabel="seconds per picture: median to p95", yscale="log")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(
    requests: Annotated[int, typer.Option(help="Number of requests at each load.")] = 120,
    turns: Annotated[int, typer.Option(help="Number of turns of the engine and a server.")] = 12,
    out: Annotated[Path, typer.Option(help="File that the plot is written to.")] = Path("docs/pictures/latency.png"),
) -> None:
    """Compare the service with the bare engine and a plain server; print tables and draw a plot."""
    model = DALLE.load()
    bare_engine(model, 1, 4)
    port = free_port()
    commands = {
        "FastAPI and a lock": (sys.executable, "-m", "uvicorn", "benchmarks.plain_server:app", "--port", str(port)),
        "this service": (sys.executable, "-m", "serving", "--port", str(port)),
    }
    offered: list[float] = []
    rows: list[Sequence[str]] = []
    plots: dict[str, dict[float, Latencies]] = {}
    for name, command in commands.items():
        with server(*command, port=port) as url:
            asyncio.run(closed_loop(url, 1, 2))
            taken = take_turns(model, url, turns)
            offered = offered or [
                round(load * statistics.median(one.engine_rate for one in taken), 2) for load in LOADS
            ]
            crowd = asyncio.run(closed_loop(url, 64, 1))
            plots[name] = {rate: asyncio.run(open_loop(url, rate, requests)) for rate in offered}
            rows.append(
                (
                    name,
                    _median(one.engine_alone for one in taken),
                    _median(one.server_alone for one in taken),
                    _spread(one.time_ratio for one in taken),
                    _median(one.engine_rate for one in taken),
                    _median(one.server_rate for one in taken),
                    _spread(one.rate_ratio for one in taken),
                    f"{crowd.percentile(50):.1f} / {crowd.percentile(99):.1f}, {crowd.rejected}",
                )
            )
            previews = asyncio.run(first_previews(url, 15)) if name == "this service" else None
    header = (
        "",
        "single picture: engine, s",
        "server, s",
        "ratio",
        "under load: engine, pictures/s",
        "server, pictures/s",
        "ratio",
        "64 at once: p50 / p99 s, rejected",
    )
    print(_table([header, *rows]))
    print()
    load_header = ("offered, pictures/s", *(f"{name}: p50 / p95 / p99 s, rejected" for name in plots))
    load_rows = [
        (
            f"{rate:.2f}",
            *(
                " / ".join(f"{points[rate].percentile(p):.2f}" for p in (50, 95, 99)) + f", {points[rate].rejected}"
                for points in plots.values()
            ),
        )
        for rate in offered
    ]
    print(_table([load_header, *load_rows]))
    if previews is not None:
        print(f"\nFirst of three previews after {previews[0]:.2f} s, the picture after {previews[1]:.2f} s.")
    plot(plots, out)
    print(f"plot: {out}")


def _median(numbers: Iterable[float]) -> str:
    return f"{statistics.median(numbers):.2f}"


def _spread(ratios: Iterable[float]) -> str:
    values = sorted(ratios)
    return f"{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    typer.run(main)
