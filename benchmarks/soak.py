"""Soak test: ten minutes of random requests and cancellations against a service, to find leaks, errors and changes.

`python -m benchmarks.soak --url http://127.0.0.1:8000` tests a running service; without --url it starts one. A few
clients request pictures of a few seeds, plain and streamed. Some disconnect after a while or at their first preview, or
cancel by `DELETE` at their first preview, when most of their pictures have slots. At the end all slots must be free,
the queue empty, memory as after the first minute, every response as expected, and all pictures of a seed equal.
"""

import asyncio
import collections
import hashlib
import json
import random
import re
import sys
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import psutil
import typer

from benchmarks.serving import GENERATIONS, PROMPT, free_port, server

__all__ = ["main"]

MAX_GROWTH = 1.1
"""Limit on memory at the end, as a multiple of memory after the first minute."""
PATIENCE = (0.05, 0.3, 1.0)
"""Timeouts in seconds, after which a client disconnects."""
EXPECTED = ("drawn", "disconnected", "disconnected at a preview", "cancelled at a preview", "rejected")
"""Expected outcomes of a request."""


class Soak:
    """Clients of a service, and the outcomes of their requests."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.num_pictures = 0
        self._pictures: dict[tuple[int, int, int], str] = {}
        """SHA-256 by (seed, guidance_scale, index)."""

    async def client(self, chance: random.Random, until: float) -> None:
        async with httpx.AsyncClient(timeout=120) as http:
            while time.monotonic() < until:
                self.outcomes[await self._request(http, chance)] += 1
                await asyncio.sleep(chance.random() * 0.2)

    async def _request(self, http: httpx.AsyncClient, chance: random.Random) -> str:
        streamed = chance.random() < 0.6
        body: dict[str, Any] = {"prompt": PROMPT, "n": chance.randint(1, 3), "seed": chance.randrange(8)}
        body |= {"guidance_scale": chance.choice([1, 2])}
        body |= {"stream": True, "partial_images": 3} if streamed else {}
        patience = chance.choice([*PATIENCE, None, None, None, None])
        try:
            async with asyncio.timeout(patience):
                if streamed:
                    at_preview = chance.choice(["stay", "disconnect", "cancel"])
                    async with http.stream("POST", self.url + GENERATIONS, json=body) as response:
                        return await self._stream(http, response, body, at_preview)
                return self._whole(await http.post(self.url + GENERATIONS, json=body), body)
        except TimeoutError:
            return "disconnected"
        except httpx.HTTPError as error:
            return f"failed: {type(error).__name__}"

    def _whole(self, response: httpx.Response, body: dict[str, Any]) -> str:
        if response.status_code != 200:
            return _outcome_of_error(response.status_code, response.content)
        pictures = response.json()["data"]
        if len(pictures) != body["n"]:
            return f"failed: {len(pictures)} of {body['n']} pictures"
        return self._compare(body, dict(enumerate(one["b64_json"] for one in pictures)))

    async def _stream(
        self, http: httpx.AsyncClient, response: httpx.Response, body: dict[str, Any], at_preview: str
    ) -> str:
        if response.status_code != 200:
            return _outcome_of_error(response.status_code, await response.aread())
        cancelled, pictures = False, dict[int, str]()
        async for kind, event in _events(response):
            if kind == "error":
                code = event["error"]["code"]
                return "cancelled at a preview" if cancelled and code == "request_cancelled" else f"failed: {code}"
            if kind.endswith("completed"):
                pictures[event["index"]] = event["b64_json"]
            elif at_preview == "disconnect":
                return "disconnected at a preview"
            elif at_preview == "cancel" and not cancelled:
                cancelled = True
                await http.delete(f"{self.url}/v1/requests/{response.headers['x-job-id']}")
        if len(pictures) != body["n"]:
            return f"failed: a stream of {len(pictures)} of {body['n']} pictures"
        return self._compare(body, pictures)

    def _compare(self, body: dict[str, Any], pictures: dict[int, str]) -> str:
        self.num_pictures += len(pictures)
        for index, picture in pictures.items():
            digest = hashlib.sha256(picture.encode()).hexdigest()
            if self._pictures.setdefault((body["seed"], body["guidance_scale"], index), digest) != digest:
                return "failed: another picture of the same seed"
        return "drawn"


def _outcome_of_error(status: int, content: bytes) -> str:
    return "rejected" if status == 429 else f"failed: {status} {json.loads(content)['error']['code']}"


async def _events(response: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Yield (event, data) of a stream of server-sent events."""
    kind = ""
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


def memory() -> float:
    """Memory of the processes of the service's replicas, in MB."""
    total = 0
    for process in psutil.process_iter(["cmdline", "memory_info"]):
        if any("ray::ServeReplica:dalle" in word for word in process.info["cmdline"] or ()):
            total += process.info["memory_info"].rss
    return total / 2**20


def metrics(url: str) -> dict[str, float]:
    text = httpx.get(url + "/metrics", timeout=30).text
    found = re.findall(r"^dalle_(\w+){[^}]*} (\S+)$", text, re.M)
    totals = ("steps_total", "pictures_total", "cancellations_total", "discarded_steps_total", "wasted_steps_total")
    names = ("slots_used", "queue_length", *totals)
    return {name: sum(float(value) for key, value in found if key == name) for name in names}


def soak(url: str, minutes: float, clients: int) -> bool:
    """Run the clients. Returns whether nothing leaked, failed or changed."""
    run, start, first = Soak(url), time.monotonic(), 0.0

    async def run_clients() -> None:
        nonlocal first
        until = start + 60 * minutes
        tasks = [asyncio.create_task(run.client(random.Random(i), until)) for i in range(clients)]
        await asyncio.sleep(min(60, 30 * minutes))
        first = memory()
        await asyncio.gather(*tasks)

    asyncio.run(run_clients())
    time.sleep(5)
    last, at_the_end = memory(), metrics(url)
    print(f"requests: {dict(run.outcomes.most_common())}")
    print(f"pictures compared with others of the same seed: {run.num_pictures}")
    print(f"at the end: {at_the_end}")
    print(f"memory of the replicas: {first:.0f} MB after the first minute, {last:.0f} MB at the end")
    # a cancelled job may be in the step that runs, and in no further one
    free = not (at_the_end["slots_used"] or at_the_end["queue_length"])
    prompt = at_the_end["wasted_steps_total"] <= at_the_end["cancellations_total"]
    return free and prompt and set(run.outcomes) <= set(EXPECTED) and last <= MAX_GROWTH * first


def main(
    url: Annotated[str | None, typer.Option(help="Address of a running service; without it one is started.")] = None,
    minutes: Annotated[float, typer.Option(help="Duration.")] = 10,
    clients: Annotated[int, typer.Option(help="Number of clients that send requests at the same time.")] = 4,
) -> None:
    """Run random requests and cancellations. The exit code is 0 if nothing leaked, failed or changed, else 1."""
    if url is not None:
        sys.exit(not soak(url, minutes, clients))
    port = free_port()
    with server(sys.executable, "-m", "serving", "--port", str(port), port=port) as started:
        sound = soak(started, minutes, clients)
    sys.exit(not sound)


if __name__ == "__main__":
    typer.run(main)
