"""The service against the bare engine, and against what research demos do, in one run on one machine.

`python -m benchmarks.serving` starts one after the other: the engine in this process, a plain FastAPI server with a
lock (`benchmarks.plain_server`), and the service on a Ray of its own, all with the default model. It prints a markdown
table and draws a plot: seconds for a picture alone, pictures a second when many ask, latency against offered load, the
time to the first preview, and 64 clients at once.
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
from collections.abc import Iterator, Sequence
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
"""Offered load, as shares of what the bare engine draws."""
START_SECONDS = 180


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latencies:
    """Of requests for one picture each."""

    seconds: Sequence[float]
    refused: int
    span: float
    """Seconds from the first request to the last answer."""

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.seconds, share)) if self.seconds else float("nan")

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return len(self.seconds) / self.span


def bare_engine(model: DALLE, num_alone: int, num_together: int) -> tuple[float, float]:
    """(seconds for a picture alone, pictures a second in a full batch), pixels and PNGs included."""

    def draw(n: int, seed: int) -> float:
        start = time.perf_counter()
        for picture in model.generate(PROMPT, n=n, seed=seed):
            encode_image(picture.image, format="png", text=picture.receipt.to_text())
        return time.perf_counter() - start

    draw(1, 0)
    alone = statistics.median(draw(1, seed) for seed in range(num_alone))
    return alone, num_together / draw(num_together, 0)


@contextlib.contextmanager
def server(*command: str, port: int) -> Iterator[str]:
    """The address of a server process that is ready."""
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


async def ask(client: httpx.AsyncClient, url: str, seed: int) -> float | None:
    """Seconds for a picture; None if it was refused."""
    start = time.perf_counter()
    response = await client.post(url + GENERATIONS, json={"prompt": PROMPT, "seed": seed})
    if response.status_code == 429:
        return None
    response.raise_for_status()
    return time.perf_counter() - start


def _latencies(answers: Sequence[float | None], span: float) -> Latencies:
    seconds = [one for one in answers if one is not None]
    return Latencies(seconds=seconds, refused=len(answers) - len(seconds), span=span)


async def closed_loop(url: str, num_clients: int, num_each: int) -> Latencies:
    """Clients that ask again as soon as they have an answer."""
    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=None)) as client:

        async def one(number: int) -> list[float | None]:
            return [await ask(client, url, number * num_each + i) for i in range(num_each)]

        start = time.perf_counter()
        answers = await asyncio.gather(*map(one, range(num_clients)))
        return _latencies([one for some in answers for one in some], time.perf_counter() - start)


async def open_loop(url: str, rate: float, num: int) -> Latencies:
    """Requests that come at random times, `rate` of them a second on average, whatever has been answered."""
    gaps = np.random.default_rng(0).exponential(1 / rate, num)
    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=None)) as client:
        start = time.perf_counter()
        tasks = []
        for seed, gap in enumerate(gaps):
            await asyncio.sleep(gap)
            tasks.append(asyncio.create_task(ask(client, url, seed)))
        return _latencies(await asyncio.gather(*tasks), time.perf_counter() - start)


async def first_previews(url: str, num: int) -> tuple[float, float]:
    """Median seconds to the first preview of three, and to the picture."""
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
    """Latency against offered load: the median as a line, up to the 95th percentile as a band."""
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
    axes.set(xlabel="pictures asked for in a second", ylabel="seconds for a picture: median, to p95", yscale="log")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(
    requests: Annotated[int, typer.Option(help="Requests of each measurement.")] = 60,
    out: Annotated[Path, typer.Option(help="The plot.")] = Path("docs/pictures/latency.png"),
) -> None:
    """Measure and print a table."""
    model = DALLE.load()
    # a machine is not equally quick all the time: before, between and after the others
    bare = [bare_engine(model, 9, 32)]
    together = bare[0][1]
    measured: dict[str, tuple[Latencies, Latencies, Latencies]] = {}
    plots: dict[str, dict[float, Latencies]] = {}
    extra = []
    port = free_port()
    commands = {
        "FastAPI and a lock": (sys.executable, "-m", "uvicorn", "benchmarks.plain_server:app", "--port", str(port)),
        "this service": (sys.executable, "-m", "serving", "--port", str(port)),
    }
    for name, command in commands.items():
        with server(*command, port=port) as url:
            asyncio.run(closed_loop(url, 1, 2))
            single = asyncio.run(closed_loop(url, 1, 9))
            saturated = asyncio.run(closed_loop(url, 16, max(2, requests // 16)))
            crowd = asyncio.run(closed_loop(url, 64, 1))
            measured[name] = single, saturated, crowd
            plots[name] = {load * together: asyncio.run(open_loop(url, load * together, requests)) for load in LOADS}
            if name == "this service":
                first, last = asyncio.run(first_previews(url, 7))
                extra.append(f"First of three previews after {first:.2f} s, the picture after {last:.2f} s.")
        bare.append(bare_engine(model, 9, 32))
    alone, rate = (statistics.median(values) for values in zip(*bare, strict=True))
    extra.append("Bare engine, three times: " + "; ".join(f"{a:.3f} s, {r:.2f} pictures/s" for a, r in bare))
    rows = [("bare engine", f"{alone:.3f}", "1.00", f"{rate:.2f}", "1.00", "", "")]
    rows += [
        (
            name,
            f"{single.percentile(50):.3f}",
            f"{single.percentile(50) / alone:.2f}",
            f"{saturated.rate:.2f}",
            f"{saturated.rate / rate:.2f}",
            f"{crowd.percentile(50):.1f} / {crowd.percentile(99):.1f}",
            str(crowd.refused),
        )
        for name, (single, saturated, crowd) in measured.items()
    ]
    header = ("", "alone, s", "to bare", "pictures/s", "to bare", "64 at once, p50 / p99 s", "refused")
    print(_table([header, *rows]))
    print()
    load_header = ("offered, pictures/s", *(f"{name}: p50 / p95 / p99 s, refused" for name in plots))
    load_rows = [
        (
            f"{load * together:.2f}",
            *(
                " / ".join(f"{points[load * together].percentile(p):.2f}" for p in (50, 95, 99))
                + f", {points[load * together].refused}"
                for points in plots.values()
            ),
        )
        for load in LOADS
    ]
    print(_table([load_header, *load_rows]))
    print("\n" + "\n".join(extra))
    plot(plots, out)
    print(f"plot: {out}")


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    typer.run(main)
