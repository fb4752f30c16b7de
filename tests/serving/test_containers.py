"""The containers on a real Docker engine: built, started, killed, drained and removed. Skipped where there is none.

One start serves all tests here, in their order: the last one removes everything. The first build takes some minutes.
"""

import base64
import concurrent.futures
import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.deployment import ROOT, arguments
from tests.support.service import GENERATIONS

PROMPT = {"prompt": "a red panda, fluent 3d style emoji", "seed": 7}
OLDEST_COMPOSE = (2, 20, 2)
TORCH = "https://download.pytorch.org/whl/cpu"
KILL_REPLICAS = """
import os, signal
for pid in filter(str.isdecimal, os.listdir("/proc")):
    with open(f"/proc/{pid}/cmdline") as file:
        if "ServeReplica:dalle:emoji" in file.read():
            os.kill(int(pid), signal.SIGKILL)
            print(pid)
"""


def docker(*words: str, seconds: float = 60, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run the client. Its output is text, with messages in the same stream."""
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(["docker", *words], check=False, timeout=seconds, **streams, **options)


def missing() -> str | None:
    """What this machine lacks for these tests, if anything."""
    try:
        if (info := docker("info")).returncode:
            return f"no Docker engine answers: {info.stdout.strip().splitlines()[-1]}"
        version = docker("compose", "version", "--short")
        numbers = tuple(map(int, re.findall(r"\d+", version.stdout)[:3]))
        if version.returncode or numbers < OLDEST_COMPOSE:
            return f"needs Docker Compose {'.'.join(map(str, OLDEST_COMPOSE))}: {version.stdout.strip()}"
        image = arguments()["PYTHON_IMAGE"]
        if docker("image", "inspect", image).returncode and (pull := docker("pull", image, seconds=300)).returncode:
            return f"{image} is not here and cannot be pulled: {pull.stdout.strip().splitlines()[-1]}"
        download = "timeout 60 python -m pip download --quiet --no-deps --dest /tmp packaging"
        if (probe := docker("run", "--rm", "--network=host", image, "sh", "-c", download, seconds=120)).returncode:
            return f"pip in a container cannot reach its index: {probe.stdout.strip()[-200:]}"
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        return f"no Docker engine can be used: {error}"
    return None


class Containers:
    """A project of Compose with a name, a port, an image and secrets of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.key = secrets.token_hex(16)
        self.name = f"dalle-test-{os.getpid()}"
        self.image = f"dalle-serve:test-{os.getpid()}"
        self.keys_file = folder / "api_keys"
        for name in ("ray_token", "redis_password", "grafana_password"):
            (folder / name).write_text(secrets.token_hex(32), encoding="utf-8")
        self.write_key(self.key)
        override = folder / "override.yml"
        override.write_text(yaml.safe_dump({"services": self._changes()}), encoding="utf-8")
        self._files = ["--file", str(ROOT / "docker-compose.yml"), "--file", str(override)]
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("COMPOSE_", "DALLE_", "RAY_"))},
            "DALLE_SECRETS": str(folder),
            "DALLE_PORT": str(port),
            "TORCH_INDEX_URL": os.environ.get("TORCH_INDEX_URL") or _torch_index(),
        }

    def _changes(self) -> dict[str, Any]:
        """An image of its own, built with the network of this machine, and no more open files than the engine has."""
        hard = docker("run", "--rm", arguments()["PYTHON_IMAGE"], "sh", "-c", "ulimit -Hn").stdout.strip()
        limits = {"nofile": int(hard)} if hard.isdecimal() and int(hard) < 65536 else {}
        services: dict[str, Any] = {
            name: {"image": self.image, **({"ulimits": limits} if limits else {})}
            for name in ("settings", "head", "worker")
        }
        services["head"]["build"] = {"network": "host"}
        return services

    def write_key(self, key: str) -> None:
        self.keys_file.write_text(f"me {key}\n", encoding="utf-8")

    def compose(self, *words: str, seconds: float = 120) -> "subprocess.CompletedProcess[str]":
        return docker(
            "compose",
            "--ansi=never",
            "--project-name",
            self.name,
            *self._files,
            *words,
            seconds=seconds,
            env=self._environment,
        )

    def up(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return self.compose("up", "--detach", "--wait", "--wait-timeout", "400", *words, seconds=900)

    def logs(self, service: str) -> str:
        return self.compose("logs", "--no-color", "--no-log-prefix", service).stdout

    def ids(self, *services: str) -> list[str]:
        return self.compose("ps", "--all", "--quiet", *services).stdout.split()

    def exit_codes(self, service: str) -> set[int]:
        return {json.loads(docker("inspect", one).stdout)[0]["State"]["ExitCode"] for one in self.ids(service)}

    def draw(self, **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.post(self.url + GENERATIONS, json=PROMPT | body, headers=headers, timeout=150)

    def kill_replicas(self) -> int:
        """Kill the processes that draw, and return their number."""
        run = ("exec", "--no-TTY", "--index")
        killed = [self.compose(*run, index, "worker", "python", "-c", KILL_REPLICAS).stdout for index in ("1", "2")]
        return sum(len(one.split()) for one in killed)


def _torch_index() -> str:
    """The project's index of torch, or pip's default where that cannot be reached."""
    with contextlib.suppress(httpx.HTTPError):
        if httpx.get(f"{TORCH}/torch/", timeout=10).is_success:
            return TORCH
    # in a process of its own: where pip was imported, setuptools lets torch compile no more
    program = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    return subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def pictures(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    one = Containers(tmp_path_factory.mktemp("secrets"))
    try:
        yield one
    finally:
        one.compose("down", "--timeout", "0", "--volumes")
        docker("image", "rm", "--force", one.image)


def test_a_bad_key_is_told_at_once(containers: Containers) -> None:
    build = containers.compose("build", seconds=1500)
    assert build.returncode == 0, build.stdout[-4000:]
    containers.write_key("short")
    start = time.monotonic()
    up = containers.up()
    assert up.returncode and 'service "settings" didn\'t complete successfully' in up.stdout, up.stdout
    assert time.monotonic() - start < 60
    (reason,) = containers.logs("settings").removeprefix("\x1b[2K").splitlines()
    assert reason.startswith("error: /run/secrets/api_keys, line 1: expected NAME KEY")


def test_it_starts_and_draws_for_its_callers(containers: Containers) -> None:
    containers.write_key(containers.key)
    up = containers.up()
    assert up.returncode == 0, up.stdout + containers.logs("head")
    assert len(pictures(containers.draw(n=2))) == 2
    assert httpx.post(containers.url + GENERATIONS, json=PROMPT, timeout=30).status_code == 401
    # only the head's port is published
    ports = [json.loads(docker("inspect", one).stdout)[0]["HostConfig"]["PortBindings"] for one in containers.ids()]
    assert [list(one) for one in ports if one] == [["8000/tcp"]]


def test_a_killed_replica_loses_no_picture(containers: Containers) -> None:
    before = pictures(containers.draw(n=10))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(containers.draw, n=10)
        time.sleep(0.3)
        assert containers.kill_replicas() >= 1
        assert pictures(answer.result()) == before


def test_a_killed_worker_is_replaced(containers: Containers) -> None:
    before = pictures(containers.draw())
    for one in containers.ids("worker"):
        docker("kill", "--signal", "KILL", one)
    up = containers.up()
    assert up.returncode == 0, up.stdout + containers.logs("head")
    until = time.monotonic() + 180
    while (answer := containers.draw()).status_code != 200:
        assert time.monotonic() < until, answer.text
        time.sleep(1)
    assert pictures(answer) == before


def test_a_stopped_head_ends_what_was_begun(containers: Containers) -> None:
    body, headers = PROMPT | {"n": 10, "stream": True}, {"Authorization": f"Bearer {containers.key}"}
    with (
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        httpx.stream("POST", containers.url + GENERATIONS, json=body, headers=headers, timeout=150) as answer,
    ):
        lines = answer.iter_lines()
        first = next(lines)
        stopped = pool.submit(containers.compose, "stop", "head", seconds=200)
        text = "\n".join([first, *lines])
        assert text.count("event: image_generation.completed") == 10
        assert stopped.result().returncode == 0
    assert containers.exit_codes("head") == {0}, containers.logs("head")


def test_workers_without_a_head_stop_at_once_and_nothing_is_left(containers: Containers) -> None:
    start = time.monotonic()
    assert containers.compose("stop", "worker", seconds=200).returncode == 0
    assert time.monotonic() - start < 40
    assert containers.exit_codes("worker") == {0}, containers.logs("worker")
    assert containers.compose("down", "--volumes").returncode == 0
    label = f"label=com.docker.compose.project={containers.name}"
    for what in ("container", "network", "volume"):
        everything = ("--all",) if what == "container" else ()
        assert docker(what, "ls", "--quiet", *everything, "--filter", label).stdout == ""
