"""`ModelSettings`: the settings of one model; part of `serving.settings`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dalle.checkpoint.store import DEFAULT_MODEL
from dalle.decoder.parallel import WINDOW_WIDTH
from dalle.defaults import Translate
from dalle.steps import StepKind
from dalle.transformer.linear import Weights
from dalle.translate.languages import as_translate
from serving.durations import Duration

__all__ = ["INGRESS", "LOAD_SECONDS", "IdleUnload", "ModelSettings", "QueueSettings", "StrictModel"]

INGRESS = "Ingress"
"""Name of the deployment that answers HTTP requests."""
MIN_IDLE = 15
"""Smallest `idle_unload`, in seconds. Replicas report to Ray Serve every 10 seconds."""
LOAD_SECONDS = 300.0
"""Longest time for which a request waits until a model is loaded again."""


class StrictModel(BaseModel):
    """Settings without unknown keys, which never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _model_name(name: str) -> str:
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or len(name) > 64:
        raise ValueError("a name has letters, digits, '-', '_' and '.', and at most 64 characters")
    if name == INGRESS:
        raise ValueError(f"{INGRESS} is the name of the service's own deployment")
    return name


def _idle_unload(seconds: float) -> float:
    if 0 < seconds < MIN_IDLE or not 0 <= seconds < float("inf"):
        raise ValueError(f"idle_unload is {seconds:g} s; it must be at least {MIN_IDLE} s, or off")
    return seconds


IdleUnload = Annotated[Duration, AfterValidator(_idle_unload)]


class QueueSettings(StrictModel):
    """The queue of each replica of a model. It can be changed while the service runs."""

    max_queue: int = Field(default=128, ge=0)
    """Pictures that can be queued for slots in each replica; further requests get status 429. One caller can fill half
    of the room that the others leave."""


class ModelSettings(QueueSettings):
    """One model, served by a deployment and replicas of its own."""

    path: str = Field(default=DEFAULT_MODEL, min_length=1)
    """Name of the model (see `dalle models`), or path of its directory."""
    name: Annotated[str, AfterValidator(_model_name)] | None = None
    """Name of the model in requests (default: the last part of `path`)."""
    aliases: tuple[Annotated[str, AfterValidator(_model_name)], ...] | None = None
    """Further names of the model in requests. Default: for the first model `dall-e-2` and `gpt-image-1`, which front
    ends send if nobody tells them a name; none for others."""
    device: str = "auto"
    """Device that runs the model, such as `cpu` or `cuda`; `auto` is CUDA if there is a GPU, else the CPU."""
    text_encoder: str | None = None
    """Folder of the T5 text encoder, for a model that is conditioned on its features (LlamaGen's t2i)."""
    clip: str | None = Field(default=None, min_length=1)
    """CLIP model that judges candidates (`best_of` with `rerank` `clip`): a name, or the path of its directory. Without
    it, `emoji`, which knows emoji and icons, is loaded while the first request that needs it is drawn."""
    translate: Annotated[Translate, BeforeValidator(as_translate)] | None = None
    """Language that prompts are translated from into English, for requests that do not say: `auto` detects it, `off`
    draws prompts as they are; or `fr`, `ko`, `de`, `es`, `ja`. `en` puts prompts in English into the wording of the
    model's captions, and is the default if the model has a vocabulary with styles; else `off` is."""
    translator: str | None = Field(default=None, min_length=1)
    """Translator of prompts: a name, or the path of its directory. It is loaded for the first prompt that needs it
    (default: the one that the library has)."""
    num_slots: int = Field(default=8, ge=2, le=1024)
    """Slots of each replica, which is the batch size of a step. A picture takes 1 slot, or 2 with guidance."""
    mode: Literal["strict", "fast"] = "strict"
    """`strict` runs every step at one batch size, so that a seed gives the same bytes under any load. `fast` runs each
    step at the smallest of a few batch sizes that holds the busy slots: it is faster when few pictures are drawn, but
    the load can change the last bits of the logits, and so a picture."""
    step: StepKind = "auto"
    """Kind of step. `eager` runs operation by operation. `compiled` is the program that `dalle compile` made for this
    machine and number of slots; it runs at one batch size in both modes. `auto` is the compiled one if it is there and
    was measured to be faster; `python -m serving` without a cluster compiles it at its first start. On CUDA, `auto` is
    `cuda_graph`: a step is one captured graph."""
    weights: Weights = "float32"
    """Type of the decoder's weights. `float32` leaves them as they are. `bfloat16` and `int8` round them, which is
    faster on a CPU and changes some codes."""
    parallel: int = Field(default=WINDOW_WIDTH, ge=1, le=64)
    """Most codes of a picture that a step on a CPU draws while few slots are busy: the same codes in a third of the
    steps. 1 is off; a compiled step is fast with 8. Without effect with rounded weights."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads that a step runs on (default: the whole part of `num_cpus`, at least 1)."""
    num_cpus: float = Field(default=1, gt=0, allow_inf_nan=False)
    """CPUs that Ray reserves for each replica. `python -m serving` without a cluster divides the machine's cores among
    the models that do not set it."""
    num_gpus: float = Field(default=0, ge=0, allow_inf_nan=False)
    """GPUs that Ray reserves for each replica; a fraction lets replicas share a GPU."""
    min_replicas: int = Field(default=1, ge=1)
    """Smallest number of replicas of the model."""
    max_replicas: int = Field(default=1, ge=1)
    """Largest number of replicas of the model. Above `min_replicas`, the number follows the load."""
    idle_unload: IdleUnload | None = None
    """Time without requests after which the model is unloaded, such as `10m`, or `off` (default: the setting
    `idle_unload` of the service). It is loaded again for the next request, which waits for it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}; it must be at least min_replicas")
        if self.name is None:
            try:
                _model_name(self.id)
            except ValueError as error:
                raise ValueError(f"the path {self.path!r} does not end in a model name: {error}; set name") from error
        return self

    @property
    def id(self) -> str:
        """Name of the model in requests, and of its deployment."""
        return self.name or Path(self.path).name
