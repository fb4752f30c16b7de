"""Engines with their threads, jobs for them, and their events."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import torch
from PIL import Image

from dalle import DALLE
from serving.engine.async_engine import AsyncEngine
from serving.jobs import Drawn, Event, Job
from serving.model_settings import ModelSettings

__all__ = ["Start", "collect", "engines_of", "given_picture", "hold", "images", "job", "run"]

Start = Callable[..., AsyncEngine]
"""Starts an engine with these changes of the default settings."""


@contextlib.contextmanager
def engines_of(model: DALLE) -> Iterator[Start]:
    """Start engines that are closed at the end of a `with` block."""
    engines: list[AsyncEngine] = []

    def started(**settings: Any) -> AsyncEngine:
        values: dict[str, Any] = {"path": "lively", "num_slots": 4, "threads": 1, "max_queue": 8} | settings
        engines.append(AsyncEngine(model, ModelSettings(**values)).start())
        return engines[-1]

    yield started
    for engine in engines:
        engine.close()


def job(name: str = "one", **changes: Any) -> Job:
    values: dict[str, Any] = {
        "id": name,
        "owner": "somebody",
        "caller": "somebody",
        "prompt": "a red panda",
        "seed": 7,
        "indices": (0,),
        "deadline": time.time() + 60,
    }
    return Job(**(values | changes))


async def collect(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


def run(engine: AsyncEngine, *jobs: Job) -> list[list[Event]]:
    """The events of jobs that are sent at the same time."""

    async def all_of_them() -> list[list[Event]]:
        return await asyncio.gather(*(collect(engine.draw(one)) for one in jobs))

    return asyncio.run(all_of_them())


def images(events: list[Event]) -> dict[int, bytes]:
    return {event.index: event.image for event in events if isinstance(event, Drawn)}


def hold(engine: AsyncEngine) -> tuple[threading.Event, threading.Event]:
    """Stop the engine's thread between two steps. Returns two events: one is set when it has stopped, the other resumes
    it when set."""
    stands, go = threading.Event(), threading.Event()
    stop = engine.thread._stop_cancelled_and_late

    def wait() -> None:
        engine.thread._stop_cancelled_and_late = stop  # type: ignore[method-assign]
        stands.set()
        assert go.wait(30)

    engine.thread._stop_cancelled_and_late = wait  # type: ignore[method-assign]
    engine.thread.arrivals.put(None)
    return stands, go


def given_picture() -> Image.Image:
    torch.manual_seed(1)
    pixels = (torch.rand(16, 16, 3) * 255).byte()
    return Image.fromarray(pixels.numpy())
