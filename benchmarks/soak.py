"""Ten minutes of random requests and cancellations against a running service: does anything leak, break or change?

`python -m benchmarks.soak --url http://127.0.0.1:8000` (or without --url, against a service of its own). A few clients
ask for pictures of a few seeds, plain and streamed. Some leave after a while, at their first preview, or cancel by
`DELETE` there, so that most of what they leave behind has slots. At the end all slots must be free, the queue empty,
memory where it was after the first minute, every answer one that was asked for, and every picture of a seed the same.
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
"""Of memory, from the first minute to the end."""
PATIENCE = (0.05, 0.3, 1.0)
"""Seconds after which a client leaves that leaves before its answer has begun."""
SOUND = ("drawn", "left", "left at a preview", "cancelled at a preview", "refused")
"""What may become of a request."""


class Soak:
    """Clients, and what became of their requests."""

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
                    at_preview = chance.choice(["stay", "leave", "cancel"])
                    async with http.stream("POST", self.url + GENERATIONS, json=body) as response:
                        return await self._stream(http, response, body, at_preview)
                return self._whole(await http.post(self.url + GENERATIONS, json=body), body)
        except TimeoutError:
            return "left"
        except httpx.HTTPError as error:
            return f"broken: {type(error).__name__}"

    def _whole(self, response: httpx.Response, body: dict[str, Any]) -> str:
        if response.status_code != 200:
            return _refusal(response.status_code, response.content)
        pictures = response.json()["data"]
        if len(pictures) != body["n"]:
            return f"broken: {len(pictures)} of {body['n']} pictures"
        return self._compare(body, dict(enumerate(one["b64_json"] for one in pictures)))

    async def _stream(
        self, http: httpx.AsyncClient, response: httpx.Response, body: dict[str, Any], at_preview: str
    ) -> str:
        if response.status_code != 200:
            return _refusal(response.status_code, await response.aread())
        cancelled, pictures = False, dict[int, str]()
        async for kind, event in _events(response):
            if kind == "error":
                code = event["error"]["code"]
                return "cancelled at a preview" if cancelled and code == "request_cancelled" else f"broken: {code}"
            if kind.endswith("completed"):
                pictures[event["index"]] = event["b64_json"]
            elif at_preview == "leave":
                return "left at a preview"
            elif at_preview == "cancel" and not cancelled:
                cancelled = True
                await http.delete(f"{self.url}/v1/requests/{response.headers['x-job-id']}")
        if len(pictures) != body["n"]:
            return f"broken: a stream of {len(pictures)} of {body['n']} pictures"
        return self._compare(body, pictures)

    def _compare(self, body: dict[str, Any], pictures: dict[int, str]) -> str:
        self.num_pictures += len(pictures)
        for index, picture in pictures.items():
            digest = hashlib.sha256(picture.encode()).hexdigest()
            if self._pictures.setdefault((body["seed"], body["guidance_scale"], index), digest) != digest:
                return "broken: another picture of the same seed"
        return "drawn"


def _refusal(status: int, content: bytes) -> str:
    return "refused" if status == 429 else f"broken: {status} {json.loads(content)['error']['code']}"


async def _events(response: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """(event, data) of a stream of server-sent events."""
    kind = ""
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


def memory() -> float:
    """MB that the processes of the service's replicas hold."""
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
    """Whether nothing leaked, broke or changed."""
    run, start, first = Soak(url), time.monotonic(), 0.0

    async def everybody() -> None:
        nonlocal first
        until = start + 60 * minutes
        tasks = [asyncio.create_task(run.client(random.Random(i), until)) for i in range(clients)]
        await asyncio.sleep(min(60, 30 * minutes))
        first = memory()
        await asyncio.gather(*tasks)

    asyncio.run(everybody())
    time.sleep(5)
    last, at_the_end = memory(), metrics(url)
    print(f"requests: {dict(run.outcomes.most_common())}")
    print(f"pictures compared with others of their seed: {run.num_pictures}")
    print(f"at the end: {at_the_end}")
    print(f"memory of the replicas: {first:.0f} MB after the first minute, {last:.0f} MB at the end")
    # a cancelled job may be in the step that runs, and in no further one
    free = not (at_the_end["slots_used"] or at_the_end["queue_length"])
    prompt = at_the_end["wasted_steps_total"] <= at_the_end["cancellations_total"]
    return free and prompt and set(run.outcomes) <= set(SOUND) and last <= MAX_GROWTH * first


def main(
    url: Annotated[str | None, typer.Option(help="A running service; by default one is started.")] = None,
    minutes: float = 10,
    clients: int = 4,
) -> None:
    """Exit code 0 if nothing leaked, broke or changed, else 1."""
    if url is not None:
        sys.exit(not soak(url, minutes, clients))
    port = free_port()
    with server(sys.executable, "-m", "serving", "--port", str(port), port=port) as started:
        sound = soak(started, minutes, clients)
    sys.exit(not sound)


if __name__ == "__main__":
    typer.run(main)
