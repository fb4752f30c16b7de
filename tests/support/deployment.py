"""The deployment files, parsed once for all tests of them."""

import importlib.util
import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

__all__ = [
    "APPLICATION",
    "COMPOSE",
    "COMPOSE_FILES",
    "CONFIG",
    "CONTAINERS",
    "DASHBOARD",
    "DOCKERFILE",
    "ENTRYPOINT",
    "GPU",
    "GROUPS",
    "NETWORK_POLICY",
    "PORT",
    "PROJECT",
    "PROMETHEUS",
    "RAY",
    "RAY_CLUSTER",
    "RAY_SERVICE",
    "RAY_SERVICES",
    "RAY_WARNS",
    "ROOT",
    "SERVICES",
    "SHELLS",
    "arguments",
    "bytes_of",
    "default_of",
    "environment_of",
    "environments",
    "instructions",
    "interpolated",
    "load",
    "read",
    "seconds",
]

ROOT = Path(__file__).parents[2]
ENTRYPOINT = ROOT / "deploy" / "entrypoint.sh"
COMPOSE_FILES = ("docker-compose.yml", "docker-compose.gpu.yml")
RAY_SERVICES = ("head", "worker")
RAY = Path(importlib.util.find_spec("ray").origin or "").parent  # type: ignore[union-attr]
"""Folder of Ray's sources, to be read: importing them takes seconds."""
SHELLS = [shell for shell in ("sh", "dash", "bash") if shutil.which(shell)]
RAY_WARNS = pytest.mark.filterwarnings("ignore::DeprecationWarning")
"""Mark for tests that import Ray, which uses deprecated features of pydantic."""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def interpolated(text: str) -> str:
    """Text with its variables replaced, as Compose does in an empty environment."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")


def load(name: str) -> Any:
    return yaml.safe_load(interpolated(read(name)))


COMPOSE: dict[str, Any] = load("docker-compose.yml")
GPU: dict[str, Any] = load("docker-compose.gpu.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CONFIG: dict[str, Any] = load("serving/config.yaml")
(APPLICATION,) = CONFIG["applications"]
RAY_SERVICE, NETWORK_POLICY = yaml.safe_load_all(read("deploy/rayservice.yaml"))
RAY_CLUSTER: dict[str, Any] = RAY_SERVICE["spec"]["rayClusterConfig"]
GROUPS: list[dict[str, Any]] = [RAY_CLUSTER["headGroupSpec"], *RAY_CLUSTER["workerGroupSpecs"]]
CONTAINERS: list[dict[str, Any]] = [group["template"]["spec"]["containers"][0] for group in GROUPS]
PROJECT: dict[str, Any] = tomllib.loads(read("pyproject.toml"))["project"]
PROMETHEUS: dict[str, Any] = load("deploy/prometheus.yml")
DASHBOARD: dict[str, Any] = json.loads(read("deploy/grafana/dashboards/dalle.json"))
DOCKERFILE = read("Dockerfile").replace("\\\n", " ").splitlines()
PORT: int = CONFIG["http_options"]["port"]


def instructions(name: str) -> list[str]:
    """Arguments of a Dockerfile's instruction, one for each occurrence."""
    return [line.partition(" ")[2].strip() for line in DOCKERFILE if line.startswith(f"{name} ")]


def arguments() -> dict[str, str]:
    """The build arguments of the image that have a default."""
    return dict(line.split("=", 1) for line in instructions("ARG") if "=" in line)


def default_of(variable: str) -> str:
    """Default value of a variable in the entrypoint."""
    found = re.search(rf'^: "\${{{variable}:=(.*)}}"$', read("deploy/entrypoint.sh"), re.MULTILINE)
    assert found, variable
    return found[1]


def environment_of(service: str) -> dict[str, str]:
    return {name: str(value) for name, value in SERVICES[service].get("environment", {}).items()}


def environments() -> Iterator[tuple[str, str, str]]:
    """Every variable of Ray's nodes: its place, name and value."""
    for service in RAY_SERVICES:
        yield from (("compose", name, value) for name, value in environment_of(service).items())
        gpu = GPU["services"][service].get("environment", {})
        yield from (("gpu", name, str(value)) for name, value in gpu.items())
    for container in CONTAINERS:
        yield from (("kubernetes", one["name"], str(one["value"])) for one in container["env"])


def seconds(text: str) -> int:
    assert text.endswith("s")
    return int(text[:-1])


def bytes_of(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(\w+)", text).groups()  # type: ignore[union-attr]
    return float(number) * 1024 ** {"m": 2, "g": 3}[unit[0].lower()]
