"""Where models are: those in this package, and those in the folder that DALLE_MODELS names.

A model is asked for by its name, which is its folder's name, or by the path of its directory.
"""

import json
import os
from pathlib import Path
from typing import Any

from dalle.errors import CheckpointError

__all__ = ["DEFAULT_MODEL", "describe_model", "find_model", "list_models"]

DEFAULT_MODEL = "emoji"
PACKAGED = Path(__file__).parents[1] / "models"


def list_models() -> dict[str, Path]:
    """Model directories by name. A model in the folder DALLE_MODELS hides one of the same name in the package."""
    folders = [PACKAGED]
    if os.environ.get("DALLE_MODELS"):
        folders.append(Path(os.environ["DALLE_MODELS"]))
    return {path.parent.name: path.parent for folder in folders for path in sorted(folder.glob("*/config.json"))}


def find_model(name: str | Path) -> Path:
    """The directory of a model, by name or path. Raises `CheckpointError`, naming the models there are."""
    known = list_models()
    if str(name) in known:
        return known[str(name)]
    if Path(name).is_dir():
        return Path(name)
    names = ", ".join(known) or "none"
    raise CheckpointError(f"there is no model {str(name)!r}: neither a model directory nor one of: {names}")


def describe_model(folder: Path) -> str:
    """A few lines about a model, read off its config.json alone; with the name there, if the folder has another.

    Raises `CheckpointError` if it cannot be read.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        image, decoder = config["image_tokenizer"], config.get("decoder")
        facts = {} if config["name"] == folder.name else {"name": config["name"]}
        size = image["image_size"] * (2 if image.get("wavelet_head") else 1)
        facts["picture"] = f"{size} x {size} pixels" + ", with transparency" * (image.get("channels") == 4)
        if decoder is not None:
            grid = f"{decoder['grid_height']} x {decoder['grid_width']}"
            facts["codes"] = f"{grid}, of {image['codebook_size']}"
            facts["decoder"] = f"{decoder['depth']} layers of width {decoder['width']}"
            facts["prompt"] = _prompt(config, decoder)
        facts |= config["about"]
        megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder} has no readable config.json of ours: {error!r}") from error
    lines = [f"{folder.name}  ({megabytes:.1f} MB, {folder})", *(f"  {key}: {value}" for key, value in facts.items())]
    return "\n".join(lines)


def _prompt(config: dict[str, Any], decoder: dict[str, Any]) -> str:
    """What the model draws from, in words."""
    length, kind = decoder["text_length"], config.get("text_tokenizer")
    if decoder.get("feature_width") is not None:
        return f"up to {length} tokens, with its text encoder"
    if kind == "classes":
        return f"a class, 0 to {decoder['text_vocab_size'] - 2}"
    if kind is None and config["format_version"] > 1:
        return f"no text tokenizer: {length} text ids"
    return f"up to {length if kind == 'padded' else length - 1} tokens"
