"""The models on this machine: those in this package, those in the folder that DALLE_MODELS names, and pulled ones.

A model's name is the name of its folder; a pulled one (see `dalle.checkpoint.pulled`) is named by its repository.
Commands and settings take a name, or the path of a model directory.
"""

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dalle.checkpoint.files import file_digest
from dalle.checkpoint.model_config import CONFIG_FILE, ModelConfig
from dalle.checkpoint.pulled import Reference, find_pulled, is_reference, list_pulled
from dalle.checkpoint.vocabulary import Vocabulary
from dalle.decoder.config import DecoderConfig
from dalle.defaults import DEFAULT_MODEL
from dalle.errors import CheckpointError
from dalle.installed import list_installed

__all__ = ["DEFAULT_MODEL", "describe_model", "describe_vocabulary", "find_model", "list_models", "model_facts"]


def list_models() -> dict[str, Path]:
    """Model directories by name: those of `dalle.installed`, and pulled ones."""
    return list_installed() | list_pulled()


def find_model(name: str | Path) -> Path:
    """The directory of a model, by name or path. Raises `CheckpointError`, listing the known models, or naming the
    command that pulls it."""
    if is_reference(name):
        if (folder := find_pulled(Reference.parse(str(name)))) is None:
            raise CheckpointError(f"{name} is not on this machine: `dalle pull {name}` fetches it")
        return folder
    known = list_models()
    if str(name) in known:
        return known[str(name)]
    if Path(name).is_dir():
        return Path(name)
    names = ", ".join(known) or "none"
    raise CheckpointError(f"there is no model {str(name)!r}: neither a model directory nor one of: {names}")


def describe_model(folder: Path, name: str | None = None) -> str:
    """A few lines about a model, from its config.json and the sizes of its files. The name in config.json is among them
    if it is not the given one, by default that of the folder.

    Raises `CheckpointError` if config.json is missing, damaged or invalid.
    """
    config = ModelConfig.read(folder)
    image, decoder = config.image_tokenizer, config.decoder
    name = name or folder.name
    facts = {} if config.name == name else {"name": config.name}
    size = image.image_size * image.picture_factor // image.factor
    facts["picture"] = f"{size} x {size} pixels" + ", with transparency" * (image.channels == 4)
    if decoder is not None:
        facts["codes"] = f"{decoder.grid_height} x {decoder.grid_width}, of {decoder.codebook_size}"
        facts["decoder"] = f"{decoder.depth} layers of width {decoder.width}"
        facts["prompt"] = _prompt(config.text_tokenizer, decoder)
    facts |= config.about
    megabytes = _num_bytes(folder) / 1e6
    lines = [f"{name}  ({megabytes:.1f} MB, {folder})", *(f"  {key}: {value}" for key, value in facts.items())]
    return "\n".join(lines)


def describe_vocabulary(vocabulary: Vocabulary | None) -> str:
    """What a model knows, in lines for a terminal: description, examples, styles, concepts."""
    if vocabulary is None:
        return "  it has no vocabulary.json, which would list what it knows"
    parts = [f"  {vocabulary.description}"] if vocabulary.description else []
    if vocabulary.examples:
        parts.append("\n".join(("  prompts that work well:", *(f"    {example}" for example in vocabulary.examples))))
    if vocabulary.styles:
        width = max(len(style.name) for style in vocabulary.styles)
        lines = (f"    {style.name:<{width}}  ..., {style.phrase}" for style in vocabulary.styles)
        parts.append("\n".join((f"  {len(vocabulary.styles)} styles, and the words for them:", *lines)))
    if vocabulary.concepts:
        names = textwrap.fill(", ".join(vocabulary.concepts), 100, initial_indent="    ", subsequent_indent="    ")
        parts.append(f"  {len(vocabulary.concepts):,} concepts:\n{names}")
    return "\n\n".join(parts)


def model_facts(folder: Path, name: str | None = None) -> dict[str, Any]:
    """The facts of `describe_model`, and the digest, as values for JSON. Raises `CheckpointError` as it does."""
    config = ModelConfig.read(folder)
    image, decoder = config.image_tokenizer, config.decoder
    size = image.image_size * image.picture_factor // image.factor
    return {
        "name": name or folder.name,
        "config_name": config.name,
        "folder": str(folder),
        "digest": file_digest(folder / CONFIG_FILE),
        "bytes": _num_bytes(folder),
        "picture_size": [size, size],
        "transparency": image.channels == 4,
        "grid": None if decoder is None else [decoder.grid_height, decoder.grid_width],
        "codebook_size": None if decoder is None else decoder.codebook_size,
        "decoder_depth": None if decoder is None else decoder.depth,
        "decoder_width": None if decoder is None else decoder.width,
        "prompt": None if decoder is None else _prompt(config.text_tokenizer, decoder),
        "sampling": asdict(config.sampling),
        "about": dict(config.about),
    }


def _num_bytes(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error


def _prompt(text_tokenizer: str | None, decoder: DecoderConfig) -> str:
    """What the model accepts as a prompt."""
    length = decoder.text_length
    if decoder.feature_width is not None:
        return f"up to {length} tokens, with its text encoder"
    match text_tokenizer:
        case None:
            return f"no text tokenizer: {length} text ids"
        case "classes":
            return f"a class, 0 to {decoder.text_vocab_size - 2}"
        case "padded":
            return f"up to {length} tokens"
        case _:
            return f"up to {length - 1} tokens"
