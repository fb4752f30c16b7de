"""A real server over a real engine with a small model, without Ray, and requests to it."""

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import uvicorn
from starlette.types import ASGIApp

from dalle import DALLE
from serving.engine.async_engine import AsyncEngine
from serving.engine.local import LocalBackend
from serving.ingress.api import create_app
from serving.jobs import MODERATION_BLOCKED
from serving.model_settings import ModelSettings
from serving.safety.moderation import Moderation
from serving.settings import Settings, load_settings
from serving.tracing import Tracing

__all__ = ["GENERATIONS", "PROMPT", "Service", "error_of", "events_of", "metric", "post", "running", "service"]

GENERATIONS = "/v1/images/generations"
PROMPT = {"prompt": "a red panda"}


class Service:
    """A running service: its address, engine, settings and safety checks."""

    def __init__(self, url: str, engine: AsyncEngine, settings: Settings, moderation: Moderation | None = None) -> None:
        self.url = url
        self.engine = engine
        self.settings = settings
        self.moderation = moderation


@contextlib.contextmanager
def running(app: ASGIApp, send_buffer: int | None = None) -> Iterator[str]:
    """Address of a server that runs within a `with` block. `send_buffer`: send buffer of each connection, in bytes."""
    with socket.socket() as listener:
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def service(
    model: DALLE,
    *,
    slow: float = 0.0,
    engine: dict[str, Any] | None = None,
    send_buffer: int | None = None,
    tracing: Tracing | None = None,
    **settings: Any,
) -> Iterator[Service]:
    """A service within a `with` block. Every step takes `slow` seconds longer, and then draws one code a picture."""
    values: dict[str, Any] = {"path": model.name, "num_slots": 4, "threads": 1, "max_queue": 8}
    values |= {"parallel": 1} if slow else {}
    model_settings = ModelSettings(**(values | (engine or {})))
    whole = load_settings({"models": (model_settings,), **settings})
    moderation = Moderation(whole.safety) if whole.safety.stages else None
    one = AsyncEngine(model, model_settings, tracing, moderation).start()
    if slow:
        step = one.thread.engine.step

        def slowly() -> Any:
            time.sleep(slow)
            return step()

        one.thread.engine.step = slowly  # type: ignore[method-assign]
    try:
        with running(create_app(LocalBackend({model_settings.id: one}), whole, tracing=tracing), send_buffer) as url:
            yield Service(url, one, whole, moderation)
    finally:
        one.close()
        if moderation is not None:
            moderation.close()


def post(one: Service, path: str = GENERATIONS, **body: Any) -> httpx.Response:
    return httpx.post(one.url + path, json=body, timeout=30)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, after its format is checked."""
    assert set(response.json()) == {"error"}, response.text
    error: dict[str, Any] = response.json()["error"]
    details = {"moderation_details"} if error["code"] == MODERATION_BLOCKED else set()
    assert set(error) == {"message", "type", "param", "code"} | details
    assert error["message"] and error["code"] and error["type"]
    return error


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = re.findall(r"^event: (.+)\ndata: (.+)\n\n", text, re.M)
    return [(kind, json.loads(data)) for kind, data in found]


def metric(one: Service, name: str) -> float:
    text = httpx.get(one.url + "/metrics").text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (.+)$", text, re.M))
