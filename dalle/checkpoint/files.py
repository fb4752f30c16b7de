"""The files of a model directory: their names, their digests, and what may be replaced by them.

    config.json                  see `ModelConfig`
    tokenizer.json               the text tokenizer; a decoder from another project may have none
    image_tokenizer.safetensors  weights of the image tokenizer
    decoder.safetensors          weights of the decoder; absent in a directory of stage 1
    vocabulary.json              what the model knows, for people (see `Vocabulary`); optional, and without a digest

The content of the files is read in `dalle.checkpoint.parts`.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from dalle.checkpoint.model_config import CONFIG_FILE, FORMAT
from dalle.errors import CheckpointError
from dalle.files import CannotWriteError, check_output, flush_file, is_special

__all__ = [
    "DECODER_FILE",
    "IMAGE_TOKENIZER_FILE",
    "TOKENIZER_FILE",
    "VOCABULARY_FILE",
    "check_digests",
    "check_replaceable",
    "digests_of",
    "file_digest",
    "finish_files",
    "listed",
    "why_foreign",
]

TOKENIZER_FILE = "tokenizer.json"
IMAGE_TOKENIZER_FILE = "image_tokenizer.safetensors"
DECODER_FILE = "decoder.safetensors"
VOCABULARY_FILE = "vocabulary.json"


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by file name."""
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}


def check_digests(folder: Path, digests: Mapping[str, str]) -> None:
    """Hash the files that `digests` names, and compare.

    Raises `CheckpointError` for the first file that is missing, cannot be read, or has another digest.
    """
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
                f"{path} is damaged or not of this model: its SHA-256 is {found[:12]}..., not {expected[:12]}..."
            )


def listed(folder: Path, digests: Mapping[str, str], name: str) -> Path:
    """The path of a file whose digest has been checked. Raises `CheckpointError` if `digests` lacks it."""
    if name not in digests:
        raise CheckpointError(f"{folder / CONFIG_FILE} lists no digest of {name}, which its model needs")
    return folder / name


def finish_files(files: Path) -> None:
    """Make all files of a folder readable by everybody, whatever the umask, and flush them to the disk."""
    for path in files.iterdir():
        path.chmod(0o644)
        flush_file(path)


def check_replaceable(
    folder: Path,
    *,
    overwrite: bool,
    sources: Iterable[Path] = (),
    moved: Path | None = None,
    format: str = FORMAT,
) -> None:
    """Check that a model directory, or a directory of another format of this library, may be written, as `check_output`
    does. Raises `CannotWriteError`, also for a device or a pipe, to which a file can be written and no directory."""
    if is_special(folder):
        raise CannotWriteError(f"{folder} is a device or a pipe: give another place for a model directory")
    foreign = functools.partial(why_foreign, format=format)
    check_output(folder, "a model directory", foreign, overwrite=overwrite, sources=sources, moved=moved)


def why_foreign(folder: Path, format: str = FORMAT) -> str | None:
    """Why a file or folder is not a directory of this format that this library wrote; None if it is one. Its
    `config.json` says so, and lists every other file but the vocabulary."""
    if not folder.is_dir():
        return "it is a file"
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("format") != format or type(content.get("digests")) is not dict:
            return f"its {CONFIG_FILE} is of another program"
        strange = {path.name for path in folder.iterdir()} - {CONFIG_FILE, VOCABULARY_FILE, *content["digests"]}
    except FileNotFoundError:
        return f"it has no {CONFIG_FILE}, but {', '.join(sorted(os.listdir(folder))[:3])}"
    except (OSError, ValueError, RecursionError):
        return f"its {CONFIG_FILE} cannot be read"
    return f"it has {', '.join(sorted(strange)[:3])}, which its {CONFIG_FILE} does not list" if strange else None
