"""A real server over a real engine with a small model, without Ray."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from dalle import DALLE
from serving.api import create_app
from serving.async_engine import AsyncEngine
from serving.backend import LocalBackend
from serving.settings import ModelSettings, Settings, load_settings

__all__ = ["Service", "running", "service"]


class Service:
    """Where it is, and what runs behind it."""

    def __init__(self, url: str, engine: AsyncEngine, settings: Settings) -> None:
        self.url = url
        self.engine = engine
        self.settings = settings


@contextlib.contextmanager
def running(app: ASGIApp) -> Iterator[str]:
    """The address of a server for the body of a `with`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def service(
    model: DALLE, *, slow: float = 0.0, engine: dict[str, Any] | None = None, **settings: Any
) -> Iterator[Service]:
    """A service whose steps take `slow` seconds more than they would."""
    values: dict[str, Any] = {"path": model.name, "num_slots": 4, "threads": 1, "max_queue": 8}
    model_settings = ModelSettings(**(values | (engine or {})))
    one = AsyncEngine(model, model_settings).start()
    if slow:
        step = one._engine.step

        def slowly() -> Any:
            time.sleep(slow)
            return step()

        one._engine.step = slowly  # type: ignore[method-assign]
    whole = load_settings({"models": (model_settings,), **settings})
    try:
        with running(create_app(LocalBackend({model_settings.id: one}), whole)) as url:
            yield Service(url, one, whole)
    finally:
        one.close()
