"""The models on this machine: those in this package, those in the folder that DALLE_MODELS names, and pulled ones.

A model's name is the name of its folder; a pulled one (see `dalle.checkpoint.pulled`) is named by its repository.
Commands and settings take a name, or the path of a model directory.
"""

import os
from pathlib import Path

from dalle.checkpoint.model_config import CONFIG_FILE, ModelConfig
from dalle.checkpoint.pulled import Reference, find_pulled, is_reference, list_pulled
from dalle.decoder.config import DecoderConfig
from dalle.errors import CheckpointError

__all__ = ["DEFAULT_MODEL", "describe_model", "find_model", "list_models"]

DEFAULT_MODEL = "emoji"
PACKAGED = Path(__file__).parents[1] / "models"


def list_models() -> dict[str, Path]:
    """Model directories by name. A model in the folder DALLE_MODELS hides one of the same name in the package."""
    folders = [PACKAGED]
    if os.environ.get("DALLE_MODELS"):
        folders.append(Path(os.environ["DALLE_MODELS"]))
    own = {path.parent.name: path.parent for folder in folders for path in sorted(folder.glob(f"*/{CONFIG_FILE}"))}
    return own | list_pulled()


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
    try:
        megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    lines = [f"{name}  ({megabytes:.1f} MB, {folder})", *(f"  {key}: {value}" for key, value in facts.items())]
    return "\n".join(lines)


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
