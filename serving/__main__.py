"""`python -m serving`: run the service on this machine, or on the Ray cluster that RAY_ADDRESS names.

    python -m serving --port 8000
    python -m serving --model emoji --model ./my-model --limits.max-n 4

Every setting can be a flag, an environment variable (DALLE_SERVE_...) or a key of the YAML file given with --config.
"""

import argparse
import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from pydantic_settings import CliApp, SettingsConfigDict

from dalle.checkpoint import load_facts
from dalle.checkpoint.clip import find_clip
from dalle.checkpoint.translator import find_translator
from dalle.command_line import exit_on_mistake, print_error, program, short_warnings
from dalle.device import choose_device
from dalle.errors import ConfigError
from dalle.help_pages import parsing
from dalle.hub.pull import model_folder
from dalle.steps import CompiledModel
from serving.cluster.connect import Connection, connect
from serving.model_settings import ModelSettings
from serving.preflight import check_gpus, check_settings, reserve_port
from serving.proxy import CALLBACK
from serving.settings import Settings, load_settings, mistakes_as_config_error

__all__ = ["main"]

STOPPING = (signal.SIGINT, signal.SIGTERM)
MAX_COMPILED_BYTES = 2e9
"""Size of the weight files up to which a step is compiled without being asked for."""


class _Command(Settings):
    """Serve a text-to-image model over HTTP: OpenAI's images API, a web page, and metrics for Prometheus."""

    model_config = SettingsConfigDict(
        **(
            Settings.model_config
            | {
                "cli_prog_name": "python -m serving",
                "cli_kebab_case": True,
                "cli_implicit_flags": True,
                "cli_hide_none_type": True,
                "cli_avoid_json": False,
            }
        )
    )

    model: tuple[str, ...] = Field(default=())
    """Name or directory of a model; repeat it for several models. Short for `--models`."""
    config: Path | None = None
    """YAML file with settings; flags and the environment override it."""


def main() -> None:
    """Start the service and run it until SIGINT or SIGTERM."""
    for number in STOPPING:
        signal.signal(number, _interrupt)
    reserved: list[socket.socket] = []
    with program():
        try:
            with exit_on_mistake(), short_warnings():
                settings = _settings(sys.argv[1:])
                # replicas have working directories of their own
                models = tuple(_absolute(model) for model in settings.models)
                settings = settings.model_copy(update={"models": models, "safety": settings.safety.absolute()})
                check_settings(settings)
                if not os.environ.get("RAY_ADDRESS"):
                    reserved = reserve_port(settings.host, settings.port)
                    settings = _all_cores(settings, os.cpu_count() or 1)
                    check_gpus(settings.models, torch.cuda.device_count())
                    for model in settings.models:
                        _compile(model)
            _serve(settings)
        except KeyboardInterrupt:
            print("stopped", flush=True)
            raise
    for held in reserved:
        held.close()


def _absolute(model: ModelSettings) -> ModelSettings:
    """The settings of a model with absolute paths of its directory, and of those of its CLIP model and its
    translator if it names them."""
    paths = {"path": str(model_folder(model.path).absolute()), "name": model.id}
    if model.clip is not None:
        paths["clip"] = str(find_clip(model.clip).absolute())
    if model.translator is not None:
        paths["translator"] = str(find_translator(model.translator).absolute())
    return model.model_copy(update=paths)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _settings(arguments: list[str]) -> Settings:
    """Settings from flags, which override the environment, which overrides the file of --config."""
    file = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    file.add_argument("--config")
    if path := file.parse_known_args(arguments)[0].config:
        os.environ["DALLE_SERVE_CONFIG"] = path
    with mistakes_as_config_error(), parsing("python -m serving", arguments):
        given = CliApp.run(_Command, cli_args=arguments)
    values: dict[str, Any] = {name: getattr(given, name) for name in given.model_fields_set - {"model", "config"}}
    if given.model:
        values["models"] = tuple({"path": path} for path in given.model)
    return load_settings(values)


def _compile(model: ModelSettings) -> None:
    """Compile the step of a model that has none yet, in a process of its own, whose memory is freed at its end. Where
    that fails, steps run operation by operation."""
    folder = Path(model.path)
    if model.step != "auto" or choose_device(model.device).type != "cpu":
        return
    if CompiledModel.find(load_facts(folder).digest, model.num_slots, model.weights) is not None:
        return
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if size > MAX_COMPILED_BYTES:
        print(f"{model.id} is larger than {MAX_COMPILED_BYTES / 1e9:.0f} GB: `dalle compile` makes its steps faster")
        return
    options = ["--num-slots", str(model.num_slots), "--weights", model.weights]
    command = [sys.executable, "-m", "dalle.cli", "compile", model.path, *options]
    if subprocess.run(command, check=False).returncode:
        print(f"going on without: the steps of {model.id} run operation by operation", flush=True)


def _serve(settings: Settings) -> None:
    """Run the service on Ray until a signal stops it; the requests that it has by then are finished first."""
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", CALLBACK)
    try:
        connection = connect()
    except SystemExit:  # while Ray starts, SIGTERM is handled by Ray
        raise KeyboardInterrupt from None
    for number in STOPPING:  # Ray has set handlers of its own, which would print a stack
        signal.signal(number, _interrupt)
    try:
        _start(settings, connection)
    except KeyboardInterrupt:
        connection.close()
        raise
    _run(settings, connection)


def _start(settings: Settings, connection: Connection) -> None:
    """Start Serve and the application. Ends the program with the reason if that fails."""
    import ray
    from ray import serve

    from serving.app import application

    options = {
        "host": settings.host,
        "port": settings.port,
        # the service answers with an error at its own deadline; this ends requests that it did not
        "request_timeout_s": settings.request_seconds + 30,
    }
    try:
        serve.start(http_options=options, proxy_location="HeadOnly")
        serve.run(application(settings), name="dalle")
    except RuntimeError as error:
        place = "" if connection.session is None else f"; Ray's logs are in {connection.session / 'logs'}"
        reasons = [one.message for app in serve.status().applications.values() for one in app.deployments.values()]
        reasons = [text.strip().splitlines()[-1] for text in (*reasons, str(error)) if text.strip()]
        print_error(f"the service could not start: {reasons[0]}{place}")
        ray.shutdown()
        raise SystemExit(1) from error


def _run(settings: Settings, connection: Connection) -> None:
    """Say that the service is ready, wait for a signal, then finish the requests that are running, and stop."""
    from ray import serve

    with contextlib.suppress(KeyboardInterrupt):
        print(f"ready: {settings.url}", flush=True)
        threading.Event().wait()
    print("stopping: running requests are finished first; interrupt again to stop at once", flush=True)
    until = time.monotonic() + settings.limits.deadline
    with contextlib.suppress(KeyboardInterrupt):
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):  # after a minute
                serve.delete("dalle")  # waits for the replicas; a shutdown would kill the proxy, and its answers, first
                break
        if not connection.alone and not serve.status().applications:
            serve.shutdown()  # type: ignore[no-untyped-call]
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)  # all is finished
    connection.close()
    print("stopped", flush=True)


def _all_cores(settings: Settings, num_cpus: int) -> Settings:
    """Give models that do not set num_cpus an even share of the cores that the others leave.

    Raises `ConfigError` if none are left: Ray would wait for them forever.
    """
    unset = [model for model in settings.models if "num_cpus" not in model.model_fields_set]
    taken = sum(model.num_cpus * model.max_replicas for model in settings.models if model not in unset)
    num_replicas = sum(model.max_replicas for model in unset)
    left = num_cpus - taken
    if left < 0 or (unset and not left):
        raise ConfigError(f"models with num_cpus take {taken:g} CPUs, and this machine has {num_cpus} for all models")
    share = left / max(1, num_replicas)
    share = math.floor(share) if share >= 1 else math.floor(100 * share) / 100
    models = tuple(
        model.model_copy(update={"num_cpus": share}) if model in unset else model for model in settings.models
    )
    return settings.model_copy(update={"models": models})


if __name__ == "__main__":
    main()
