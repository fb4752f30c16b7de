"""`python -m serving`: the service on this machine, or on the Ray cluster that is there.

    python -m serving --port 8000
    python -m serving --model emoji --model ./my-model --limits.max_n 4

Every setting can be a flag, an environment variable (DALLE_SERVE_...) or a line of the YAML file given with --config.
"""

import argparse
import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import CliApp, SettingsConfigDict

from dalle.errors import DalleError
from dalle.model_store import find_model
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
    try:
        settings = _settings(sys.argv[1:])
        # replicas have working directories of their own
        models = tuple(
            model.model_copy(update={"path": str(find_model(model.path).absolute()), "name": model.id})
            for model in settings.models
        )
        settings = settings.model_copy(update={"models": models})
    except DalleError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
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
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", CALLBACK)
    alone = not os.environ.get("RAY_ADDRESS")
    if alone:
        # what Ray does on macOS and Windows: every port of its own listens on the loopback interface alone
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray
    from ray import serve

    from serving.app import application

    if alone:
        num_cpus = os.cpu_count() or 1
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False)
        settings = _all_cores(settings, num_cpus)
    else:
        ray.init()
    serve.start(http_options={"host": settings.host, "port": settings.port}, proxy_location="HeadOnly")
    serve.run(application(settings), name="dalle")
    print(f"ready: http://{settings.host}:{settings.port}", flush=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    print("stopping", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _all_cores(settings: Settings, num_cpus: int) -> Settings:
    """On a machine of its own a model has all cores that are left by the others, unless it says how many."""
    num_replicas = sum(model.max_replicas for model in settings.models)
    share = max(1, num_cpus // num_replicas)
    models = tuple(
        model if "num_cpus" in model.model_fields_set else model.model_copy(update={"num_cpus": share})
        for model in settings.models
    )
    return settings.model_copy(update={"models": models})


if __name__ == "__main__":
    main()
