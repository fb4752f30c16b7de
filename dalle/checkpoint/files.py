"""A model directory as files: what `config.json` must say, the digests in it, and how one directory takes the place of
another. What is in the other files, and whether it belongs together, is the business of `checkpoint_parts`.

    config.json                  format, format version, name, what is known about the model, its sampling parameters,
                                 the networks' configurations, SHA-256 of the other files. The image tokenizer's
                                 configuration names its "kind" (see `image_tokenizers`), unless it is a VQGAN;
                                 "text_tokenizer" names the text tokenizer's kind (see `foreign_tokenizers`), unless
                                 it is our own
    tokenizer.json               the text tokenizer; a decoder from another project may have none
    image_tokenizer.safetensors  weights of the image tokenizer
    decoder.safetensors          weights of the decoder
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dalle.errors import CheckpointError

__all__ = [
    "CONFIG_FILE",
    "TOKENIZER_FILE",
    "check_digests",
    "check_replaceable",
    "file_digest",
    "finish_files",
    "in_place_of",
    "listed",
    "read_config",
    "write_config",
]

FORMAT = "dalle"
FORMAT_VERSION = 2
"""2: image and text tokenizers of other kinds, and decoders without a text tokenizer."""
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- reading


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says, as far as its outermost keys are what they must be.

    Raises `CheckpointError` if it is missing, damaged, foreign or of a newer format.
    """
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


def check_digests(folder: Path, digests: Mapping[str, str]) -> None:
    """Hash files. Raises `CheckpointError` for the first that is missing, unreadable, damaged or another."""
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


def listed(folder: Path, config: Mapping[str, Any], name: str) -> Path:
    """A file whose digest has been checked. Raises `CheckpointError` if config.json lists none of it."""
    if name not in config["digests"]:
        raise CheckpointError(f"{folder / CONFIG_FILE} lists no digest of {name}, which its model needs")
    return folder / name


# -- writing


def write_config(files: Path, values: Mapping[str, Any]) -> None:
    """Write config.json beside all the other files: the format, the values, and the files' digests."""
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **values,
        "digests": {path.name: file_digest(path) for path in sorted(files.iterdir())},
    }
    (files / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def finish_files(files: Path) -> None:
    """Bring all files to the disk, for everybody to read."""
    for path in files.iterdir():
        path.chmod(0o644)  # whatever the umask: others may read it
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def check_replaceable(folder: Path) -> None:
    """Raises `CheckpointError` if something else than a model directory is there."""
    if folder.exists():
        there = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
        ours = {CONFIG_FILE, TOKENIZER_FILE, *(name for name in there if name.endswith(".safetensors"))}
        if foreign := sorted(set(there) - ours):
            raise CheckpointError(f"{folder} is no model directory to be replaced: it has {', '.join(foreign)}")


@contextlib.contextmanager
def in_place_of(folder: Path) -> Iterator[Path]:
    """An empty folder for the body of a `with`, which takes the place of `folder` at its end, or is gone if it raises.

    What was there steps aside for an instant: a kill just then leaves it, whole, in a folder `.NAME-.../before` beside.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        files = Path(temporary) / "model"
        files.mkdir()
        yield files
        before = Path(temporary) / "before"
        if folder.exists():
            folder.rename(before)
        try:
            files.rename(folder)
        except OSError:
            if before.exists():
                before.rename(folder)
            raise
