"""Mistakes in settings that `python -m serving` finds before it starts Ray, and the port that it keeps for itself."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dalle.errors import ConfigError, DalleError
from dalle.help_pages import UsageError
from serving.__main__ import _settings
from serving.preflight import check_gpus, check_settings, reserve_port
from serving.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DALLE_SERVE_CONFIG", "")  # set, so that it is restored after a flag has changed it


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket that listens as Ray Serve's proxy does."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind((HOST, 0))
        one.listen()
        yield one


def port_of(one: socket.socket) -> int:
    port: int = one.getsockname()[1]
    return port


def settings(folder: Path, **values: Any) -> Settings:
    return load_settings({"models": [{"path": str(folder)}], **values})


@pytest.mark.parametrize("host", [HOST, "0.0.0.0", "localhost"])
def test_a_port_that_others_would_share_is_refused(listener: socket.socket, host: str) -> None:
    with pytest.raises(ConfigError, match=f"another program listens on port {port_of(listener)} of "):
        reserve_port(host, port_of(listener))


def test_a_service_on_every_address_takes_the_port_of_each() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, reuse_port=True) as both:
        with pytest.raises(ConfigError, match="another program listens"):
            reserve_port(HOST, port_of(both))
        with pytest.raises(ConfigError, match="another program listens"):
            reserve_port("::1", port_of(both))


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("192.0.2.1", "cannot listen"),
        ("no such name", "not the name of an"),
        (f"{'x' * 64}.org", "not the name of an"),
    ],
)
def test_an_address_of_another_machine_is_refused(host: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reserve_port(host, 8000)


def test_a_reserved_port_is_for_one_service_alone() -> None:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = port_of(free)
    (held,) = reserve_port(HOST, port)
    with pytest.raises(ConfigError, match="another program listens"):  # although nothing listens yet
        reserve_port(HOST, port)
    with socket.create_server((HOST, port), reuse_port=True) as proxy:
        for _ in range(20):  # the held socket takes no connection
            with socket.create_connection((HOST, port), timeout=5), proxy.accept()[0]:
                pass
    held.close()
    (again,) = reserve_port(HOST, port)  # although connections linger, which the proxy closed first
    again.close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keys_file": "/nothing/keys"}, "the keys in /nothing/keys cannot be read"),
        ({"keys_file": "/dev/zero"}, "the keys in /dev/zero cannot be read: .*it is a pipe or a device"),
        ({"store": "/proc/store"}, "the store /proc/store cannot be written to"),
        ({"requests": "/proc/requests"}, "the folder of requests /proc/requests cannot be written to"),
        ({"batches": "/proc/batches"}, "the folder of batches /proc/batches cannot be written to"),
        ({"models": [{"path": "/proc"}]}, "config.json"),
        ({"models": [{"device": "quantum"}]}, "device is 'quantum'"),
        ({"models": [{"text_encoder": "/nothing"}]}, "there is no such folder"),
        ({"models": [{"text_encoder": "/proc"}]}, "has no use for a text encoder"),
        ({"models": [{"clip": "/nothing"}]}, "there is no CLIP model '/nothing'"),
        ({"models": [{"clip": "/proc"}]}, "/proc has no config.json"),
    ],
)
def test_a_setting_that_cannot_work_here_is_refused(model_folder: Path, values: dict[str, Any], message: str) -> None:
    values = values | {"models": [{"path": str(model_folder)} | one for one in values.get("models", [{}])]}
    with pytest.raises(DalleError, match=message):
        check_settings(load_settings(values))


def test_gpus_that_this_machine_does_not_have_are_not_waited_for() -> None:
    models = load_settings({"models": [{"num_gpus": 0.5, "min_replicas": 3, "max_replicas": 9}]}).models
    check_gpus(models, 2)
    with pytest.raises(
        ConfigError, match=r"models with num_gpus take 1\.5 GPUs, and this machine has 1 for all models"
    ):
        check_gpus(models, 1)


def test_damaged_weights_are_found_before_ray_starts(model_folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(model_folder, damaged)
    weights = damaged / "decoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(DalleError, match=r"decoder\.safetensors is damaged"):
        check_settings(settings(damaged))


def test_keys_that_others_can_read_are_warned_of(model_folder: Path, tmp_path: Path, recwarn: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice 0123456789abcdef")
    keys.chmod(0o600)
    check_settings(settings(model_folder, keys_file=keys))
    assert not recwarn.list
    keys.chmod(0o644)
    with pytest.warns(UserWarning, match=f"other users can read the keys in {keys}: chmod 600 it"):
        check_settings(settings(model_folder, keys_file=keys))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"port: [", "line 1: this is not YAML: "),
        (b"port: 8000\n- a\n", "line 2: this is not YAML: "),
        (b"- port", "are a list; expected lines of NAME: VALUE"),
        (b"\xff\xfe", "cannot be read: "),
        (b"models: [{path: ''}]", "^models.0.path: String should have at least 1 character$"),
    ],
)
def test_a_file_that_has_no_settings_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        _settings(["--config", str(file)])
    with pytest.raises(ConfigError, match=r"cannot be read: .*Is a directory"):
        _settings(["--config", str(tmp_path)])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"cannot be read: .*it is a pipe or a device"):
        _settings(["--config", str(tmp_path / "pipe")])


def test_flags_that_cannot_be_read_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^models\.0\.path: String should have at least 1 character$"):
        _settings(["--model", ""])
    with pytest.raises(UsageError, match="unrecognized arguments: --prot 8000; see python -m serving --help"):
        _settings(["--prot", "8000"])
    monkeypatch.setenv("DALLE_SERVE_MODELS", "[{")
    with pytest.raises(ConfigError, match="models"):
        _settings([])


@pytest.mark.parametrize("mistake", ["port", "model", "keys"])
def test_the_program_ends_with_one_line(listener: socket.socket, tmp_path: Path, mistake: str) -> None:
    arguments = {
        "port": ["--port", str(port_of(listener))],
        "model": ["--model", ""],
        "keys": ["--keys-file", str(tmp_path / "none")],
    }[mistake]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DALLE_"))}
    command = [sys.executable, "-m", "serving", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
