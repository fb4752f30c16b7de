"""`python -m serving`: the service on this machine, or on the Ray cluster that is there.

    python -m serving --port 8000
    python -m serving --model emoji --model ./my-model --limits.max-n 4

Every setting can be a flag, an environment variable (DALLE_SERVE_...) or a line of the YAML file given with --config.
"""

import argparse
import contextlib
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import CliApp, SettingsConfigDict

from dalle.checkpoint.store import find_model
from dalle.command_line import exit_on_mistake
from dalle.errors import ConfigError, DalleError
from serving.cluster.connect import connect
from serving.proxy import CALLBACK
from serving.settings import ModelSettings, Settings, load_settings, mistakes

__all__ = ["main"]


class _Command(Settings):
    """Serve pictures from prompts over HTTP: a page, OpenAI's images API, and metrics."""

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
    """A model's name or directory; several times for several models. Short for `--models`."""
    config: Path | None = None
    """YAML file with settings; flags and the environment win over it."""


def main() -> None:
    """Start the service and stay until it is asked to stop."""
    with exit_on_mistake():
        settings = _settings(sys.argv[1:])
        # replicas have working directories of their own
        models = tuple(
            model.model_copy(update={"path": str(find_model(model.path).absolute()), "name": model.id})
            for model in settings.models
        )
        settings = settings.model_copy(update={"models": models})
        if not os.environ.get("RAY_ADDRESS"):
            settings = _all_cores(settings, os.cpu_count() or 1)
    _serve(settings)


def _settings(arguments: list[str]) -> Settings:
    """Flags over the environment over the file."""
    file = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    file.add_argument("--config")
    if path := file.parse_known_args(arguments)[0].config:
        os.environ["DALLE_SERVE_CONFIG"] = path
    try:
        given = CliApp.run(_Command, cli_args=arguments)
    except ValidationError as error:
        raise DalleError(mistakes(error)) from error
    values: dict[str, Any] = {name: getattr(given, name) for name in given.model_fields_set - {"model", "config"}}
    if given.model:
        values["models"] = tuple(ModelSettings(path=path) for path in given.model)
    return load_settings(values)


def _serve(settings: Settings) -> None:
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", CALLBACK)
    if connect():
        settings = _all_cores(settings, os.cpu_count() or 1)
    import ray
    from ray import serve

    from serving.app import application

    options = {
        "host": settings.host,
        "port": settings.port,
        # the service answers at its own deadline, in words; this ends what that did not
        "request_timeout_s": settings.limits.deadline + 30,
    }
    serve.start(http_options=options, proxy_location="HeadOnly")
    serve.run(application(settings), name="dalle")
    print(f"ready: http://{settings.host}:{settings.port}", flush=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    print("stopping: requests that run are ended first; once more to stop at once", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    until = time.monotonic() + settings.limits.deadline
    with contextlib.suppress(KeyboardInterrupt):
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):  # after a minute
                serve.delete("dalle")  # waits for its replicas; a shutdown kills the proxy and its answers first
                break
    with contextlib.suppress(KeyboardInterrupt, TimeoutError):
        serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


def _all_cores(settings: Settings, num_cpus: int) -> Settings:
    """On a machine of its own a model has an even share of the cores that are left by those that say how many they
    take. Raises `ConfigError` if none are left: Ray would wait for them without end."""
    silent = [model for model in settings.models if "num_cpus" not in model.model_fields_set]
    taken = sum(model.num_cpus * model.max_replicas for model in settings.models if model not in silent)
    num_replicas = sum(model.max_replicas for model in silent)
    left = num_cpus - taken
    if left < 0 or (silent and not left):
        raise ConfigError(f"models with num_cpus take {taken:g} CPUs, and this machine has {num_cpus} for all models")
    share = left / max(1, num_replicas)
    share = math.floor(share) if share >= 1 else math.floor(100 * share) / 100
    models = tuple(
        model.model_copy(update={"num_cpus": share}) if model in silent else model for model in settings.models
    )
    return settings.model_copy(update={"models": models})


if __name__ == "__main__":
    main()
