"""`python -m serving` in a process of its own, on a real Ray: its address, output, metrics and processes."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

__all__ = ["ROOT", "Served", "serving"]

ROOT = Path(__file__).parents[2]
START_SECONDS = 240


class Served:
    """A started service: its address, and its processes."""

    def __init__(self, url: str, process: subprocess.Popen[str], lines: list[tuple[float, str]]) -> None:
        self.url = url
        self.process = process
        self.lines = lines

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self, title: str) -> None:
        """Kill the one child process whose title begins with this text."""
        self.child(title).send_signal(signal.SIGKILL)

    def child(self, title: str) -> psutil.Process:
        (found,) = (child for child in self.children() if _title(child).startswith(title))
        return found

    def seconds_until(self, text: str, since: float) -> float:
        """Seconds from a time until a line with this text was printed after it."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for when, line in list(self.lines):
                if when > since and text in line:
                    return when - since
            time.sleep(0.05)
        raise AssertionError(f"{text!r} was not printed:\n{self.tail()}")

    def tail(self) -> str:
        return "\n".join(line for _, line in self.lines[-40:])

    def metrics(self) -> str:
        return httpx.get(self.url + "/metrics", timeout=30).text

    def total(self, name: str) -> float:
        """Sum of a metric over all replicas."""
        return sum(float(value) for value in re.findall(rf"^dalle_{name}{{.*}} (.+)$", self.metrics(), re.M))

    def wait_until_ready(self) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(self.url + "/ready", timeout=10).status_code == 200:
                    return
            time.sleep(0.2)
        raise AssertionError("not ready:\n" + self.tail())


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@contextlib.contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[Served]:
    """A service with these arguments, ready, within a `with` block, whose end asserts that it stops by itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DALLE_", "OTEL_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "serving", "--port", str(port), *arguments],
        cwd=ROOT,
        env=kept | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[tuple[float, str]] = []

    def read() -> None:
        assert process.stdout is not None
        lines.extend((time.monotonic(), line.rstrip()) for line in process.stdout)

    threading.Thread(target=read, daemon=True).start()
    one = Served(f"http://127.0.0.1:{port}", process, lines)
    try:
        one.wait_until_ready()
        yield one
    finally:
        children = one.children() if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()
        _, alive = psutil.wait_procs(children, timeout=20)
        for child in alive:
            child.kill()
        assert process.returncode == 0, one.tail()
