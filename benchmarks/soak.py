"""Ten minutes of random requests and cancellations against a running service: does anything leak?

`python -m benchmarks.soak --url http://127.0.0.1:8000` (or without --url, against a service of its own). At the end all
slots must be free, the queue empty, and the memory of its processes where it was after the first minute.
"""

import asyncio
import contextlib
import random
import re
import sys
import time
from typing import Annotated, Any

import httpx
import psutil
import typer

from benchmarks.serving import GENERATIONS, PROMPT, free_port, server

__all__ = ["main"]

MAX_GROWTH = 1.1
"""Of memory, from the first minute to the end."""


async def client(url: str, chance: random.Random, until: float, counts: dict[str, int]) -> None:
    """Ask for random things in random ways, and leave at random moments."""
    async with httpx.AsyncClient(timeout=120) as http:
        while time.monotonic() < until:
            streamed, n = chance.random() < 0.5, chance.randint(1, 4)
            body: dict[str, Any] = {"prompt": PROMPT, "n": n, "seed": chance.randrange(2**31)}
            body |= {"guidance_scale": chance.choice([1, 2])}
            body |= {"stream": True, "partial_images": chance.randint(0, 8)} if streamed else {}
            patience = chance.choice([0.05, 0.3, 1.0, 60, 60])
            kind = "left"
            with contextlib.suppress(TimeoutError, httpx.HTTPError):
                async with asyncio.timeout(patience):
                    if streamed:
                        async with http.stream("POST", url + GENERATIONS, json=body) as response:
                            if chance.random() < 0.2 and response.status_code == 200:
                                await http.delete(f"{url}/v1/requests/{response.headers['x-job-id']}")
                            await response.aread()
                    else:
                        response = await http.post(url + GENERATIONS, json=body)
                    kind = str(response.status_code)
            counts[kind] = counts.get(kind, 0) + 1
            await asyncio.sleep(chance.random() * 0.2)


def memory(processes: list[psutil.Process]) -> float:
    """MB that these processes hold."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total / 2**20


def gauges(url: str) -> dict[str, float]:
    text = httpx.get(url + "/metrics", timeout=30).text
    found = re.findall(r"^(dalle_\w+){[^}]*} (\S+)$", text, re.M)
    names = ("slots_used", "queue_length", "pictures_total", "cancellations_total", "wasted_steps_total")
    return {name: sum(float(value) for key, value in found if key == f"dalle_{name}") for name in names}


def replicas() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any("ray::ServeReplica:dalle" in word for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


def soak(url: str, minutes: float, clients: int) -> bool:
    """Whether nothing leaked."""
    counts: dict[str, int] = {}
    start, first = time.monotonic(), 0.0

    async def everybody() -> None:
        nonlocal first
        until = start + 60 * minutes
        tasks = [asyncio.create_task(client(url, random.Random(i), until, counts)) for i in range(clients)]
        await asyncio.sleep(min(60, 30 * minutes))
        first = memory(replicas())
        await asyncio.gather(*tasks)

    asyncio.run(everybody())
    time.sleep(5)
    last, at_the_end = memory(replicas()), gauges(url)
    print(f"answers: {dict(sorted(counts.items()))}")
    print(f"at the end: {at_the_end}")
    print(f"memory of the replicas: {first:.0f} MB after the first minute, {last:.0f} MB at the end")
    errors = sum(number for status, number in counts.items() if status.startswith("5"))
    return not (at_the_end["slots_used"] or at_the_end["queue_length"] or errors) and last <= MAX_GROWTH * first


def main(
    url: Annotated[str | None, typer.Option(help="A running service; by default one is started.")] = None,
    minutes: float = 10,
    clients: int = 12,
) -> None:
    """Exit code 0 if nothing leaked, else 1."""
    if url is not None:
        sys.exit(not soak(url, minutes, clients))
    port = free_port()
    with server(sys.executable, "-m", "serving", "--port", str(port), port=port) as started:
        sound = soak(started, minutes, clients)
    sys.exit(not sound)


if __name__ == "__main__":
    typer.run(main)
