"""The files of deployment, held against the code and against each other. No container runs here; the entrypoint does,
with programs in the place of Ray's that only write down how they were called.

tests/data/compose-spec.json is the schema of compose-spec/compose-spec (Apache-2.0), as check-jsonschema 0.39.0 has it.
"""

import ast
import contextlib
import fnmatch
import http.server
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from serving.metrics import EngineMetrics, HTTPMetrics
from serving.settings import ModelSettings, Settings, load_settings

ROOT = Path(__file__).parents[1]
ENTRYPOINT = ROOT / "deploy" / "entrypoint.sh"
COMPOSE_FILES = ("docker-compose.yml", "docker-compose.gpu.yml")
RAY_SERVICES = ("head", "worker")
RAY = Path(importlib.util.find_spec("ray").origin or "").parent  # type: ignore[union-attr]
"""Its sources, to be read: importing them takes seconds."""
SHELLS = [shell for shell in ("sh", "dash", "bash") if shutil.which(shell)]
RAY_WARNS = pytest.mark.filterwarnings("ignore::DeprecationWarning")
"""Where Ray is imported: it uses what pydantic has deprecated."""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def interpolated(text: str) -> str:
    """As Compose reads a value in an empty environment."""
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
    """What follows a Dockerfile's instruction, wherever it stands."""
    return [line.partition(" ")[2].strip() for line in DOCKERFILE if line.startswith(f"{name} ")]


def arguments() -> dict[str, str]:
    """The build arguments of the image that have a default."""
    return dict(line.split("=", 1) for line in instructions("ARG") if "=" in line)


def default_of(variable: str) -> str:
    """What the entrypoint takes for a variable that is not set."""
    found = re.search(rf'^: "\${{{variable}:=(.*)}}"$', read("deploy/entrypoint.sh"), re.MULTILINE)
    assert found, variable
    return found[1]


def environment_of(service: str) -> dict[str, str]:
    return {name: str(value) for name, value in SERVICES[service].get("environment", {}).items()}


def environments() -> Iterator[tuple[str, str, str]]:
    """Every variable of Ray's nodes: where it stands, its name and its value."""
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


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own settings."""
    for name in [name for name in os.environ if name.startswith(("DALLE_", "RAY_"))]:
        monkeypatch.delenv(name)


# Compose


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_a_compose_file_is_one_by_its_specification(name: str) -> None:
    schema = json.loads((ROOT / "tests" / "data" / "compose-spec.json").read_text(encoding="utf-8"))
    errors = [str(error) for error in jsonschema_rs.validator_for(schema).iter_errors(yaml.safe_load(read(name)))]
    assert not errors


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_every_compose_variable_has_a_default(name: str) -> None:
    without_comments = re.sub(r"#.*", "", read(name))
    assert not re.findall(r"(?<!\$)\$(?:\w+|\{\w+\})", without_comments)


def test_what_starts_without_a_profile() -> None:
    assert [name for name, service in SERVICES.items() if "profiles" not in service] == [*RAY_SERVICES]
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiles == {"redis": ["ft"], "prometheus": ["observability"], "grafana": ["observability"]}
    assert set(GPU["services"]) == set(RAY_SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_the_least_that_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] and service["init"]
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service and "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert bytes_of(service["deploy"]["resources"]["limits"]["memory"]) >= 2**28
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert "network_mode" not in service and set(service["networks"]) <= set(COMPOSE["networks"])


def test_only_the_service_is_published_and_to_this_machine_alone() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "head": [f"127.0.0.1:{PORT}:{PORT}"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }
    assert not any("ports" in service for service in GPU["services"].values())


@pytest.mark.parametrize(
    "image",
    sorted(
        {service["image"] for service in [*SERVICES.values(), *GPU["services"].values()]}
        | {container["image"] for container in CONTAINERS}
        | {arguments()["PYTHON_IMAGE"]}
    ),
)
def test_images_have_versions(image: str) -> None:
    name, _, tag = image.partition(":")
    assert re.match(r"v?\d+\.\d+", tag), f"{name} floats"


def test_our_image_has_the_project_s_version() -> None:
    ours = f"dalle-serve:{PROJECT['version']}"
    assert {SERVICES[name]["image"] for name in RAY_SERVICES} == {ours}
    assert {GPU["services"][name]["image"] for name in RAY_SERVICES} == {f"{ours}-cuda"}
    assert {container["image"] for container in CONTAINERS} == {ours}


def test_every_secret_is_a_file_and_every_file_that_is_named_is_mounted() -> None:
    mounted = {name: set(service.get("secrets", ())) for name, service in SERVICES.items()}
    assert set.union(*mounted.values()) == set(COMPOSE["secrets"])
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    assert {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()} == set(COMPOSE["secrets"])
    for name, service in SERVICES.items():
        named = set(re.findall(r"/run/secrets/(\w+)", json.dumps(service)))
        assert named == mounted[name], name


@pytest.mark.parametrize("name", RAY_SERVICES)
def test_every_node_wants_the_token(name: str) -> None:
    environment = environment_of(name)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"


def test_the_password_of_redis_is_the_same_for_both() -> None:
    file = environment_of("head")["DALLE_RAY_REDIS_PASSWORD_FILE"]
    assert f'--requirepass "$(cat {file})"' in SERVICES["redis"]["command"][-1]


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_from_the_checkout_is_there_and_is_not_written(name: str) -> None:
    for volume in SERVICES[name].get("volumes", ()):
        source, _, rest = volume.partition(":")
        if source.startswith("."):
            assert (ROOT / source).exists() and rest.endswith(":ro"), volume
        else:
            assert source in COMPOSE["volumes"], volume


@pytest.mark.parametrize("name", RAY_SERVICES)
def test_commands_are_those_of_the_entrypoint(name: str) -> None:
    assert SERVICES[name]["command"] == [name]
    kind, program, *words = SERVICES[name]["healthcheck"]["test"]
    assert (kind, Path(program).relative_to("/app")) == ("CMD", ENTRYPOINT.relative_to(ROOT))
    assert words == ["check", "service" if name == "head" else "node"]


@pytest.mark.parametrize("name", RAY_SERVICES)
def test_a_node_has_time_and_room(name: str) -> None:
    service, environment = SERVICES[name], environment_of(name)
    drain = int(environment["DALLE_RAY_DRAIN_SECONDS"])
    assert APPLICATION["args"]["limits"]["deadline"] + 10 <= drain <= seconds(service["stop_grace_period"]) - 20
    assert int(environment["DALLE_RAY_OBJECT_STORE_BYTES"]) < bytes_of(service["shm_size"])
    limits = service["deploy"]["resources"]["limits"]
    assert environment["DALLE_RAY_NUM_CPUS"] == str(limits["cpus"])
    assert float(limits["cpus"]) > sum(model["num_cpus"] for model in APPLICATION["args"]["models"])
    assert "/tmp" in service["tmpfs"][0] and default_of("DALLE_RAY_TEMP_DIR").startswith("/tmp/")


def test_the_worker_finds_the_head() -> None:
    assert environment_of("worker")["DALLE_RAY_ADDRESS"] == f"head:{default_of('DALLE_RAY_PORT')}"
    assert set(SERVICES["worker"]["networks"]) & set(SERVICES["head"]["networks"])


def test_the_head_waits_longer_for_the_models_than_it_may() -> None:
    start = seconds(SERVICES["head"]["healthcheck"]["start_period"])
    assert start == int(default_of("DALLE_RAY_READY_SECONDS"))
    assert f"--start-period={start}s" in instructions("HEALTHCHECK")[0]


# Settings


def test_environment_names_are_known_to_those_who_read_them() -> None:
    entrypoint = read("deploy/entrypoint.sh")
    library = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "dalle").glob("*.py"))
    ray = "".join(path.read_text(encoding="utf-8") for path in (RAY / "_private").rglob("*.py"))
    binary = (RAY / "_raylet.so").read_bytes()
    for where, name, _ in environments():
        if name.startswith("DALLE_RAY_"):
            assert f"${{{name}:" in entrypoint, (where, name)
        elif name.startswith("DALLE_SERVE_"):
            assert is_setting(name.removeprefix("DALLE_SERVE_").lower().split("__")), (where, name)
        elif name.startswith("DALLE_"):
            assert name in library, (where, name)
        elif name.startswith("RAY_"):
            assert name in ray or name.removeprefix("RAY_").encode() in binary, (where, name)
        else:
            assert name == "NVIDIA_DRIVER_CAPABILITIES", (where, name)


def is_setting(path: list[str], model: type[BaseModel] = Settings) -> bool:
    if path[0] not in model.model_fields:
        return False
    kind = model.model_fields[path[0]].annotation
    return len(path) == 1 or (isinstance(kind, type) and issubclass(kind, BaseModel) and is_setting(path[1:], kind))


def test_the_arguments_of_the_application_are_settings() -> None:
    settings = load_settings(APPLICATION["args"])
    assert settings.keys_file is None and not settings.log_prompts
    assert CONFIG["http_options"]["host"] == settings.host == "127.0.0.1"
    assert CONFIG["http_options"]["port"] == settings.port
    assert CONFIG["http_options"]["request_timeout_s"] >= settings.limits.deadline + 30
    assert sum(model.max_replicas * model.num_cpus for model in settings.models) <= len(RAY_SERVICES) * 2


def test_the_environment_of_a_node_makes_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment_of("head").items():
        if name.startswith("DALLE_SERVE_"):
            monkeypatch.setenv(name, value)
    settings = load_settings(APPLICATION["args"])
    assert settings.host == "0.0.0.0"
    assert settings.keys_file == Path("/run/secrets/api_keys")


def test_the_models_on_gpus_are_settings() -> None:
    models = [
        ModelSettings(**model) for model in json.loads(GPU["services"]["head"]["environment"]["DALLE_SERVE_MODELS"])
    ]
    assert [model.id for model in models] == [model.id for model in load_settings(APPLICATION["args"]).models]
    assert all(model.num_gpus for model in models)


@RAY_WARNS
def test_the_configuration_is_serve_s() -> None:
    from ray.serve.schema import ServeDeploySchema

    for config in (CONFIG, yaml.safe_load(RAY_SERVICE["spec"]["serveConfigV2"])):
        schema = ServeDeploySchema.model_validate(config)
        assert not unknown_keys(config, schema)


def unknown_keys(values: dict[str, Any], model: BaseModel) -> set[str]:
    """Keys that Serve ignores, for the sake of later releases."""
    fields = type(model).model_fields
    unknown = set(values) - set(fields)
    for name in set(values) & set(fields):
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            unknown |= unknown_keys(values[name], value)
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            unknown |= set().union(*(unknown_keys(one, two) for one, two in zip(values[name], value, strict=True)))
    return unknown


def test_the_builder_is_there() -> None:
    module, _, builder = APPLICATION["import_path"].partition(":")
    tree = ast.parse(read(module.replace(".", "/") + ".py"))
    assert builder in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


# The image


def test_the_image_is_made_of_what_is_there() -> None:
    rules = [line for line in read(".dockerignore").splitlines() if line and not line.startswith("#")]
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    assert rules[0] == "*"
    copied = [line.split()[:-1] for line in instructions("COPY") if not line.startswith("--from")]
    sources = [Path(source) for line in copied for source in line]
    for source in sources:
        assert (ROOT / source).exists() and source.parts[0] in kept, source
    assert {source.parts[0] for source in sources} == kept
    assert not [
        name for name in ("secrets", ".git", "runs", "data", ".venv") if any(fnmatch.fnmatch(name, k) for k in kept)
    ]


def test_versions_in_the_image_are_those_that_the_project_allows() -> None:
    requirements = {
        requirement.name: requirement
        for requirement in map(Requirement, [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["serving"]])
    }
    versions = arguments()
    assert Version(versions["TORCH_VERSION"]) in requirements["torch"].specifier
    assert Version(versions["RAY_VERSION"]) in requirements["ray"].specifier
    assert RAY_CLUSTER["rayVersion"] == versions["RAY_VERSION"]
    python = re.fullmatch(r"python:(\d+\.\d+)-slim-[a-z]+", versions["PYTHON_IMAGE"])
    assert python and f">={python[1]}" == PROJECT["requires-python"]
    (requested,) = re.findall(r"--editable '\.\[(\w+)\]'", read("Dockerfile"))
    assert requested in PROJECT["optional-dependencies"]


def test_the_image_runs_the_entrypoint_as_nobody_in_particular() -> None:
    entrypoint = "/app/deploy/entrypoint.sh"
    last = "\n".join(DOCKERFILE).rpartition("\nFROM ")[2]
    assert "\nUSER dalle" in last and "pip" not in last and "apt" not in last
    assert f'\nENTRYPOINT ["{entrypoint}"]' in last and '\nCMD ["head"]' in last
    assert f'CMD ["{entrypoint}", "check", "service"]' in last
    assert instructions("EXPOSE") == [str(PORT)]
    uid = int(arguments()["UID"])
    assert uid and {group["template"]["spec"]["securityContext"]["runAsUser"] for group in GROUPS} == {uid}


# Kubernetes


def test_kubernetes_has_the_same_application() -> None:
    config = yaml.safe_load(RAY_SERVICE["spec"]["serveConfigV2"])
    assert (RAY_SERVICE["apiVersion"], RAY_SERVICE["kind"]) == ("ray.io/v1", "RayService")
    assert config["applications"][0]["args"] == APPLICATION["args"]
    assert config["http_options"].pop("host") == "0.0.0.0"
    assert config.pop("proxy_location") == "EveryNode"
    same = {**CONFIG, "http_options": {**CONFIG["http_options"]}}
    same["http_options"].pop("host")
    same.pop("proxy_location")
    assert config == same


@pytest.mark.parametrize("group", GROUPS, ids=["head", "worker"])
def test_a_pod_is_bounded_probed_and_has_its_secrets(group: dict[str, Any]) -> None:
    spec = group["template"]["spec"]
    (container,) = spec["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] and spec["securityContext"]["runAsNonRoot"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    environment = {one["name"]: one["value"] for one in container["env"]}
    keys = next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "api-keys")
    assert environment["DALLE_SERVE_KEYS_FILE"] == f"{keys}/api_keys"
    drain = int(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert APPLICATION["args"]["limits"]["deadline"] + 10 <= drain <= spec["terminationGracePeriodSeconds"] - 20
    what = "node" if container["name"] == "ray-head" else "service"
    assert container["readinessProbe"]["exec"]["command"] == ["/app/deploy/entrypoint.sh", "check", what]
    assert container["livenessProbe"]["exec"]["command"] == ["/app/deploy/entrypoint.sh", "check", "node"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["serve"] == PORT
    assert ports["metrics"] == int(default_of("DALLE_RAY_METRICS_PORT"))


def test_ray_s_ports_are_for_the_cluster_and_its_operator() -> None:
    assert RAY_CLUSTER["authOptions"] == {"mode": "token"}
    assert RAY_CLUSTER["headGroupSpec"]["serviceType"] == "ClusterIP"
    selected = NETWORK_POLICY["spec"]["podSelector"]["matchLabels"].items()
    assert all(selected <= group["template"]["metadata"]["labels"].items() for group in GROUPS)
    open_to_all = [rule["ports"] for rule in NETWORK_POLICY["spec"]["ingress"] if "from" not in rule]
    assert open_to_all == [[{"port": PORT}, {"port": int(default_of("DALLE_RAY_METRICS_PORT"))}]]


def test_the_workers_have_room_for_the_application() -> None:
    (group,) = RAY_CLUSTER["workerGroupSpecs"]
    cpus = group["replicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    models = load_settings(APPLICATION["args"]).models
    assert RAY_CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cpus > sum(model.max_replicas * model.num_cpus for model in models)


# Prometheus and Grafana


def test_prometheus_reads_what_is_there() -> None:
    jobs = {job["job_name"]: job for job in PROMETHEUS["scrape_configs"]}
    metrics = default_of("DALLE_RAY_METRICS_PORT")
    assert jobs["dalle"]["static_configs"] == [{"targets": [f"head:{PORT}"]}]
    assert jobs["ray"]["static_configs"] == [{"targets": [f"head:{metrics}"]}]
    (workers,) = jobs["ray"]["dns_sd_configs"]
    assert (workers["names"], workers["port"]) == (["worker"], int(metrics))
    assert set(SERVICES["prometheus"]["networks"]) >= set(SERVICES["head"]["networks"])


def test_grafana_finds_its_data_and_its_dashboard() -> None:
    (source,) = load("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == PROMETHEUS["global"]["scrape_interval"]
    (provider,) = load("deploy/grafana/provisioning/dashboards/dalle.yml")["providers"]
    mounts = dict(volume.removesuffix(":ro").split(":") for volume in SERVICES["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    home = environment_of("grafana")["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/dalle.json"
    assert set(re.findall(r'"uid": "(\w+)"', read("deploy/grafana/dashboards/dalle.json"))) == {source["uid"], "dalle"}


def labels_of_metrics() -> dict[str, set[str]]:
    """The labels of every sample that the service shows."""
    engine, web = EngineMetrics("emoji"), HTTPMetrics()
    engine.refused("queue_full")
    web.answered("/v1/images/generations", 200, 1.0)
    families = [family for text in (engine.text(), web.text()) for family in text_string_to_metric_families(text)]
    return {sample.name: {*sample.labels} for family in families for sample in family.samples}


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are() -> None:
    known = labels_of_metrics()
    agent = (RAY / "dashboard" / "modules" / "reporter" / "reporter_agent.py").read_text(encoding="utf-8")
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    asked: set[str] = set()
    for expression in [*expressions, DASHBOARD["templating"]["list"][0]["definition"]]:
        (name,) = re.findall(r"\b(?:dalle|ray)_\w+", expression)
        asked.add(name)
        if name.startswith("ray_"):
            assert f'"{name.removeprefix("ray_")}"' in agent, name
            continue
        grouped = re.findall(r"by \(([^)]*)\)", expression)
        labels = {label.strip() for group in grouped for label in group.split(",")}
        assert labels | {*re.findall(r"(\w+)=~", expression)} <= known[name], expression
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in known if not name.endswith("_created")}
    assert {re.sub(r"_bucket$", "", name) for name in asked if name.startswith("dalle_")} == families


def test_panels_have_places_and_names_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(taken) == len({*taken}) and max(x for x, _ in taken) < 24


# The entrypoint


def test_the_entrypoint_can_be_run() -> None:
    assert os.access(ENTRYPOINT, os.X_OK)
    assert read("deploy/entrypoint.sh").startswith("#!/bin/sh\n")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_reads_the_entrypoint(shell: str) -> None:
    subprocess.run([shell, "-n", ENTRYPOINT], check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="there is no shellcheck")
def test_shellcheck_finds_nothing() -> None:
    subprocess.run(["shellcheck", ENTRYPOINT], check=True)


PROGRAMS = {
    # Ends when it is told to, or after RAY_LIFE seconds.
    "ray": """
        printf '%s\\n' "$@" > "$RECORD/ray.txt"
        echo "ray $1" >> "$RECORD/calls.txt"
        trap 'echo "ray ended" >> "$RECORD/calls.txt"; kill $!; exit 1' TERM
        sleep "${RAY_LIFE:-120}" & wait $!
    """,
    "serve": """
        echo "serve $*" >> "$RECORD/calls.txt"
        case $1 in
        deploy) cat "$2" >> "$RECORD/deployed.txt"; echo --- >> "$RECORD/deployed.txt"; exit "${DEPLOY_STATUS:-0}" ;;
        status) echo 'applications: {}' ;;
        esac
    """,
}


class Answers(http.server.BaseHTTPRequestHandler):
    """Ray's dashboard and the service at once."""

    ready = 200

    def do_GET(self) -> None:
        known = {"/api/gcs_healthz": 200, "/api/local_raylet_healthz": 200, "/ready": type(self).ready}
        self.send_response(known.get(self.path, 404))
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Node:
    """The entrypoint among programs that only record."""

    def __init__(self, folder: Path, port: int, answers: type[Answers]) -> None:
        self.record = folder
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
            "DALLE_SERVE_PORT": str(port),
            "DALLE_RAY_DASHBOARD_PORT": str(port),
            "DALLE_RAY_AGENT_PORT": str(port),
            "DALLE_RAY_ADDRESS": f"127.0.0.1:{port}",
            # A proxy that refuses everything: nothing of the machine itself may be asked for through it.
            "http_proxy": "http://127.0.0.1:9",
        }

    @contextlib.contextmanager
    def started(self, *words: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
        """The running entrypoint, of which nothing is left afterwards."""
        with subprocess.Popen(
            [ENTRYPOINT, *words],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=self.record,
        ) as process:
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def run(self, *words: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, output and messages."""
        with self.started(*words, **environment) as process:
            output, messages = process.communicate(timeout=60)
        return process.returncode, output, messages

    def text(self, name: str) -> str:
        return (self.record / f"{name}.txt").read_text(encoding="utf-8")

    @property
    def calls(self) -> list[str]:
        """Programs and what was asked of them."""
        return [" ".join(line.split()[:2]) for line in self.text("calls").splitlines()]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    class OfOneTest(Answers):
        pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), OfOneTest)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield Node(tmp_path, server.server_port, OfOneTest)
    server.shutdown()
    thread.join()
    server.server_close()


def options_that_ray_knows(arguments: list[str]) -> dict[str, Any]:
    """What `ray start` makes of its arguments; it raises for those that it does not know."""
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
    # The application first, its proxy still alive; Ray after it.
    assert node.calls == ["ray start", "serve deploy", "serve deploy", "serve status", "ray ended"]
    deployed, empty, _ = (yaml.safe_load(text) for text in node.text("deployed").split("---\n"))
    assert deployed["http_options"]["host"] == "0.0.0.0"
    assert deployed["applications"] == CONFIG["applications"]
    assert empty == {**deployed, "applications": []}
    port = int(node.environment["DALLE_RAY_DASHBOARD_PORT"])
    options = options_that_ray_knows(node.text("ray").splitlines())
    assert options["head"] and options["block"] and options["include_dashboard"] and options["disable_usage_stats"]
    assert (options["dashboard_host"], options["dashboard_port"], options["num_cpus"]) == ("127.0.0.1", port, 3)
    assert (options["port"], options["metrics_export_port"]) == ("6379", 8080) or options["port"] == 6379
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


@RAY_WARNS
def test_a_worker_becomes_ray(node: Node) -> None:
    with node.started("worker", DALLE_RAY_NODE_IP="127.0.0.1") as process:
        until = time.monotonic() + 60
        while not (node.record / "calls.txt").exists() and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert node.calls == ["ray start", "ray ended"]
    options = options_that_ray_knows(node.text("ray").splitlines())
    assert options["address"] == node.environment["DALLE_RAY_ADDRESS"] and options["block"] and not options["head"]
    assert options["node_ip_address"] == "127.0.0.1"


def test_a_worker_waits_for_its_head(node: Node) -> None:
    with node.started("worker", DALLE_RAY_ADDRESS="127.0.0.1:9") as process:
        assert process.stderr and "waiting for the head" in process.stderr.readline()
    assert not (node.record / "calls.txt").exists()


def test_checks_say_what_they_find(node: Node) -> None:
    assert node.run("check", "node")[0] == node.run("check", "service")[0] == 0
    node.answers.ready = 503
    assert node.run("check", "service")[0] != 0
    assert node.run("check", "node", DALLE_RAY_AGENT_PORT="9")[0] != 0


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
