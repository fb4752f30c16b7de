"""A model directory: `config.json`, `tokenizer.json`, and one safetensors file for each network.

    config.json                  format, format version, name, what is known about the model, its sampling parameters,
                                 the networks' configurations, SHA-256 of the other files. The image tokenizer's
                                 configuration names its "kind" (see `image_tokenizers`), unless it is a VQGAN;
                                 "text_tokenizer" names the text tokenizer's kind (see `foreign_tokenizers`), unless
                                 it is our own
    tokenizer.json               the text tokenizer; a decoder from another project may have none
    image_tokenizer.safetensors  weights of the image tokenizer
    decoder.safetensors          weights of the decoder

A directory of stage 1 has the image tokenizer alone. Loading is strict: every file is hashed, every shape compared,
nothing is unpickled. The model's digest is the SHA-256 of `config.json`, which names the digests of all the rest.
Weights may be stored in half precision; they are always loaded as float32.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from dalle.config import Config
from dalle.errors import CheckpointError, ConfigError, ParameterError
from dalle.foreign_tokenizers import load_text_tokenizer
from dalle.image_tokenizers import DEFAULT_KIND, KINDS, AnyImageTokenizer, AnyImageTokenizerConfig, kind_of
from dalle.prompt_tokenizer import PromptTokenizer
from dalle.sampling import SamplingParams
from dalle.text_tokenizer import TextTokenizer
from dalle.transformer import Decoder, DecoderConfig
from dalle.weights import LazyTensor, Part, read_safetensors, write_safetensors

__all__ = [
    "FORMAT_VERSION",
    "Checkpoint",
    "ModelFacts",
    "check_checkpoint",
    "file_digest",
    "load_checkpoint",
    "load_facts",
    "load_image_tokenizer",
    "read_parts",
    "save_checkpoint",
    "write_checkpoint",
]

Network = TypeVar("Network", bound=nn.Module)

FORMAT = "dalle"
FORMAT_VERSION = 2
"""2: image and text tokenizers of other kinds, and decoders without a text tokenizer."""
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"


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


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        names, values = _stored_names(network), network.state_dict()
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
    before it takes its place, and may still raise. The old model steps aside for an instant: a kill just then leaves
    it, whole, in a folder `.NAME-.../before` beside.

    Raises `CheckpointError` if something else than a model directory is there, or if the parts do not fit together.
    """
    folder = Path(folder)
    _check_replaceable(folder)
    if decoder is not None:
        _check_fit(folder, image_tokenizer.config, text_tokenizer, decoder.config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    parts = {"image_tokenizer": image_tokenizer}
    if decoder is not None:
        parts["decoder"] = decoder
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        files = Path(temporary) / "model"
        files.mkdir()
        if text_tokenizer is not None:
            text_tokenizer.save(files / TOKENIZER_FILE)
        for key, part in parts.items():
            write_safetensors(files / f"{key}.safetensors", part.weights, on_written=on_written)
        config = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "name": name,
            "about": dict(about or {}),
            "sampling": (sampling or SamplingParams()).to_dict(),
            **{key: _config_values(part.config) for key, part in parts.items()},
            **({} if text_tokenizer is None else {"text_tokenizer": text_tokenizer.kind}),
            "digests": {path.name: file_digest(path) for path in sorted(files.iterdir())},
        }
        (files / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for path in files.iterdir():
            path.chmod(0o644)  # whatever the umask: others may read it
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        if check is not None:
            check(files)
        before = Path(temporary) / "before"
        if folder.exists():
            folder.rename(before)
        try:
            files.rename(folder)
        except OSError:
            if before.exists():
                before.rename(folder)
            raise
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
    config = _read_config(folder)
    _check_digests(folder, config["digests"])
    image_tokenizer = _load_network(folder, config, *_image_tokenizer_kind(folder, config))
    text_tokenizer, decoder = None, None
    if "decoder" in config:
        decoder = _load_network(folder, config, "decoder", DecoderConfig, Decoder)
        text_tokenizer = _load_text_tokenizer(folder, config)
        _check_fit(folder, image_tokenizer.config, text_tokenizer, decoder.config)
    return Checkpoint(
        name=config["name"],
        about=config["about"],
        sampling=_load_sampling(folder, config),
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
    config = _read_config(folder)
    if "decoder" not in config:
        raise CheckpointError(f"{folder} is an image tokenizer alone: it has no decoder to draw with")
    _check_digests(folder, {name: digest for name, digest in config["digests"].items() if name == TOKENIZER_FILE})
    text_tokenizer = _load_text_tokenizer(folder, config)
    part, config_class, _ = _image_tokenizer_kind(folder, config)
    try:
        decoder, image_tokenizer = DecoderConfig.from_dict(config["decoder"]), config_class.from_dict(config[part])
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error
    if text_tokenizer is None or decoder.feature_width is not None:
        raise CheckpointError(f"{folder} does not draw from prompts alone: it has no text tokenizer of its own")
    _check_fit(folder, image_tokenizer, text_tokenizer, decoder)
    assert isinstance(image_tokenizer, AnyImageTokenizerConfig)
    factor = image_tokenizer.picture_factor
    return ModelFacts(
        name=config["name"],
        digest=file_digest(folder / CONFIG_FILE),
        sampling=_load_sampling(folder, config),
        text_tokenizer=text_tokenizer,
        image_size=(decoder.grid_height * factor, decoder.grid_width * factor),
        grid=(decoder.grid_height, decoder.grid_width),
        codebook_size=decoder.codebook_size,
        guidance=decoder.guidance,
    )


def check_checkpoint(folder: str | Path) -> None:
    """Whether `load_checkpoint` would load a model directory, found out without holding its weights. Raises as it."""
    folder = Path(folder)
    config = _read_config(folder)
    _check_digests(folder, config["digests"])
    image_tokenizer = _empty_network(folder, config, *_image_tokenizer_kind(folder, config))
    _load_sampling(folder, config)
    if "decoder" in config:
        decoder = _empty_network(folder, config, "decoder", DecoderConfig, Decoder)
        text_tokenizer = _load_text_tokenizer(folder, config)
        _check_fit(folder, image_tokenizer.config, text_tokenizer, decoder.config)


def load_image_tokenizer(folder: str | Path) -> AnyImageTokenizer:
    """The image tokenizer of a model directory of either stage, without reading the decoder. Raises `CheckpointError`
    as `load_checkpoint` does, of what it reads."""
    folder = Path(folder)
    config = _read_config(folder)
    name = "image_tokenizer.safetensors"
    _check_digests(folder, {key: digest for key, digest in config["digests"].items() if key == name})
    return _load_network(folder, config, *_image_tokenizer_kind(folder, config))


def read_parts(folder: str | Path) -> dict[str, Part]:
    """The networks of a model directory, `image_tokenizer` and perhaps `decoder`, as configurations and lazy weights.
    Raises `CheckpointError` as `load_checkpoint` does."""
    folder = Path(folder)
    config = _read_config(folder)
    _check_digests(folder, config["digests"])
    networks: dict[str, Any] = {
        "image_tokenizer": _empty_network(folder, config, *_image_tokenizer_kind(folder, config))
    }
    if "decoder" in config:
        networks["decoder"] = _empty_network(folder, config, "decoder", DecoderConfig, Decoder)
    return {
        part: Part(config=network.config, weights=read_safetensors(folder / f"{part}.safetensors"))
        for part, network in networks.items()
    }


def _image_tokenizer_kind(
    folder: Path, config: dict[str, Any]
) -> tuple[str, type[Config], Callable[..., AnyImageTokenizer]]:
    """What `_load_network` needs to know; takes the kind out of the configuration."""
    kind = config["image_tokenizer"].pop("kind", DEFAULT_KIND)
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise CheckpointError(f"{folder / CONFIG_FILE}: image_tokenizer is of the kind {kind!r}; known are {known}")
    return "image_tokenizer", *KINDS[kind]


def _check_replaceable(folder: Path) -> None:
    if folder.exists():
        there = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
        ours = {CONFIG_FILE, TOKENIZER_FILE, *(name for name in there if name.endswith(".safetensors"))}
        if foreign := sorted(set(there) - ours):
            raise CheckpointError(f"{folder} is no model directory to be replaced: it has {', '.join(foreign)}")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; a model directory has {CONFIG_FILE} and *.safetensors")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {CONFIG_FILE}: it is no model directory") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f'{path} is no configuration of ours: it lacks "format": "{FORMAT}"')
    version = config.get("format_version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{path} has format version {version}; it must be an integer from 1 up")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}; this release reads up to {FORMAT_VERSION}: upgrade to read it"
        )
    shapes = {"name": str, "about": dict, "sampling": dict, "image_tokenizer": dict, "digests": dict}
    for key, kind in shapes.items():
        if not isinstance(config.get(key), kind):
            raise CheckpointError(f"{path} lacks {key!r}, or it is no {kind.__name__}")
    unknown = set(config) - {"format", "format_version", "decoder", "text_tokenizer", *shapes}
    if unknown:
        raise CheckpointError(f"{path} has unknown keys: {', '.join(sorted(unknown))}")
    return config


def _load_sampling(folder: Path, config: dict[str, Any]) -> SamplingParams:
    try:
        return SamplingParams.from_dict(config["sampling"])
    except (ConfigError, ParameterError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error


def _load_text_tokenizer(folder: Path, config: dict[str, Any]) -> PromptTokenizer | None:
    if config["format_version"] > 1 and "text_tokenizer" not in config:
        return None
    return load_text_tokenizer(
        config.get("text_tokenizer", TextTokenizer.kind), _listed(folder, config, TOKENIZER_FILE)
    )


def _check_digests(folder: Path, digests: dict[str, str]) -> None:
    for name, expected in digests.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise CheckpointError(f"{path} is missing; {CONFIG_FILE} lists it")
        try:
            found = file_digest(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if found != expected:
            raise CheckpointError(
                f"{path} is damaged or not of this model: its SHA-256 is {found[:12]}..., not {str(expected)[:12]}..."
            )


def _listed(folder: Path, config: dict[str, Any], name: str) -> Path:
    """A file whose digest has been checked."""
    if name not in config["digests"]:
        raise CheckpointError(f"{folder / CONFIG_FILE} lists no digest of {name}, which its model needs")
    return folder / name


def _empty_network(
    folder: Path, config: dict[str, Any], part: str, config_class: type[Config], network_class: Callable[..., Network]
) -> Network:
    """A network without numbers, after its file's names and shapes have been compared with its own."""
    path = _listed(folder, config, f"{part}.safetensors")
    try:
        with torch.device("meta"):
            network = network_class(config_class.from_dict(config[part]))
        with safe_open(path, "pt") as file:
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except (RuntimeError, TypeError, MemoryError) as error:  # torch's words for sizes beyond it, in several lines
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{folder / CONFIG_FILE}: no {part} can be built from it: {reason}") from error
    names = _stored_names(network)
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items() if names[key] == key}
    for key in sorted({*expected, *found}):
        if expected.get(key) != found.get(key):
            raise CheckpointError(f"{path}: {key} has shape {found.get(key)}, expected {expected.get(key)}")
    return network


def _load_network(
    folder: Path, config: dict[str, Any], part: str, config_class: type[Config], network_class: Callable[..., Network]
) -> Network:
    network = _empty_network(folder, config, part, config_class, network_class)
    # read into memory, not mapped: a mapped file would change with what is on the disk
    weights = read_safetensors(folder / f"{part}.safetensors")
    copies = {key: value.load().to(torch.float32) for key, value in weights.items()}
    network.load_state_dict({key: copies[stored] for key, stored in _stored_names(network).items()}, assign=True)
    return network.eval()


def _stored_names(network: nn.Module) -> dict[str, str]:
    """For the name of each weight, the one that it is stored under: layers that share a weight store it once."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in network.state_dict(keep_vars=True).items()}


def _check_fit(folder: Path, image: Config, text: PromptTokenizer | None, decoder: Config) -> None:
    assert isinstance(image, AnyImageTokenizerConfig) and isinstance(decoder, DecoderConfig)
    facts = {"codebook size": (image.codebook_size, decoder.codebook_size)}
    if text is not None:
        num_ids = decoder.layout.num_text_ids
        # other projects' decoders may have room for more ids than are in use
        roomy = text.kind != TextTokenizer.kind and text.vocab_size <= num_ids
        facts["text vocabulary"] = (num_ids if roomy else text.vocab_size, num_ids)
        facts["text length"] = (text.text_length, decoder.text_length)
    for name, (of_tokenizer, of_decoder) in facts.items():
        if of_tokenizer != of_decoder:
            raise CheckpointError(
                f"{folder}: the tokenizer's {name} is {of_tokenizer}, the decoder's is {of_decoder}: "
                "they are not of one model"
            )
