"""A CLIP model on disk: saved and loaded as strictly as a model directory, in a format of its own.

    config.json       format, name, notes, sizes, kind of the text tokenizer, and digests of the other files
    tokenizer.json    the text tokenizer
    clip.safetensors  the weights of both encoders

A classifier, `dalle.clip.classifier`, is the same with `classifier.safetensors` and no text tokenizer.
"""

import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from dalle.checkpoint.files import (
    TOKENIZER_FILE,
    check_digests,
    check_replaceable,
    digests_of,
    file_digest,
    finish_files,
    listed,
)
from dalle.checkpoint.model_config import CONFIG_FILE
from dalle.checkpoint.parts import empty_network, with_weights
from dalle.checkpoint.weights import LazyTensor, write_safetensors
from dalle.clip.classifier import Classifier, ClassifierConfig, ClassifierModel
from dalle.clip.clip import Clip
from dalle.clip.config import ClipConfig
from dalle.clip.model import ClipModel
from dalle.config import Config
from dalle.errors import CheckpointError, ConfigError
from dalle.files import atomic_folder
from dalle.installed import PACKAGED
from dalle.text.kinds import load_text_tokenizer
from dalle.text.tokenizer import PromptTokenizer

__all__ = ["find_clip", "load_classifier", "load_clip", "save_classifier", "save_clip"]

CLIP_FORMAT, CLASSIFIER_FORMAT = "dalle-clip", "dalle-classifier"
FORMAT_VERSION = 1
OPEN_CLIP_FILE = "open_clip_config.json"
"""A file by which another project's CLIP directory is known."""
CLIP_FILE, CLASSIFIER_FILE = "clip.safetensors", "classifier.safetensors"
Settings = TypeVar("Settings", bound=Config)

COMMON = {"format": str, "format_version": int, "name": str, "about": dict, "network": dict, "digests": dict}
"""Keys of every `config.json`, and the type of their values."""


def find_clip(name: str | Path) -> Path:
    """The CLIP directory of this path, or of this name: those in `models/clip` of this package, and in `clip` of the
    folder that DALLE_MODELS names. Raises `CheckpointError`, listing the known names."""
    folders = [PACKAGED / "clip"]
    if os.environ.get("DALLE_MODELS"):
        folders.append(Path(os.environ["DALLE_MODELS"]) / "clip")
    known = {path.parent.name: path.parent for folder in folders for path in sorted(folder.glob("*/config.json"))}
    if str(name) in known:
        return known[str(name)]
    if Path(name).is_dir():
        return Path(name)
    names = ", ".join(known) or "none"
    raise CheckpointError(f"there is no CLIP model {str(name)!r}: neither a CLIP directory nor one of: {names}")


def save_clip(
    folder: str | Path,
    *,
    name: str,
    network: Clip,
    text_tokenizer: PromptTokenizer,
    about: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    sources: Iterable[Path] = (),
) -> str:
    """Write a CLIP directory, whole or not at all. Returns its digest.

    dtype: type of the stored weights: float32, float16 or bfloat16.
    overwrite: replace a CLIP directory that is there; nothing else is replaced. sources: what is never replaced.
    Raises `CannotWriteError` as `write_checkpoint` does, and `CheckpointError` for a text tokenizer of another size.
    """
    _check_fit(Path(folder), text_tokenizer, network.config)

    def write(files: Path) -> dict[str, Any]:
        text_tokenizer.save(files / TOKENIZER_FILE)
        return {"text_tokenizer": text_tokenizer.kind}

    return _save(Path(folder), CLIP_FORMAT, CLIP_FILE, name, network, about, dtype, write, overwrite, sources)


def load_clip(folder: str | Path) -> ClipModel:
    """Read a CLIP directory. Raises `CheckpointError`, naming the file and what was expected, if anything is missing,
    damaged, foreign, of another shape, or of a newer format."""
    folder = Path(folder)
    values = _read(folder, CLIP_FORMAT, {"text_tokenizer": str})
    config = _parsed(folder, ClipConfig, values["network"])
    tokenizer = load_text_tokenizer(values["text_tokenizer"], listed(folder, values["digests"], TOKENIZER_FILE))
    _check_fit(folder, tokenizer, config)
    path = listed(folder, values["digests"], CLIP_FILE)
    return ClipModel(
        name=values["name"],
        network=with_weights(empty_network(path, lambda: Clip(config)), path),
        text_tokenizer=tokenizer,
        about=values["about"],
        digest=file_digest(folder / CONFIG_FILE),
    )


def save_classifier(
    folder: str | Path,
    *,
    name: str,
    network: Classifier,
    about: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> str:
    """Write the directory of a classifier, whole or not at all, as `save_clip` does. Returns its digest."""
    folder = Path(folder)
    return _save(
        folder, CLASSIFIER_FORMAT, CLASSIFIER_FILE, name, network, about, dtype, lambda _: {}, overwrite, sources=()
    )


def load_classifier(folder: str | Path) -> ClassifierModel:
    """Read the directory of a classifier. Raises `CheckpointError` as `load_clip` does."""
    folder = Path(folder)
    values = _read(folder, CLASSIFIER_FORMAT, {})
    config = _parsed(folder, ClassifierConfig, values["network"])
    path = listed(folder, values["digests"], CLASSIFIER_FILE)
    return ClassifierModel(
        name=values["name"],
        network=with_weights(empty_network(path, lambda: Classifier(config)), path),
        about=values["about"],
        digest=file_digest(folder / CONFIG_FILE),
    )


def _save(
    folder: Path,
    format: str,
    weights_file: str,
    name: str,
    network: Clip | Classifier,
    about: Mapping[str, str] | None,
    dtype: torch.dtype,
    write: Callable[[Path], dict[str, Any]],
    overwrite: bool,
    sources: Iterable[Path],
) -> str:
    """Write a directory: what `write` writes and returns keys of `config.json` for, the weights, and `config.json`."""
    may_replace = functools.partial(check_replaceable, folder, overwrite=overwrite, sources=[*sources], format=format)
    may_replace()
    with atomic_folder(folder, check=lambda place: may_replace(moved=place)) as files:
        further = write(files)
        write_safetensors(files / weights_file, _stored(network, dtype))
        values = {
            "format": format,
            "format_version": FORMAT_VERSION,
            "name": name,
            "about": dict(about or {}),
            "network": network.config.to_dict(),
            **further,
            "digests": digests_of(files),
        }
        (files / CONFIG_FILE).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        finish_files(files)
    return file_digest(folder / CONFIG_FILE)


def _stored(network: nn.Module, dtype: torch.dtype) -> dict[str, LazyTensor]:
    return {key: LazyTensor.of(value).then(lambda t: t.to(dtype)) for key, value in network.state_dict().items()}


def _read(folder: Path, format: str, further: Mapping[str, type]) -> dict[str, Any]:
    """The content of `config.json`, its keys and their types checked, and the digests of the files it lists."""
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        hint = (
            "; `dalle import` makes one of it" if format == CLIP_FORMAT and (folder / OPEN_CLIP_FILE).exists() else ""
        )
        message = f"{folder} has no {CONFIG_FILE}: it is not a directory of format {format}{hint}"
        raise CheckpointError(message) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict) or values.get("format") != format:
        raise CheckpointError(
            f'{folder} is not a directory of format {format}: its {CONFIG_FILE} lacks "format": "{format}"'
        )
    version = values.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {version}; this release reads 1 to {FORMAT_VERSION}")
    expected = {**COMMON, **further}
    for key, kind in expected.items():
        if not isinstance(values.get(key), kind):
            raise CheckpointError(f"{path}: {key!r} is missing, or is not {'text' if kind is str else 'an object'}")
    if unknown := {*values} - {*expected}:
        raise CheckpointError(f"{path} has unknown keys: {', '.join(sorted(unknown))}")
    for key in ("about", "digests"):
        for entry, value in values[key].items():
            if not isinstance(value, str):
                raise CheckpointError(f"{path}: {key} has {value!r} for {entry!r}; it must be text")
    check_digests(folder, values["digests"])
    return values


def _parsed(folder: Path, kind: type[Settings], values: dict[str, Any]) -> Settings:
    try:
        return kind.from_dict(values)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error


def _check_fit(folder: Path, tokenizer: PromptTokenizer, config: ClipConfig) -> None:
    """Check that vocabulary and length of the text tokenizer are those of the text encoder."""
    text = config.text
    if tokenizer.vocab_size > text.vocab_size or tokenizer.text_length != text.text_length:
        raise CheckpointError(
            f"{folder}: the text tokenizer has {tokenizer.vocab_size} ids and rows of {tokenizer.text_length}; the "
            f"text encoder has {text.vocab_size} and {text.text_length}: they belong to different models"
        )
