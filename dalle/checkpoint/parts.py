"""The parts of a model directory, each built from its file: networks, text tokenizer, sampling parameters; and whether
they fit together.

`config` is what `checkpoint_files.read_config` gives, and the digests of the files that are read have been checked.
Every function raises `CheckpointError`, naming the file and what was expected.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from dalle.checkpoint.files import CONFIG_FILE, TOKENIZER_FILE, listed
from dalle.checkpoint.weights import read_safetensors
from dalle.config import Config
from dalle.decoder.config import DecoderConfig
from dalle.decoder.sampling import SamplingParams
from dalle.errors import CheckpointError, ConfigError, ParameterError
from dalle.text.bpe import TextTokenizer
from dalle.text.padded import load_text_tokenizer
from dalle.text.tokenizer import PromptTokenizer
from dalle.vq.kinds import DEFAULT_KIND, KINDS, AnyImageTokenizer, AnyImageTokenizerConfig

__all__ = [
    "check_fit",
    "empty_network",
    "image_tokenizer_kind",
    "network_with_weights",
    "read_sampling",
    "read_text_tokenizer",
    "stored_names",
]

Network = TypeVar("Network", bound=nn.Module)


def image_tokenizer_kind(
    folder: Path, config: dict[str, Any]
) -> tuple[str, type[AnyImageTokenizerConfig], Callable[..., AnyImageTokenizer]]:
    """What `empty_network` needs to know of it; takes the kind out of the configuration."""
    kind = config["image_tokenizer"].pop("kind", DEFAULT_KIND)
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise CheckpointError(f"{folder / CONFIG_FILE}: image_tokenizer is of the kind {kind!r}; known are {known}")
    return "image_tokenizer", *KINDS[kind]


def empty_network(
    folder: Path, config: dict[str, Any], part: str, config_class: type[Config], network_class: Callable[..., Network]
) -> Network:
    """A network without numbers, after its file's names and shapes have been compared with its own."""
    path = listed(folder, config, f"{part}.safetensors")
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
    names = stored_names(network)
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items() if names[key] == key}
    for key in sorted({*expected, *found}):
        if expected.get(key) != found.get(key):
            raise CheckpointError(f"{path}: {key} has shape {found.get(key)}, expected {expected.get(key)}")
    return network


def network_with_weights(
    folder: Path, config: dict[str, Any], part: str, config_class: type[Config], network_class: Callable[..., Network]
) -> Network:
    """A network with its weights as float32, on the CPU, in evaluation mode."""
    network = empty_network(folder, config, part, config_class, network_class)
    # read into memory, not mapped: a mapped file would change with what is on the disk
    weights = read_safetensors(folder / f"{part}.safetensors")
    copies = {key: value.load().to(torch.float32) for key, value in weights.items()}
    network.load_state_dict({key: copies[stored] for key, stored in stored_names(network).items()}, assign=True)
    return network.eval()


def stored_names(network: nn.Module) -> dict[str, str]:
    """For the name of each weight, the one that it is stored under: layers that share a weight store it once."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in network.state_dict(keep_vars=True).items()}


def read_text_tokenizer(folder: Path, config: dict[str, Any]) -> PromptTokenizer | None:
    """None if the model has none."""
    if config["format_version"] > 1 and "text_tokenizer" not in config:
        return None
    return load_text_tokenizer(config.get("text_tokenizer", TextTokenizer.kind), listed(folder, config, TOKENIZER_FILE))


def read_sampling(folder: Path, config: dict[str, Any]) -> SamplingParams:
    """What the model draws best with."""
    try:
        return SamplingParams.from_dict(config["sampling"])
    except (ConfigError, ParameterError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error


def check_fit(folder: Path, image: Config, text: PromptTokenizer | None, decoder: Config) -> None:
    """Whether both tokenizers' vocabularies and lengths are those of the decoder."""
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
