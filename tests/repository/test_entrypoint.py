"""`deploy/entrypoint.sh` with programs in place of Ray's that only record their arguments. It runs on a real Ray in
test_cluster.py."""

import contextlib
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from tests.support.deployment import APPLICATION, CONFIG, ENTRYPOINT, RAY_WARNS, SHELLS, read


def test_the_entrypoint_can_be_run() -> None:
    assert os.access(ENTRYPOINT, os.X_OK)
    assert read("deploy/entrypoint.sh").startswith("#!/bin/sh\n")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_reads_the_entrypoint(shell: str) -> None:
    subprocess.run([shell, "-n", ENTRYPOINT], check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="there is no shellcheck")
def test_shellcheck_finds_nothing() -> None:
    subprocess.run(["shellcheck", ENTRYPOINT, ENTRYPOINT.parent.parent / "training/emoji/background.sh"], check=True)


PROGRAMS = {
    # Ends on SIGTERM, after RAY_DRAIN seconds, or after RAY_LIFE seconds.
    "ray": """
        printf '%s\\n' "$@" > "$RECORD/ray.txt"
        echo "ray $1" >> "$RECORD/calls.txt"
        trap 'sleep "${RAY_DRAIN:-0}"; echo "ray ended" >> "$RECORD/calls.txt"; kill $!; exit 1' TERM
        sleep "${RAY_LIFE:-120}" & wait $!
    """,
    "serve": """
        echo "serve $*" >> "$RECORD/calls.txt"
        case $1 in
        deploy) cat "$2" >> "$RECORD/deployed.txt"; echo --- >> "$RECORD/deployed.txt"; exit "${DEPLOY_STATUS:-0}" ;;
        status) cat "$RECORD/status.txt" 2>/dev/null || echo 'applications: {}' ;;
        esac
    """,
}


class Answers(http.server.BaseHTTPRequestHandler):
    """A server in place of Ray's dashboard and of the service."""

    ready = 200
    prefixed: ClassVar[dict[str, int]] = {}
    """Other paths and their answers."""

    def do_GET(self) -> None:
        known = {"/api/gcs_healthz": 200, "/api/local_raylet_healthz": 200, "/ready": type(self).ready}
        known |= type(self).prefixed
        self.send_response(known.get(self.path, 404))
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Node:
    """Runs the entrypoint with programs that only record their arguments."""

    def __init__(self, folder: Path, port: int, service_port: int, answers: type[Answers]) -> None:
        """`service_port`: port of the service, on which nothing listens until Ray has been started."""
        self.record = folder
        self.service_port = service_port
        self.answers = answers
        programs = folder / "bin"
        programs.mkdir()
        for name, text in PROGRAMS.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}", encoding="utf-8")
            (programs / name).chmod(0o755)
        self.environment = {
            "PATH": f"{programs}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "TMPDIR": str(folder),
            "RECORD": str(folder),
            "DALLE_SERVE_PORT": str(service_port),
            "DALLE_RAY_DASHBOARD_PORT": str(port),
            "DALLE_RAY_AGENT_PORT": str(port),
            "DALLE_RAY_ADDRESS": f"127.0.0.1:{port}",
            # A proxy that refuses everything: requests to this machine must not use it.
            "http_proxy": "http://127.0.0.1:9",
        }

    @contextlib.contextmanager
    def started(self, *words: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
        """The running entrypoint within a `with` block; all of its processes end with it."""
        service = self._service(wait=words[0] == "head") if words else contextlib.nullcontext()
        with (
            service,
            subprocess.Popen(
                [ENTRYPOINT, *words],
                env={**self.environment, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                cwd=self.record,
            ) as process,
        ):
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    @contextlib.contextmanager
    def _service(self, *, wait: bool) -> Iterator[None]:
        """Answers as the service within a `with` block; with `wait` once Ray has been called."""
        end, calls = threading.Event(), self.record / "calls.txt"
        before = calls.stat().st_size if calls.exists() else 0

        def serve() -> None:
            while wait and not (calls.exists() and calls.stat().st_size > before):
                if end.wait(0.05):
                    return
            with http.server.ThreadingHTTPServer(("127.0.0.1", self.service_port), self.answers) as server:
                server.timeout = 0.05
                while not end.is_set():
                    server.handle_request()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def run(self, *words: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, output and messages."""
        with self.started(*words, **environment) as process:
            output, messages = process.communicate(timeout=60)
        return process.returncode, output, messages

    def text(self, name: str) -> str:
        return (self.record / f"{name}.txt").read_text(encoding="utf-8")

    @property
    def calls(self) -> list[str]:
        """Programs that were called, with their arguments."""
        return [" ".join(line.split()[:2]) for line in self.text("calls").splitlines()]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    class OfOneTest(Answers):
        pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), OfOneTest)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        service_port = free.getsockname()[1]
    yield Node(tmp_path, server.server_port, service_port, OfOneTest)
    server.shutdown()
    thread.join()
    server.server_close()


def options_that_ray_knows(arguments: list[str]) -> dict[str, Any]:
    """Arguments as `ray start` parses them. Raises for unknown ones."""
    from ray.scripts.scripts import start

    command, *rest = arguments
    assert command == "start"
    return start.make_context("ray start", rest).params


@RAY_WARNS
def test_the_head_deploys_answers_and_ends_well(node: Node) -> None:
    with node.started("head", DALLE_SERVE_HOST="0.0.0.0", DALLE_RAY_NUM_CPUS="3") as process:
        assert process.stderr
        messages = next(line for line in process.stderr if "ready at" in line)
        assert node.calls == ["ray start", "serve deploy"]
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[1]
    assert f"http://127.0.0.1:{node.environment['DALLE_SERVE_PORT']}" in messages
    assert process.returncode == 0, rest
    # The application stops first, while its proxy is alive; then Ray stops.
    assert node.calls == ["ray start", "serve deploy", "serve deploy", "serve status", "ray ended"]
    deployed, empty, _ = (yaml.safe_load(text) for text in node.text("deployed").split("---\n"))
    assert deployed["http_options"]["host"] == "0.0.0.0"
    assert deployed["applications"] == CONFIG["applications"]
    assert empty == {**deployed, "applications": []}
    port = int(node.environment["DALLE_RAY_DASHBOARD_PORT"])
    options = options_that_ray_knows(node.text("ray").splitlines())
    assert options["head"] and options["block"] and options["include_dashboard"] and options["disable_usage_stats"]
    assert (options["dashboard_host"], options["dashboard_port"], options["num_cpus"]) == ("127.0.0.1", port, 3)
    assert (options["port"], options["metrics_export_port"]) == (6379, 8080)
    assert not options["redis_password"]
    assert f"serve deploy {node.record}" in node.text("calls") and f"--address http://127.0.0.1:{port}" in node.text(
        "calls"
    )
    assert not [path for path in node.record.iterdir() if path.name.startswith("tmp.")]


@RAY_WARNS
def test_the_head_takes_the_password_of_redis_from_its_file(node: Node) -> None:
    (node.record / "password").write_text("open sesame\n", encoding="utf-8")
    file = str(node.record / "password")
    for address, password in {"redis:6379": "open sesame", "": ""}.items():
        node.run("head", RAY_LIFE="1", RAY_REDIS_ADDRESS=address, DALLE_RAY_REDIS_PASSWORD_FILE=file)
        assert options_that_ray_knows(node.text("ray").splitlines())["redis_password"] == password


def test_the_head_ends_when_ray_does(node: Node) -> None:
    status, _, messages = node.run("head", RAY_LIFE="3")
    assert status == 1 and "Ray ended" in messages
    assert node.calls == ["ray start", "serve deploy"]


def test_the_head_ends_when_the_application_is_refused(node: Node) -> None:
    status, _, messages = node.run("head", DEPLOY_STATUS="1")
    assert status == 1 and "not deployed" in messages
    assert node.calls == ["ray start", "serve deploy", "ray ended"]


def test_the_head_ends_when_the_service_is_not_ready_in_time(node: Node) -> None:
    node.answers.ready = 503
    status, _, messages = node.run("head", DALLE_RAY_READY_SECONDS="0")
    assert status == 1 and "not ready after 0 s" in messages
    assert node.calls[:3] == ["ray start", "serve deploy", "serve status"] and node.calls[-1] == "ray ended"


STATUS = """
applications:
  other: {status: RUNNING, message: '', deployments: {}}
  dalle:
    status: DEPLOY_FAILED
    message: Failed to update the deployments ['Ingress'].
    deployments:
      emoji: {status: HEALTHY, message: ''}
      Ingress:
        status: DEPLOY_FAILED
        message: |-
          The deployment failed to start 3 times in a row. Error:
            File "/app/serving/ingress/store.py", line 46, in __init__
          dalle.errors.ConfigError: the store /nowhere cannot be written to
"""


def test_the_head_ends_when_serve_has_given_up_and_says_why(node: Node) -> None:
    node.answers.ready = 503
    (node.record / "status.txt").write_text(STATUS, encoding="utf-8")
    start = time.monotonic()
    status, _, messages = node.run("head")
    assert time.monotonic() - start < 50
    reason, end, *_ = messages.splitlines()
    assert reason == "dalle: dalle.errors.ConfigError: the store /nowhere cannot be written to"
    assert status == 1 and "could not be started" in end
    assert node.calls == ["ray start", "serve deploy", "serve status", "ray ended"]


MISTAKES = {
    "key": ({"DALLE_SERVE_KEYS_FILE": "short"}, "short, line 1: expected NAME KEY"),
    "no keys": ({"DALLE_SERVE_KEYS_FILE": "nowhere"}, "the keys in nowhere cannot be read"),
    "limit": ({"DALLE_SERVE_LIMITS__MAX_N": "0"}, "limits.max_n: "),
    "model": ({"DALLE_SERVE_MODELS": '[{"path": "unheard-of"}]'}, "unheard-of"),
    "words": ({"DALLE_SERVE_SAFETY__WORDS": "nowhere"}, "safety.words is nowhere: there is no such file"),
    "yaml": ({"DALLE_RAY_CONFIG": "broken"}, "broken cannot be read: "),
    "no configuration": ({"DALLE_RAY_CONFIG": "short"}, "short is no configuration of Serve"),
    "no yaml": ({"DALLE_RAY_CONFIG": "nowhere"}, "nowhere cannot be read: "),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_settings_is_one_line_before_ray_starts(node: Node, name: str) -> None:
    (node.record / "short").write_text("me short\n", encoding="utf-8")
    (node.record / "broken").write_text("a: [", encoding="utf-8")
    changes, message = MISTAKES[name]
    files = {"short", "broken", "nowhere"}
    changes = {key: str(node.record / value) if value in files else value for key, value in changes.items()}
    for words in (("check", "settings"), ("head",)):
        status, _, messages = node.run(*words, **changes)
        assert status == 2 and message in messages.replace(f"{node.record}/", ""), messages
        assert messages.startswith("error: ") and messages.count("\n") == 1
    assert not (node.record / "calls.txt").exists()


def test_a_head_does_not_share_the_port_of_another_program(node: Node) -> None:
    with socket.create_server(("127.0.0.1", node.service_port), reuse_port=True):
        status, _, messages = node.run("head", DALLE_SERVE_HOST="0.0.0.0")
    assert status == 2 and messages.startswith("error: another program listens on port ") and messages.count("\n") == 1
    assert not (node.record / "calls.txt").exists()


def test_settings_are_found_valid(node: Node) -> None:
    (node.record / "keys").write_text(f"me {'x' * 16}\n", encoding="utf-8")
    assert node.run("check", "settings", DALLE_SERVE_KEYS_FILE=str(node.record / "keys")) == (0, "", "")


def wait_for_ray(node: Node) -> None:
    until = time.monotonic() + 60
    while not (node.record / "calls.txt").exists():
        assert time.monotonic() < until
        time.sleep(0.05)


@RAY_WARNS
def test_a_worker_lets_ray_drain_while_there_is_a_head(node: Node) -> None:
    with node.started("worker", DALLE_RAY_NODE_IP="127.0.0.1", RAY_DRAIN="4") as process:
        wait_for_ray(node)
        process.send_signal(signal.SIGTERM)
        messages = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and "no head" not in messages
    assert node.calls == ["ray start", "ray ended"]
    options = options_that_ray_knows(node.text("ray").splitlines())
    assert options["address"] == node.environment["DALLE_RAY_ADDRESS"] and options["block"] and not options["head"]
    assert options["node_ip_address"] == "127.0.0.1"


def test_a_worker_whose_head_has_gone_ends_at_once(node: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with node.started("worker", DALLE_RAY_ADDRESS=address, RAY_DRAIN="60") as process:
            wait_for_ray(node)
            head.close()
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.stderr and f"there is no head at {address} any more" in process.stderr.readline()
            assert process.wait(30) == 0 and time.monotonic() - start < 30
    assert node.calls == ["ray start"]


def test_a_worker_ends_when_ray_does(node: Node) -> None:
    status, _, messages = node.run("worker", RAY_LIFE="1")
    assert status == 0 and "Ray ended" in messages


def test_a_worker_waits_for_its_head(node: Node) -> None:
    with node.started("worker", DALLE_RAY_ADDRESS="127.0.0.1:9") as process:
        assert process.stderr and "waiting for the head" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not (node.record / "calls.txt").exists()


def test_checks_say_what_they_find(node: Node) -> None:
    assert node.run("check", "node")[0] == node.run("check", "service")[0] == 0
    node.answers.ready = 503
    assert node.run("check", "service")[0] != 0
    assert node.run("check", "node", DALLE_RAY_AGENT_PORT="9")[0] != 0


def test_the_service_is_asked_under_its_prefix(node: Node, tmp_path: Path) -> None:
    for prefix, status in (("/pictures", 200), ("/pictures/", 200), ("/pictures", 503)):
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump({**CONFIG, "applications": [{**APPLICATION, "route_prefix": prefix}]}))
        node.answers.ready = 503  # of the path without a prefix, which nobody asks for
        node.answers.prefixed = {f"{prefix.rstrip('/')}/ready": status}
        assert (node.run("check", "service", DALLE_RAY_CONFIG=str(file))[0] == 0) is (status == 200)


def test_the_environment_is_nearer_than_the_file(node: Node) -> None:
    del node.environment["DALLE_SERVE_PORT"]
    status, output, _ = node.run("config")
    assert (status, yaml.safe_load(output)) == (0, CONFIG)
    changed = {"DALLE_SERVE_MODELS": "[]", "DALLE_SERVE_LIMITS__MAX_N": "3", "DALLE_SERVE_PORT": "8123"}
    status, output, _ = node.run("config", **changed)
    config = yaml.safe_load(output)
    assert config["http_options"] == {**CONFIG["http_options"], "port": 8123}
    limits = {name: value for name, value in APPLICATION["args"]["limits"].items() if name != "max_n"}
    assert config["applications"][0]["args"] == {"limits": limits}


@pytest.mark.parametrize("words", [(), ("tail",), ("check",), ("check", "all")])
def test_other_words_are_refused(node: Node, words: tuple[str, ...]) -> None:
    status, _, messages = node.run(*words)
    assert status == 2 and messages.startswith("usage: ")


def test_nothing_starts_without_its_programs(node: Node) -> None:
    (node.record / "bin" / "serve").unlink()
    python = node.record / "bin" / "python"
    python.symlink_to(sys.executable)
    status, _, messages = node.run("head", PATH=f"{python.parent}:/usr/bin:/bin")
    assert status == 1 and "serve is not on the PATH" in messages
