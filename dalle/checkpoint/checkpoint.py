"""Saving a whole model to a directory, and loading it; `dalle.checkpoint.files` lists the files of a directory.

A directory of stage 1 has an image tokenizer and no decoder. Loading is strict: every file is hashed, every shape is
compared, nothing is unpickled. The model's digest is the SHA-256 of `config.json`, which holds the digests of all other
files but the vocabulary. Weights may be stored in half precision; they are always loaded as float32.
"""

import dataclasses
import functools
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from dalle.checkpoint.files import (
    DECODER_FILE,
    IMAGE_TOKENIZER_FILE,
    TOKENIZER_FILE,
    check_digests,
    check_replaceable,
    digests_of,
    file_digest,
    finish_files,
)
from dalle.checkpoint.model_config import CONFIG_FILE, ModelConfig
from dalle.checkpoint.parts import (
    check_fit,
    empty_decoder,
    empty_image_tokenizer,
    read_text_tokenizer,
    stored_names,
    with_weights,
)
from dalle.checkpoint.vocabulary import Vocabulary, usable_vocabulary, write_vocabulary
from dalle.checkpoint.weights import LazyTensor, Part, read_safetensors, write_safetensors
from dalle.decoder.config import DecoderConfig
from dalle.decoder.decoder import Decoder
from dalle.decoder.sampling import SamplingParams
from dalle.errors import CheckpointError
from dalle.files import atomic_folder
from dalle.images import Mode
from dalle.text.tokenizer import PromptTokenizer
from dalle.vq.kinds import AnyImageTokenizer, AnyImageTokenizerConfig

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
    """A model directory, loaded. Networks are float32, on the CPU, in evaluation mode."""

    name: str
    image_tokenizer: AnyImageTokenizer
    text_tokenizer: PromptTokenizer | None = None
    decoder: Decoder | None = None
    about: Mapping[str, str]
    """Free text by key: licence, data, training."""
    sampling: SamplingParams
    """Sampling parameters that a request without its own gets."""
    digest: str = ""
    """SHA-256 of config.json, in hexadecimal; set by loading."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Properties of a model that the validation of requests needs; read without its weights."""

    name: str
    digest: str
    """SHA-256 of config.json, in hexadecimal."""
    sampling: SamplingParams
    text_tokenizer: PromptTokenizer
    image_size: tuple[int, int]
    """(height, width) in pixels."""
    grid: tuple[int, int]
    """(height, width) in codes."""
    codebook_size: int
    guidance: bool
    """Whether the model was trained for classifier-free guidance."""
    image_mode: Mode
    """RGBA for a model that draws transparency, else RGB."""
    prompt_language: str = "en"
    """ISO 639 code of the language that the model reads."""
    vocabulary: Vocabulary | None = None


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
    vocabulary: Vocabulary | None = None,
    overwrite: bool = False,
    sources: Iterable[Path] = (),
) -> str:
    """Write a model that is in memory to a directory, as `write_checkpoint` does. Returns the model's digest.

    dtype: type of the stored weights: float32, float16 or bfloat16.
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
        vocabulary=vocabulary,
        overwrite=overwrite,
        sources=sources,
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
    vocabulary: Vocabulary | None = None,
    overwrite: bool = False,
    sources: Iterable[Path] = (),
) -> str:
    """Write a model directory, whole or not at all. Returns the model's digest.

    One tensor is in memory at a time; `on_written` is called with the bytes of each. `check` is called with the
    finished directory before it takes its place, and may still raise.

    overwrite: replace a model directory that is there.
    sources: files and folders that the model is made from, which are never replaced.

    Raises `CannotWriteError` if the path holds something else than a model directory, or one without `overwrite`;
    `CheckpointError` if the parts do not fit together.
    """
    folder = Path(folder)
    if not name.strip() or any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise CheckpointError(f"the model's name is {name!r}; a name has no control characters, and is not empty")
    may_replace = functools.partial(check_replaceable, folder, overwrite=overwrite, sources=[*sources])
    may_replace()
    image_config, decoder_config = image_tokenizer.config, decoder.config if decoder is not None else None
    assert isinstance(image_config, AnyImageTokenizerConfig)
    assert isinstance(decoder_config, DecoderConfig | None)
    if decoder_config is not None:
        check_fit(folder, image_config, text_tokenizer, decoder_config)
    with atomic_folder(folder, check=lambda place: may_replace(moved=place)) as files:
        if text_tokenizer is not None:
            text_tokenizer.save(files / TOKENIZER_FILE)
        write_safetensors(files / IMAGE_TOKENIZER_FILE, image_tokenizer.weights, on_written=on_written)
        if decoder is not None:
            write_safetensors(files / DECODER_FILE, decoder.weights, on_written=on_written)
        config = ModelConfig(
            name=name,
            about=about or {},
            sampling=sampling or SamplingParams(),
            image_tokenizer=image_config,
            decoder=decoder_config,
            text_tokenizer=text_tokenizer.kind if text_tokenizer is not None else None,
            digests=digests_of(files),
        )
        (files / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
        if vocabulary is not None:
            write_vocabulary(files, vocabulary)
        finish_files(files)
        if check is not None:
            check(files)
    return file_digest(folder / CONFIG_FILE)


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a model directory.

    Raises `CheckpointError`, naming the file and what was expected, if anything is missing, damaged, foreign, of
    another shape, or of a newer format.
    """
    folder = Path(folder)
    config = ModelConfig.read(folder)
    check_digests(folder, config.digests)
    image_tokenizer, text_tokenizer, decoder = _empty_parts(folder, config)
    return Checkpoint(
        name=config.name,
        about=config.about,
        sampling=config.sampling,
        image_tokenizer=with_weights(image_tokenizer, folder / IMAGE_TOKENIZER_FILE),
        text_tokenizer=text_tokenizer,
        decoder=with_weights(decoder, folder / DECODER_FILE) if decoder is not None else None,
        digest=file_digest(folder / CONFIG_FILE),
    )


def _empty_parts(folder: Path, config: ModelConfig) -> tuple[AnyImageTokenizer, PromptTokenizer | None, Decoder | None]:
    """The networks without weights, and the text tokenizer of the decoder, checked against each other."""
    image_tokenizer, decoder = empty_image_tokenizer(folder, config), empty_decoder(folder, config)
    if decoder is None:
        return image_tokenizer, None, None
    text_tokenizer = read_text_tokenizer(folder, config)
    check_fit(folder, image_tokenizer.config, text_tokenizer, decoder.config)
    return image_tokenizer, text_tokenizer, decoder


def load_facts(folder: str | Path) -> ModelFacts:
    """Read a model directory without its weights, in milliseconds.

    Raises `CheckpointError` as `load_checkpoint` does, and for a model that does not draw from prompts alone.
    """
    folder = Path(folder)
    config = ModelConfig.read(folder)
    image_tokenizer, decoder = config.image_tokenizer, config.decoder
    if decoder is None:
        raise CheckpointError(f"{folder} is an image tokenizer alone: it has no decoder to draw with")
    check_digests(folder, {name: digest for name, digest in config.digests.items() if name == TOKENIZER_FILE})
    text_tokenizer = read_text_tokenizer(folder, config)
    if text_tokenizer is None or decoder.feature_width is not None:
        raise CheckpointError(f"{folder} does not draw from prompts alone: it has no text tokenizer of its own")
    check_fit(folder, image_tokenizer, text_tokenizer, decoder)
    factor = image_tokenizer.picture_factor
    return ModelFacts(
        name=config.name,
        digest=file_digest(folder / CONFIG_FILE),
        sampling=config.sampling,
        text_tokenizer=text_tokenizer,
        image_size=(decoder.grid_height * factor, decoder.grid_width * factor),
        grid=(decoder.grid_height, decoder.grid_width),
        codebook_size=decoder.codebook_size,
        guidance=decoder.guidance,
        image_mode="RGBA" if image_tokenizer.channels == 4 else "RGB",
        prompt_language=config.about.get("language", "en"),
        vocabulary=usable_vocabulary(folder),
    )


def check_checkpoint(folder: str | Path) -> None:
    """Check that `load_checkpoint` would load a model directory, without reading its weights into memory.

    Raises `CheckpointError` as `load_checkpoint` does.
    """
    folder = Path(folder)
    config = ModelConfig.read(folder)
    check_digests(folder, config.digests)
    _empty_parts(folder, config)


def load_image_tokenizer(folder: str | Path) -> AnyImageTokenizer:
    """The image tokenizer of a model directory of either stage. Files of the decoder and text tokenizer are not read.

    Raises `CheckpointError` as `load_checkpoint` does.
    """
    folder = Path(folder)
    config = ModelConfig.read(folder)
    name = IMAGE_TOKENIZER_FILE
    check_digests(folder, {key: digest for key, digest in config.digests.items() if key == name})
    return with_weights(empty_image_tokenizer(folder, config), folder / name)


def read_parts(folder: str | Path) -> dict[str, Part]:
    """The networks of a model directory, `image_tokenizer` and perhaps `decoder`, as configurations and lazy weights.

    Raises `CheckpointError` as `load_checkpoint` does.
    """
    folder = Path(folder)
    config = ModelConfig.read(folder)
    check_digests(folder, config.digests)
    networks = {"image_tokenizer": empty_image_tokenizer(folder, config), "decoder": empty_decoder(folder, config)}
    return {
        part: Part(config=network.config, weights=read_safetensors(folder / f"{part}.safetensors"))
        for part, network in networks.items()
        if network is not None
    }
