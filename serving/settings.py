"""All settings of the service in one typed object, read from a YAML file, the environment and flags.

Flags override the environment, and the environment overrides the file. An environment variable is named after its
field, with the prefix `DALLE_SERVE_` and two underscores before a nested field: `DALLE_SERVE_PORT=8080`,
`DALLE_SERVE_LIMITS__MAX_N=4`, `DALLE_SERVE_MODELS='[{"path": "/models/birds"}]'`. Unknown keys are rejected.
"""

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from dalle.errors import ConfigError
from dalle.files import is_special
from serving.model_settings import LOAD_SECONDS, IdleUnload, ModelSettings, StrictModel
from serving.safety.settings import SafetySettings

__all__ = [
    "LimitSettings",
    "Settings",
    "load_settings",
    "mistakes",
    "mistakes_as_config_error",
    "read_setting",
]


USUAL_NAMES = ("dall-e-2", "gpt-image-1")
"""Names of models that front ends send by default."""


def _origin(text: str) -> str:
    if text not in ("*", "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\sA-Z]+", text):
        raise ValueError(f"{text!r} is no origin, such as https://example.org: in small letters, without a path")
    return text


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", text):
        raise ValueError(f"{text!r} is no base URL, such as https://example.org/pictures")
    return text


class LimitSettings(StrictModel):
    """Limits of one request and of one caller. They can be changed while the service runs."""

    max_n: int = Field(default=10, ge=1, le=1000)
    """Largest number of pictures in a request."""
    max_best_of: int = Field(default=16, ge=1, le=1000)
    """Largest number of candidates in a request (`best_of`). Other limits count the pictures that it asks for (`n`)."""
    deadline: float = Field(default=120, gt=0, allow_inf_nan=False)
    """Longest time for a request, in seconds, and the default of its field `deadline`. A request that cannot finish in
    time is refused on arrival; one that does not is stopped."""
    rate: str | None = None
    """Largest rate of requests per caller, such as `60/minute`; without it there is no limit."""
    concurrency: int | None = Field(default=None, ge=1)
    """Largest number of requests per caller that are running or queued at once; without it there is no limit."""
    max_body_bytes: int = Field(default=64 * 1024, ge=1024)
    """Largest body of a request without pictures, in bytes."""
    max_upload_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    """Largest body of a request with pictures (edits and variations), in bytes."""
    max_file_bytes: int = Field(default=100 * 1024 * 1024, ge=1024)
    """Largest body of an upload of a batch's file (`POST /v1/files`), in bytes."""
    max_batch_lines: int = Field(default=50_000, ge=1)
    """Largest number of requests in a batch."""
    max_batches: int = Field(default=16, ge=1)
    """Largest number of batches of one caller that are not finished."""
    max_image_pixels: int = Field(default=16 * 1024 * 1024, ge=1024)
    """Largest picture or mask in a request, in pixels (height times width)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rate is not None:
            from limits import parse

            try:
                parse(self.rate)
            except ValueError as error:
                raise ValueError(f"rate is {self.rate!r}; it must be like 60/minute or 5 per second") from error
        return self


class Settings(BaseSettings):
    """All settings of `python -m serving` and `serving.app:build`."""

    model_config = SettingsConfigDict(
        env_prefix="DALLE_SERVE_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
        use_attribute_docstrings=True,
    )

    models: tuple[ModelSettings, ...] = Field(default=(ModelSettings(),), min_length=1)
    """Models to serve, each with settings of its own. The first is the default for requests that name no model."""
    host: str = "127.0.0.1"
    """Address on which the service listens; 0.0.0.0 is every interface of this machine."""
    port: int = Field(default=8000, ge=1, le=65535)
    """TCP port on which the service listens."""
    limits: LimitSettings = LimitSettings()
    keys_file: Path | None = None
    """File of API keys with a line `NAME KEY` for each caller; a key has at least 16 characters. Without a file no key
    is needed."""
    cors_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = ()
    """Origins, such as `https://example.org`, whose pages may call the service; without any, only its own page may."""
    store: Path | None = None
    """Folder that stores the pictures of requests with `response_format: url`; without a folder they are refused.
    Ingress replicas on several nodes need a shared folder."""
    store_seconds: float = Field(default=3600, gt=0, allow_inf_nan=False)
    """Seconds for which a picture stays in the store, and the answer of an asynchronous or idempotent request."""
    store_bytes: int = Field(default=2**30, ge=2**20)
    """Largest total size of the store, in bytes, and of the folder `requests`; the oldest are removed first."""
    requests: Path | None = None
    """Folder that keeps asynchronous requests and those with an `Idempotency-Key`, with their answers (default:
    `requests` in the store, or else a folder of this user in the temporary directory). Ingress replicas on several
    nodes need a shared folder."""
    batches: Path | None = None
    """Folder that keeps uploaded files, batches and their results (default: `batches` in the store; without a store
    they are refused). Ingress replicas on several nodes need a shared folder."""
    batch_seconds: float = Field(default=7 * 24 * 3600, gt=0)
    """Seconds for which files and finished batches are kept."""
    batch_bytes: int = Field(default=10 * 2**30, ge=2**20)
    """Largest total size of the files of all callers, in bytes, and of the results of one batch; the oldest files of
    the caller whose files take most are removed first."""
    response_format: Literal["b64_json", "url"] = "b64_json"
    """How pictures are returned to requests that do not say: in the body, or as URLs, which needs a store. Streams
    contain their pictures in any case."""
    lenient: bool = False
    """Ignore fields that have no effect here, such as `style`, `steps` of diffusion models, or a `quality`, and list
    them in the response (`ignored`). Otherwise they are refused."""
    public_url: Annotated[str, AfterValidator(_url)] | None = None
    """Base URL of the stored pictures, as callers reach the service; without it, the base URL of the request."""
    idle_unload: IdleUnload = 0
    """Time without requests after which a model that does not set its own is unloaded, such as `10m`; at least 15 s, or
    `off`. It is loaded again for the next request, which waits for it."""
    traces: str | None = None
    """URL of an OpenTelemetry receiver (OTLP over HTTP) to which a span of each request is sent, such as
    `http://127.0.0.1:4318`; it needs the extra `otel`. Without it the standard variables `OTEL_...` count; without
    those either there are no traces."""
    log_prompts: bool = False
    """Write prompts into the access log; otherwise it has only their length and a short hash."""
    safety: SafetySettings = SafetySettings()
    """Checks of prompts and pictures, none by default: see docs/safety.md."""
    ingress_replicas: int = Field(default=1, ge=1)
    """Number of replicas that answer HTTP requests. Each counts `limits.rate` and `limits.concurrency` by itself."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [model.id for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"models have the names {', '.join(names)}; each needs its own")
        further = [alias for model in self.models for alias in model.aliases or ()]
        if taken := [alias for alias in further if alias in names or further.count(alias) > 1]:
            raise ValueError(f"the alias {taken[0]} is the name of another model too; each needs its own")
        if self.response_format == "url" and self.store is None:
            raise ValueError("response_format url needs a store: set the folder `store`")
        return self

    def idle_seconds(self, model: ModelSettings) -> float | None:
        """Seconds without requests after which a model is unloaded; None if it never is."""
        return (self.idle_unload if model.idle_unload is None else model.idle_unload) or None

    @property
    def request_seconds(self) -> float:
        """Longest time of a request: its deadline and, if a model can be unloaded, until it is loaded."""
        loading = LOAD_SECONDS if any(self.idle_seconds(model) for model in self.models) else 0.0
        return self.limits.deadline + loading

    @property
    def url(self) -> str:
        """Address of the service, with an IPv6 address in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def requests_folder(self) -> Path:
        """The folder that keeps requests with their answers."""
        if self.requests is not None:
            return self.requests
        if self.store is not None:
            return self.store / "requests"
        return Path(tempfile.gettempdir()) / f"dalle-serve-{os.getuid()}" / f"requests-{self.port}"

    @property
    def batches_folder(self) -> Path | None:
        """The folder that keeps files and batches, if the service keeps any."""
        return self.store / "batches" if self.batches is None and self.store is not None else self.batches

    @property
    def aliases(self) -> dict[str, str]:
        """The id of a model by each further name."""
        given = {alias: model.id for model in self.models for alias in model.aliases or ()}
        names = {model.id for model in self.models}
        if self.models[0].aliases is None:
            given |= {alias: self.models[0].id for alias in USUAL_NAMES if alias not in names | given.keys()}
        return given

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = os.environ.get("DALLE_SERVE_CONFIG")
        file = (InitSettingsSource(settings_cls, _read_config(Path(path))),) if path else ()
        return (init_settings, env_settings, *file)


def load_settings(values: dict[str, Any]) -> Settings:
    """Settings from `values` (flags, or the `args` of a Serve configuration), which override the environment, which
    overrides the YAML file that `DALLE_SERVE_CONFIG` names. Raises `ConfigError`, which lists every mistake."""
    with mistakes_as_config_error():
        return Settings(**values)


def read_setting(path: Path) -> str:
    """The text of a file that a setting names. Raises `OSError`, also for a pipe or a device, since the file is read by
    several processes, and `UnicodeDecodeError`."""
    if is_special(path):
        raise OSError(errno.EINVAL, "it is a pipe or a device; expected a file", str(path))
    return path.read_text(encoding="utf-8")


def _read_config(path: Path) -> dict[str, Any]:
    """The settings in a YAML file. Raises `ConfigError`."""
    try:
        content = yaml.safe_load(read_setting(path))
    except FileNotFoundError as error:
        raise ConfigError(f"DALLE_SERVE_CONFIG is {path}: there is no such file") from error
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise ConfigError(f"{path}{place}: this is not YAML: {error.problem}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"the settings in {path} cannot be read: {' '.join(str(error).split())}") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"the settings in {path} are a {type(content).__name__}; expected lines of NAME: VALUE")
    return {str(name): value for name, value in (content or {}).items()}


@contextmanager
def mistakes_as_config_error() -> Iterator[None]:
    """Turn the errors of pydantic into a `ConfigError`, which lists every mistake in one line."""
    try:
        yield
    except ValidationError as error:
        raise ConfigError(mistakes(error)) from error
    except SettingsError as error:  # a value that is not JSON, or an unknown flag
        cause = f": {error.__cause__}" if error.__cause__ is not None else ""
        raise ConfigError(f"{error}{cause}") from error


def mistakes(error: ValidationError) -> str:
    """Pydantic's errors as one line of text."""
    places = [one["loc"] for one in error.errors()]
    return "; ".join(
        f"{'.'.join(map(str, place)) or 'settings'}: {one['msg'].removeprefix('Value error, ')}"
        for place, one in zip(places, error.errors(), strict=True)
        # a list is too short where its items are invalid
        if not any(len(other) > len(place) > 0 and other[: len(place)] == place for other in places)
    )
