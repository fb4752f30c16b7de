"""The deployment files agree with the code and with each other. Containers run in tests/serving/test_containers.py.

tests/data/compose-spec.json is the schema of compose-spec/compose-spec (Apache-2.0), as check-jsonschema 0.39.0 has it.
"""

import ast
import fnmatch
import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from pydantic import BaseModel

from serving.model_settings import ModelSettings
from serving.proxy import CALLBACK
from serving.settings import Settings, load_settings
from tests.support.deployment import (
    APPLICATION,
    COMPOSE,
    COMPOSE_FILES,
    CONFIG,
    CONTAINERS,
    DOCKERFILE,
    ENTRYPOINT,
    GPU,
    GROUPS,
    NETWORK_POLICY,
    PORT,
    PROJECT,
    RAY,
    RAY_CLUSTER,
    RAY_SERVICE,
    RAY_SERVICES,
    RAY_WARNS,
    ROOT,
    SERVICES,
    arguments,
    bytes_of,
    default_of,
    environment_of,
    environments,
    instructions,
    read,
    seconds,
)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove settings of this machine from the environment."""
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
    assert [name for name, service in SERVICES.items() if "profiles" not in service] == ["settings", *RAY_SERVICES]
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiles == {"redis": ["ft"], "prometheus": ["observability"], "grafana": ["observability"]}
    assert set(GPU["services"]) == {"settings", *RAY_SERVICES}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_the_least_that_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] and service["init"]
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service and "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert bytes_of(service["deploy"]["resources"]["limits"]["memory"]) >= 2**28
    if name == "settings":
        assert service["restart"] == "no" and service["healthcheck"] == {"disable": True}
    else:
        assert service["restart"] == "unless-stopped"
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
    of_ours = ("settings", *RAY_SERVICES)
    assert {SERVICES[name]["image"] for name in of_ours} == {ours}
    assert {GPU["services"][name]["image"] for name in of_ours} == {f"{ours}-cuda"}
    assert {container["image"] for container in CONTAINERS} == {ours}


def test_the_image_is_built_once() -> None:
    for services in (SERVICES, GPU["services"]):
        assert [name for name, service in services.items() if "build" in service] == ["head"]


def test_settings_are_checked_before_anything_starts() -> None:
    assert SERVICES["settings"]["command"] == ["check", "settings"]
    assert environment_of("settings") == environment_of("head")
    assert SERVICES["settings"]["volumes"] == SERVICES["head"]["volumes"]
    assert SERVICES["head"]["depends_on"]["settings"]["condition"] == "service_completed_successfully"
    models = [GPU["services"][name]["environment"]["DALLE_SERVE_MODELS"] for name in ("settings", "head")]
    assert models[0] == models[1]


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
    assert "/tmp" in service["tmpfs"][0] and default_of("DALLE_RAY_TEMP_DIR").startswith("/tmp/")


def test_the_workers_have_room_for_an_update() -> None:
    assert environment_of("head")["DALLE_RAY_NUM_CPUS"] == "0"
    cpus = environment_of("worker")["DALLE_RAY_NUM_CPUS"]
    assert cpus == str(SERVICES["worker"]["deploy"]["resources"]["limits"]["cpus"])
    models = load_settings(APPLICATION["args"]).models
    num_workers = int(SERVICES["worker"]["deploy"]["replicas"])
    assert num_workers * float(cpus) >= 2 * sum(model.max_replicas * model.num_cpus for model in models)
    # no other node draws on GPUs
    assert str(GPU["services"]["head"]["environment"]["DALLE_RAY_NUM_CPUS"]) == cpus
    assert GPU["services"]["worker"]["deploy"]["replicas"] == 0


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
    library = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "dalle").rglob("*.py"))
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
    """Keys that Serve ignores: it accepts any, for later releases."""
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
    assert read("Dockerfile").count('--editable ".[$EXTRAS]"') == 1 == read("Dockerfile").count("--editable")
    assert {*versions["EXTRAS"].split(",")} == {"serving", "otel"} <= PROJECT["optional-dependencies"].keys()


def test_the_image_runs_the_entrypoint_as_nobody_in_particular() -> None:
    entrypoint = "/app/deploy/entrypoint.sh"
    last = "\n".join(DOCKERFILE).rpartition("\nFROM ")[2]
    assert "\nUSER dalle" in last and "pip" not in last and "apt" not in last
    assert f'\nENTRYPOINT ["{entrypoint}"]' in last and '\nCMD ["head"]' in last
    assert f'CMD ["{entrypoint}", "check", "service"]' in last
    assert instructions("EXPOSE") == [str(PORT)]
    # Kubernetes starts Ray without the entrypoint
    assert f"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH={CALLBACK}" in last
    assert "RAY_worker_niceness=0" in last and b"worker_niceness" in (RAY / "_raylet.so").read_bytes()
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
