"""The networks and the text tokenizer of a model directory, each built from its configuration and its file, and the
check that they fit together.

The digests of the files have been checked before. Every function raises `CheckpointError`, naming the file and what was
expected.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.overrides import TorchFunctionMode

from dalle.checkpoint.files import DECODER_FILE, IMAGE_TOKENIZER_FILE, TOKENIZER_FILE, listed
from dalle.checkpoint.int8 import SCALES, from_int8
from dalle.checkpoint.model_config import CONFIG_FILE, ModelConfig
from dalle.checkpoint.weights import read_safetensors
from dalle.decoder.config import DecoderConfig
from dalle.decoder.decoder import Decoder
from dalle.errors import CheckpointError, ConfigError
from dalle.text.bpe import TextTokenizer
from dalle.text.kinds import load_text_tokenizer
from dalle.text.tokenizer import PromptTokenizer
from dalle.vq.kinds import KINDS, AnyImageTokenizer, AnyImageTokenizerConfig, kind_of

__all__ = [
    "Misfit",
    "check_fit",
    "empty_decoder",
    "empty_image_tokenizer",
    "empty_network",
    "misfits",
    "read_text_tokenizer",
    "stored_names",
    "with_weights",
]

Network = TypeVar("Network", bound=nn.Module)


class _WithoutInitialValues(TorchFunctionMode):
    """Mode in which the functions of `torch.nn.init` do nothing.

    A tensor on the meta device has no values to initialise, and yet its `normal_` imports torch's compiler, which takes
    longer than loading the model.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:  # attribute accessors have no module
            return None
        return func(*args, **(kwargs or {}))


def empty_image_tokenizer(folder: Path, config: ModelConfig) -> AnyImageTokenizer:
    """The image tokenizer without weights (on torch's meta device), its shapes compared with those in its file."""
    network_class: Callable[..., AnyImageTokenizer] = KINDS[kind_of(config.image_tokenizer)][1]
    path = listed(folder, config.digests, IMAGE_TOKENIZER_FILE)
    return empty_network(path, lambda: network_class(config.image_tokenizer))


def empty_decoder(folder: Path, config: ModelConfig) -> Decoder | None:
    """The decoder, as `empty_image_tokenizer` gives the image tokenizer; None for a directory of stage 1."""
    if (decoder := config.decoder) is None:
        return None
    return empty_network(listed(folder, config.digests, DECODER_FILE), lambda: Decoder(decoder))


def empty_network(path: Path, build: Callable[[], Network]) -> Network:
    """The network that `build` makes, without weights (on torch's meta device), its shapes compared with those in its
    file. The configuration, which a message may name, is `config.json` beside the file."""
    config_path, part = path.parent / CONFIG_FILE, path.stem
    try:
        with torch.device("meta"), _WithoutInitialValues():
            network = build()
        with safe_open(path, "pt") as file:
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            rounded = [key for key in found if file.get_slice(key).get_dtype() == "I8"]
    except ConfigError as error:
        raise CheckpointError(f"{config_path}: {error}") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except (RuntimeError, TypeError, MemoryError) as error:  # torch's errors for sizes beyond it, in several lines
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{config_path}: no {part} can be built from it: {reason}") from error
    for key in rounded:
        if key + SCALES not in found:
            raise CheckpointError(f"{path}: {key} is int8, and its scales, {key}{SCALES}, are missing")
        if found[key + SCALES] == found[key][:1]:
            del found[key + SCALES]
    names = stored_names(network)
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items() if names[key] == key}
    for key in sorted({*expected, *found}):
        if expected.get(key) != found.get(key):
            raise CheckpointError(f"{path}: {key} has shape {found.get(key)}, expected {expected.get(key)}")
    return network


def with_weights(network: Network, path: Path) -> Network:
    """Load a file's weights into an empty network: float32, on the CPU, in evaluation mode. Returns the network."""
    # read into memory, not mapped: a mapped file would change with what is on the disk
    copies = {key: value.load().to(torch.float32) for key, value in from_int8(read_safetensors(path)).items()}
    network.load_state_dict({key: copies[stored] for key, stored in stored_names(network).items()}, assign=True)
    return network.eval()


def stored_names(network: nn.Module) -> dict[str, str]:
    """The name under which each weight is stored, by its name in the network: a weight that layers share is stored
    once, under the first of its names."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in network.state_dict(keep_vars=True).items()}


def read_text_tokenizer(folder: Path, config: ModelConfig) -> PromptTokenizer | None:
    """The text tokenizer of a model directory; None if the model has none."""
    if config.text_tokenizer is None:
        return None
    return load_text_tokenizer(config.text_tokenizer, listed(folder, config.digests, TOKENIZER_FILE))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Misfit:
    """A size in which a tokenizer differs from its decoder."""

    kind: Literal["image_tokenizer", "text_tokenizer"]
    fact: str
    of_tokenizer: int
    of_decoder: int


def misfits(
    image_tokenizer: AnyImageTokenizerConfig, text: PromptTokenizer | None, decoder: DecoderConfig
) -> list[Misfit]:
    """Vocabularies and lengths of both tokenizers that are not those of the decoder."""
    found = [("codebook size", image_tokenizer.codebook_size, decoder.codebook_size)]
    if text is not None:
        num_ids = decoder.layout.num_text_ids
        # other projects' decoders may have room for more ids than are in use
        roomy = text.kind != TextTokenizer.kind and text.vocab_size <= num_ids
        found.append(("text vocabulary", num_ids if roomy else text.vocab_size, num_ids))
        found.append(("text length", text.text_length, decoder.text_length))
    return [
        Misfit(
            kind="text_tokenizer" if fact.startswith("text") else "image_tokenizer",
            fact=fact,
            of_tokenizer=of_tokenizer,
            of_decoder=of_decoder,
        )
        for fact, of_tokenizer, of_decoder in found
        if of_tokenizer != of_decoder
    ]


def check_fit(
    folder: Path, image_tokenizer: AnyImageTokenizerConfig, text: PromptTokenizer | None, decoder: DecoderConfig
) -> None:
    """Check that the vocabularies and lengths of both tokenizers are those of the decoder."""
    for misfit in misfits(image_tokenizer, text, decoder):
        raise CheckpointError(
            f"{folder}: the tokenizer's {misfit.fact} is {misfit.of_tokenizer}, the decoder's is {misfit.of_decoder}: "
            "they belong to different models"
        )
