"""The service on a Ray cluster, started and deployed as in a container: changes while requests are running.

One start serves all tests here, in their order: the last one stops it. It takes some 30 seconds.
"""

import concurrent.futures
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
ENTRYPOINT = ROOT / "deploy" / "entrypoint.sh"
GENERATIONS = "/v1/images/generations"
PROMPT = {"prompt": "a red panda, fluent 3d style emoji"}
START_SECONDS = 300
PORTS = ("PORT", "DASHBOARD_PORT", "CLIENT_PORT", "AGENT_PORT", "METRICS_PORT")


class Cluster:
    """A head that `deploy/entrypoint.sh` runs."""

    def __init__(self, folder: Path, ray_folder: str) -> None:
        serve_port, *ports = _free_ports(1 + len(PORTS))
        self.url = f"http://127.0.0.1:{serve_port}"
        self.config_file = folder / "config.yaml"
        self.config: dict[str, Any] = yaml.safe_load((ROOT / "serving" / "config.yaml").read_text(encoding="utf-8"))
        self.config["applications"][0]["args"]["models"] = [
            {"path": "emoji", "num_slots": 2, "threads": 1, "min_replicas": 1, "max_replicas": 2}
        ]
        token = folder / "token"
        token.write_text("cluster-of-a-test-" + "x" * 32, encoding="utf-8")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DALLE_"))},
            **{f"DALLE_RAY_{name}": str(port) for name, port in zip(PORTS, ports, strict=True)},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DALLE_SERVE_PORT": str(serve_port),
            "DALLE_RAY_CONFIG": str(self.config_file),
            "DALLE_RAY_NODE_IP": "127.0.0.1",
            "DALLE_RAY_NUM_CPUS": "3",
            "DALLE_RAY_TEMP_DIR": ray_folder,
            "RAY_AUTH_TOKEN_PATH": str(token),
        }
        self.write_config()
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [ENTRYPOINT, "head"],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(line.rstrip() for line in self.process.stdout)

    def write_config(self) -> None:
        self.config_file.write_text(yaml.safe_dump(self.config), encoding="utf-8")

    def deploy(self) -> None:
        """Deploys a configuration with `serve deploy`, from the file that the entrypoint makes."""
        self.write_config()
        made = subprocess.run(
            [ENTRYPOINT, "config"], env=self.environment, check=True, capture_output=True, text=True
        ).stdout
        file = self.config_file.with_name("deployed.yaml")
        file.write_text(made, encoding="utf-8")
        address = f"http://127.0.0.1:{self.environment['DALLE_RAY_DASHBOARD_PORT']}"
        subprocess.run(
            ["serve", "deploy", file, "--address", address],
            env=self.environment | {"RAY_AUTH_MODE": "token"},
            check=True,
            capture_output=True,
        )

    def check(self, what: str) -> int:
        return subprocess.run([ENTRYPOINT, "check", what], env=self.environment, check=False).returncode

    def replicas(self) -> set[str]:
        """Ids of the running replicas of the model."""
        text = httpx.get(self.url + "/metrics", timeout=30).text
        return set(re.findall(r'^dalle_slots{model="emoji",replica="(\w+)"}', text, re.M))

    def wait(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, "\n".join(self.lines[-40:])
            assert self.process.poll() is None, "\n".join(self.lines[-40:])
            time.sleep(0.5)

    def draw(self, **body: Any) -> httpx.Response:
        return httpx.post(self.url + GENERATIONS, json=PROMPT | body, timeout=120)


def _free_ports(num: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    ray_folder = tempfile.mkdtemp(prefix="ray")  # short: the names of Ray's sockets have at most 107 bytes
    one = Cluster(tmp_path_factory.mktemp("c"), ray_folder)
    process = psutil.Process(one.process.pid)
    try:
        one.wait(lambda: any("ready at" in line for line in one.lines), START_SECONDS)
        yield one
    finally:
        left = process.children(recursive=True) if one.process.poll() is None else []
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        one.process.wait(10)
        assert one.process.stdout is not None
        one.process.stdout.close()
        shutil.rmtree(ray_folder, ignore_errors=True)


class Crowd:
    """Callers that request one picture after the other until they are stopped."""

    def __init__(self, cluster: Cluster, num: int, **body: Any) -> None:
        self._cluster = cluster
        self._body = body
        self._stop = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(num)
        self._running = [self._pool.submit(self._ask) for _ in range(num)]

    def _ask(self) -> list[int | str]:
        answers: list[int | str] = []
        while not self._stop.is_set():
            try:
                answers.append(self._cluster.draw(seed=len(answers), **self._body).status_code)
            except httpx.HTTPError as error:
                answers.append(repr(error))
        return answers

    def end(self) -> list[int | str]:
        """Numbers of responses, by status."""
        self._stop.set()
        return [answer for one in self._running for answer in one.result(150)]


def test_it_is_healthy_and_ray_wants_its_token(cluster: Cluster) -> None:
    assert (cluster.check("node"), cluster.check("service")) == (0, 0)
    dashboard = f"http://127.0.0.1:{cluster.environment['DALLE_RAY_DASHBOARD_PORT']}"
    assert httpx.get(dashboard + "/api/serve/applications/", timeout=30).status_code == 401
    assert cluster.draw(seed=1).status_code == 200


def test_limits_change_without_a_new_replica(cluster: Cluster) -> None:
    before = cluster.replicas()
    (application,) = cluster.config["applications"]
    application["deployments"] = [{"name": "Ingress", "user_config": {"max_n": 1}}]
    cluster.deploy()
    cluster.wait(lambda: cluster.draw(n=2).status_code == 400)
    assert cluster.replicas() == before

    # an invalid limit changes nothing, and stops nothing
    application["deployments"][0]["user_config"] = {"max_n": 0}
    cluster.deploy()
    time.sleep(3)
    assert (cluster.draw(n=2).status_code, cluster.draw(n=1).status_code) == (400, 200)

    del application["deployments"]
    cluster.deploy()
    cluster.wait(lambda: cluster.draw(n=2).status_code == 200)
    assert cluster.replicas() == before


def test_replicas_come_with_the_load_and_an_update_loses_no_picture(cluster: Cluster) -> None:
    before = cluster.replicas()
    assert len(before) == 1
    one_caller = Crowd(cluster, 1, n=6)  # one request at a time, which needs more slots than a replica has
    cluster.wait(lambda: len(cluster.replicas()) == 2)
    assert set(one_caller.end()) == {200}

    crowd = Crowd(cluster, 5)
    (model,) = cluster.config["applications"][0]["args"]["models"]
    model |= {"max_replicas": 1, "num_slots": 4}
    old = cluster.replicas()
    cluster.deploy()
    cluster.wait(lambda: len(cluster.replicas()) == 1 and not cluster.replicas() & old)
    answers = crowd.end()
    assert len(answers) > 20
    assert set(answers) == {200}


def test_the_head_ends_what_was_begun(cluster: Cluster) -> None:
    children = psutil.Process(cluster.process.pid).children(recursive=True)
    with httpx.stream("POST", cluster.url + GENERATIONS, json=PROMPT | {"n": 8, "stream": True}, timeout=120) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        cluster.process.send_signal(signal.SIGTERM)
        text = "\n".join([first, *lines])
    assert text.count("event: image_generation.completed") == 8
    assert cluster.process.wait(60) == 0, "\n".join(cluster.lines[-30:])
    assert not psutil.wait_procs(children, timeout=20)[1]
