"""All settings of the service, in one typed object: from a YAML file, the environment and flags, in rising order.

Environment names are those of the fields with `DALLE_SERVE_` in front; fields of fields after two underscores:
`DALLE_SERVE_PORT=8080`, `DALLE_SERVE_LIMITS__MAX_N=4`, `DALLE_SERVE_MODELS='[{"path": "/models/birds"}]'`. A key that
is not known is refused, wherever it comes from.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

from dalle.checkpoint.store import DEFAULT_MODEL
from dalle.errors import ConfigError

__all__ = ["INGRESS", "LimitSettings", "ModelSettings", "QueueSettings", "Settings", "load_settings", "mistakes"]


INGRESS = "Ingress"
"""Name of the deployment that takes requests."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _model_name(name: str) -> str:
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or len(name) > 64:
        raise ValueError("a name has letters, digits, '-', '_' and '.', at most 64 of them")
    if name == INGRESS:
        raise ValueError(f"{INGRESS} is the name of the service's own deployment")
    return name


class QueueSettings(_Strict):
    """The queue of each replica of a model. It may be changed while the service runs."""

    max_queue: int = Field(default=128, ge=0)
    """Pictures that may wait for slots, in each replica. More are refused with 429; of one caller, half of what others
    leave."""


class ModelSettings(QueueSettings):
    """One model: a deployment of its own, with its own replicas."""

    path: str = DEFAULT_MODEL
    """Name of a model (see `dalle models`) or its directory."""
    name: Annotated[str, AfterValidator(_model_name)] | None = None
    """What requests call it; by default the name in the model directory's last part."""
    device: str = "auto"
    text_encoder: str | None = None
    """Folder of a T5, for a model that follows its features (LlamaGen's t2i)."""
    num_slots: int = Field(default=8, ge=2, le=1024)
    """Rows in a step: pictures drawn at once without guidance, twice those with it."""
    mode: Literal["strict", "fast"] = "strict"
    """`strict` runs every step at one shape: the same seed gives the same bytes under any load. `fast` runs the
    smallest of a few shapes that holds the rows at hand: quicker when few pictures are drawn, and a picture may differ
    with the load, in its last bits."""
    threads: int | None = Field(default=None, ge=1)
    """Of a step on the CPU; by default as many as the replica has CPUs."""
    num_cpus: float = Field(default=1, gt=0)
    """That Ray reserves for a replica."""
    num_gpus: float = Field(default=0, ge=0)
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}; it must be at least min_replicas")
        if self.name is None:
            try:
                _model_name(self.id)
            except ValueError as error:
                raise ValueError(f"the path {self.path!r} does not end in a name: {error}; give one") from error
        return self

    @property
    def id(self) -> str:
        """What requests call the model, and its deployment."""
        return self.name or Path(self.path).name


class LimitSettings(_Strict):
    """What one request, and one caller, may ask for. These may be changed while the service runs."""

    max_n: int = Field(default=10, ge=1, le=1000)
    """Pictures in a request."""
    deadline: float = Field(default=120, gt=0)
    """Seconds in which a request must be done; it is refused at once if it cannot be, and stopped when it is not."""
    rate: str | None = None
    """Requests of a caller over time, such as `60/minute`; None is no limit."""
    concurrency: int | None = Field(default=None, ge=1)
    """Requests of a caller that may run or wait at once; None is no limit."""
    max_body_bytes: int = Field(default=64 * 1024, ge=1024)
    """Of a request without pictures."""
    max_upload_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    """Of a request with pictures."""
    max_image_pixels: int = Field(default=16 * 1024 * 1024, ge=1024)
    """Of a picture that is sent, height times width."""

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
    """Everything that `python -m serving` and `serving.app:build` read."""

    model_config = SettingsConfigDict(
        env_prefix="DALLE_SERVE_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
        use_attribute_docstrings=True,
    )

    models: tuple[ModelSettings, ...] = Field(default=(ModelSettings(),), min_length=1)
    """The first is the default of requests that name none."""
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    limits: LimitSettings = LimitSettings()
    keys_file: Path | None = None
    """File with a line `NAME KEY` for each caller, the key at least 16 characters long; None lets everybody in."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of these origins may call the service; by default only its own page may."""
    store: Path | None = None
    """Folder for pictures that are asked for as URLs; None refuses `response_format: url`. Replicas on several nodes
    need a shared one."""
    store_seconds: float = Field(default=3600, gt=0)
    """How long such a picture is kept."""
    store_bytes: int = Field(default=2**30, ge=2**20)
    """Of all such pictures; the oldest go first."""
    public_url: str | None = None
    """What URLs of pictures begin with; by default what the request was sent to."""
    log_prompts: bool = False
    """Write prompts into the access log; by default it has their length and a hash."""
    ingress_replicas: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [model.id for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"models have the names {', '.join(names)}; each needs its own")
        return self

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
        file = (YamlConfigSettingsSource(settings_cls, yaml_file=path),) if path else ()
        return (init_settings, env_settings, *file)


def load_settings(values: dict[str, Any]) -> Settings:
    """Settings from these values (flags, or the `args` of a Serve configuration), over the environment, over the YAML
    file that `DALLE_SERVE_CONFIG` names. Raises `ConfigError` with every mistake in words."""
    path = os.environ.get("DALLE_SERVE_CONFIG")
    if path and not Path(path).is_file():
        raise ConfigError(f"DALLE_SERVE_CONFIG is {path}: there is no such file")
    try:
        return Settings(**values)
    except ValidationError as error:
        raise ConfigError(mistakes(error)) from error


def mistakes(error: ValidationError) -> str:
    """What pydantic found, a sentence for each."""
    return "; ".join(
        f"{'.'.join(map(str, one['loc'])) or 'settings'}: {one['msg'].removeprefix('Value error, ')}"
        for one in error.errors()
    )
