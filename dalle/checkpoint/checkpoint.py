"""A whole model, written to a directory and read from it; what is in one is told in `checkpoint_files`.

A directory of stage 1 has the image tokenizer alone. Loading is strict: every file is hashed, every shape compared,
nothing is unpickled. The model's digest is the SHA-256 of `config.json`, which names the digests of all the rest.
Weights may be stored in half precision; they are always loaded as float32.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dalle.checkpoint.files import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    check_digests,
    check_replaceable,
    file_digest,
    finish_files,
    in_place_of,
    read_config,
    write_config,
)
from dalle.checkpoint.parts import (
    check_fit,
    empty_network,
    image_tokenizer_kind,
    network_with_weights,
    read_sampling,
    read_text_tokenizer,
    stored_names,
)
from dalle.checkpoint.weights import LazyTensor, Part, read_safetensors, write_safetensors
from dalle.config import Config
from dalle.decoder.config import DecoderConfig
from dalle.decoder.decoder import Decoder
from dalle.decoder.sampling import SamplingParams
from dalle.errors import CheckpointError, ConfigError
from dalle.images import Mode
from dalle.text.tokenizer import PromptTokenizer
from dalle.vq.kinds import DEFAULT_KIND, AnyImageTokenizer, kind_of

__all__ = [
    "Checkpoint",
    "ModelFacts",
    "check_checkpoint",
    "load_checkpoint",
    "load_facts",
    "load_image_tokenizer",
    "read_parts",
    "save_checkpoint",
    "write_checkpoint",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a model directory holds. Networks are float32, on the CPU, in evaluation mode."""

    name: str
    image_tokenizer: AnyImageTokenizer
    text_tokenizer: PromptTokenizer | None = None
    decoder: Decoder | None = None
    about: Mapping[str, str]
    """Free text by key: licence, data, training."""
    sampling: SamplingParams
    """What this model draws best with."""
    digest: str = ""
    """SHA-256 of config.json, in hex; set by loading and saving."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What must be known of a model to check requests for it, without its weights."""

    name: str
    digest: str
    """As in `Checkpoint`."""
    sampling: SamplingParams
    text_tokenizer: PromptTokenizer
    image_size: tuple[int, int]
    """(height, width) in pixels."""
    grid: tuple[int, int]
    """(height, width) in codes."""
    codebook_size: int
    guidance: bool
    """Whether it was trained for guidance."""
    image_mode: Mode
    """RGBA for a model that draws transparency, else RGB."""


def save_checkpoint(
    folder: str | Path,
    *,
    name: str,
    image_tokenizer: AnyImageTokenizer,
    text_tokenizer: PromptTokenizer | None = None,
    decoder: Decoder | None = None,
    about: Mapping[str, str] | None = None,
    sampling: SamplingParams | None = None,
    dtype: torch.dtype = torch.float32,
) -> str:
    """Write the directory of a model that is in memory, as `write_checkpoint` does. Returns the model's digest.

    `dtype` is that of the stored weights: float32, float16 or bfloat16.
    """

    def part(network: AnyImageTokenizer | Decoder) -> Part:
        names, values = stored_names(network), network.state_dict()
        weights = {key: LazyTensor.of(values[key]).then(lambda t: t.to(dtype)) for key in names if names[key] == key}
        return Part(config=network.config, weights=weights)

    return write_checkpoint(
        folder,
        name=name,
        image_tokenizer=part(image_tokenizer),
        text_tokenizer=text_tokenizer,
        decoder=part(decoder) if decoder is not None else None,
        about=about,
        sampling=sampling,
    )


def write_checkpoint(
    folder: str | Path,
    *,
    name: str,
    image_tokenizer: Part,
    text_tokenizer: PromptTokenizer | None = None,
    decoder: Part | None = None,
    about: Mapping[str, str] | None = None,
    sampling: SamplingParams | None = None,
    on_written: Callable[[int], None] | None = None,
    check: Callable[[Path], None] | None = None,
) -> str:
    """Write a model directory, whole or not at all, over one that may be there. Returns the model's digest.

    One tensor is in memory at a time; `on_written` is told the bytes of each. `check` is given the finished directory
    before it takes its place (see `in_place_of`), and may still raise.

    Raises `CheckpointError` if something else than a model directory is there, or if the parts do not fit together.
    """
    folder = Path(folder)
    check_replaceable(folder)
    if decoder is not None:
        check_fit(folder, image_tokenizer.config, text_tokenizer, decoder.config)
    parts = {"image_tokenizer": image_tokenizer}
    if decoder is not None:
        parts["decoder"] = decoder
    with in_place_of(folder) as files:
        if text_tokenizer is not None:
            text_tokenizer.save(files / TOKENIZER_FILE)
        for key, part in parts.items():
            write_safetensors(files / f"{key}.safetensors", part.weights, on_written=on_written)
        values = {
            "name": name,
            "about": dict(about or {}),
            "sampling": (sampling or SamplingParams()).to_dict(),
            **{key: _config_values(part.config) for key, part in parts.items()},
            **({} if text_tokenizer is None else {"text_tokenizer": text_tokenizer.kind}),
        }
        write_config(files, values)
        finish_files(files)
        if check is not None:
            check(files)
    return file_digest(folder / CONFIG_FILE)


def _config_values(config: Config) -> dict[str, Any]:
    kind = DEFAULT_KIND if isinstance(config, DecoderConfig) else kind_of(config)
    return ({} if kind == DEFAULT_KIND else {"kind": kind}) | config.to_dict()


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a model directory.

    Raises `CheckpointError`, naming the file and what was expected, if anything is missing, damaged, foreign, of
    another shape, or of a newer format.
    """
    folder = Path(folder)
    config = read_config(folder)
    check_digests(folder, config["digests"])
    image_tokenizer = network_with_weights(folder, config, *image_tokenizer_kind(folder, config))
    text_tokenizer, decoder = None, None
    if "decoder" in config:
        decoder = network_with_weights(folder, config, "decoder", DecoderConfig, Decoder)
        text_tokenizer = read_text_tokenizer(folder, config)
        check_fit(folder, image_tokenizer.config, text_tokenizer, decoder.config)
    return Checkpoint(
        name=config["name"],
        about=config["about"],
        sampling=read_sampling(folder, config),
        image_tokenizer=image_tokenizer,
        text_tokenizer=text_tokenizer,
        decoder=decoder,
        digest=file_digest(folder / CONFIG_FILE),
    )


def load_facts(folder: str | Path) -> ModelFacts:
    """Read a model directory but for its weights, in milliseconds.

    Raises `CheckpointError` as `load_checkpoint` does, and for a model that does not draw from prompts alone.
    """
    folder = Path(folder)
    config = read_config(folder)
    if "decoder" not in config:
        raise CheckpointError(f"{folder} is an image tokenizer alone: it has no decoder to draw with")
    check_digests(folder, {name: digest for name, digest in config["digests"].items() if name == TOKENIZER_FILE})
    text_tokenizer = read_text_tokenizer(folder, config)
    part, config_class, _ = image_tokenizer_kind(folder, config)
    try:
        decoder, image_tokenizer = DecoderConfig.from_dict(config["decoder"]), config_class.from_dict(config[part])
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error
    if text_tokenizer is None or decoder.feature_width is not None:
        raise CheckpointError(f"{folder} does not draw from prompts alone: it has no text tokenizer of its own")
    check_fit(folder, image_tokenizer, text_tokenizer, decoder)
    factor = image_tokenizer.picture_factor
    return ModelFacts(
        name=config["name"],
        digest=file_digest(folder / CONFIG_FILE),
        sampling=read_sampling(folder, config),
        text_tokenizer=text_tokenizer,
        image_size=(decoder.grid_height * factor, decoder.grid_width * factor),
        grid=(decoder.grid_height, decoder.grid_width),
        codebook_size=decoder.codebook_size,
        guidance=decoder.guidance,
        image_mode="RGBA" if image_tokenizer.channels == 4 else "RGB",
    )


def check_checkpoint(folder: str | Path) -> None:
    """Whether `load_checkpoint` would load a model directory, found out without holding its weights. Raises as it."""
    folder = Path(folder)
    config = read_config(folder)
    check_digests(folder, config["digests"])
    image_tokenizer = empty_network(folder, config, *image_tokenizer_kind(folder, config))
    read_sampling(folder, config)
    if "decoder" in config:
        decoder = empty_network(folder, config, "decoder", DecoderConfig, Decoder)
        text_tokenizer = read_text_tokenizer(folder, config)
        check_fit(folder, image_tokenizer.config, text_tokenizer, decoder.config)


def load_image_tokenizer(folder: str | Path) -> AnyImageTokenizer:
    """The image tokenizer of a model directory of either stage, without reading the decoder. Raises `CheckpointError`
    as `load_checkpoint` does, of what it reads."""
    folder = Path(folder)
    config = read_config(folder)
    name = "image_tokenizer.safetensors"
    check_digests(folder, {key: digest for key, digest in config["digests"].items() if key == name})
    return network_with_weights(folder, config, *image_tokenizer_kind(folder, config))


def read_parts(folder: str | Path) -> dict[str, Part]:
    """The networks of a model directory, `image_tokenizer` and perhaps `decoder`, as configurations and lazy weights.
    Raises `CheckpointError` as `load_checkpoint` does."""
    folder = Path(folder)
    config = read_config(folder)
    check_digests(folder, config["digests"])
    networks: dict[str, Any] = {"image_tokenizer": empty_network(folder, config, *image_tokenizer_kind(folder, config))}
    if "decoder" in config:
        networks["decoder"] = empty_network(folder, config, "decoder", DecoderConfig, Decoder)
    return {
        part: Part(config=network.config, weights=read_safetensors(folder / f"{part}.safetensors"))
        for part, network in networks.items()
    }
