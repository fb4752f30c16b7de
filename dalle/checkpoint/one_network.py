"""Directories with one network, in formats of their own: CLIP models, classifiers, translators. They are saved and
loaded as strictly as a model directory.

    config.json       format, name, notes, sizes of the network, further keys of the format, digests of the other files
    tokenizer.json    the text tokenizer, in formats that have one
    NAME.safetensors  the weights
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from dalle.checkpoint.files import check_digests, check_replaceable, digests_of, file_digest, finish_files, listed
from dalle.checkpoint.int8 import to_int8
from dalle.checkpoint.model_config import CONFIG_FILE
from dalle.checkpoint.parts import empty_network, stored_names, with_weights
from dalle.checkpoint.weights import LazyTensor, write_safetensors
from dalle.config import Config
from dalle.errors import CheckpointError, ConfigError
from dalle.files import atomic_folder
from dalle.installed import PACKAGED

__all__ = ["DirectoryFormat", "find_directory", "parsed"]

Settings = TypeVar("Settings", bound=Config)
Network = TypeVar("Network", bound=nn.Module)

COMMON = {"format": str, "format_version": int, "name": str, "about": dict, "network": dict, "digests": dict}
"""Keys of every `config.json`, and the type of their values."""
TYPES = {str: "text", int: "a number", dict: "an object", list: "a list"}


def find_directory(name: str | Path, folder: str, what: str) -> Path:
    """The directory of this path, or of this name: those in `models/FOLDER` of this package, and in `FOLDER` of the one
    that DALLE_MODELS names. Raises `CheckpointError`, listing the known names; `what` is what it is of."""
    folders = [PACKAGED / folder]
    if os.environ.get("DALLE_MODELS"):
        folders.append(Path(os.environ["DALLE_MODELS"]) / folder)
    known = {path.parent.name: path.parent for folder in folders for path in sorted(folder.glob("*/config.json"))}
    if str(name) in known:
        return known[str(name)]
    if Path(name).is_dir():
        return Path(name)
    names = ", ".join(known) or "none"
    raise CheckpointError(f"there is no {what} {str(name)!r}: neither a directory nor one of: {names}")


def parsed(folder: Path, kind: type[Settings], values: dict[str, Any]) -> Settings:
    """Settings in a directory's `config.json`. Raises `CheckpointError` if they are unknown or contradictory."""
    try:
        return kind.from_dict(values)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectoryFormat:
    """A format of directories with one network."""

    name: str
    """Value of the key `format`."""
    version: int
    """Newest version that is read, and the one that is written."""
    weights_file: str
    further: Mapping[str, type]
    """Keys of `config.json` beyond the common ones, and the type of their values."""
    foreign_file: str | None = None
    """A file by which another project's directory is known that `dalle import` reads."""

    def save(
        self,
        folder: Path,
        *,
        name: str,
        network: nn.Module,
        config: Config,
        about: Mapping[str, str] | None,
        dtype: torch.dtype,
        write: Callable[[Path], dict[str, Any]],
        overwrite: bool,
        sources: Iterable[Path],
    ) -> str:
        """Write a directory, whole or not at all: what `write` writes and returns further keys of `config.json` for,
        the weights in a type, and `config.json`. Returns its digest. Raises `CannotWriteError` as `write_checkpoint`
        does.
        """
        may_replace = functools.partial(
            check_replaceable, folder, overwrite=overwrite, sources=[*sources], format=self.name
        )
        may_replace()
        with atomic_folder(folder, check=lambda place: may_replace(moved=place)) as files:
            further = write(files)
            write_safetensors(files / self.weights_file, _stored(network, dtype))
            values = {
                "format": self.name,
                "format_version": self.version,
                "name": name,
                "about": dict(about or {}),
                "network": config.to_dict(),
                **further,
                "digests": digests_of(files),
            }
            (files / CONFIG_FILE).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            finish_files(files)
        return file_digest(folder / CONFIG_FILE)

    def read(self, folder: Path) -> dict[str, Any]:
        """The content of `config.json`, its keys and their types checked, and the digests of the files it lists.

        Raises `CheckpointError`, naming the file and what was expected.
        """
        path = folder / CONFIG_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            is_foreign = self.foreign_file is not None and (folder / self.foreign_file).exists()
            hint = "; `dalle import` makes one of it" if is_foreign else ""
            message = f"{folder} has no {CONFIG_FILE}: it is not a directory of format {self.name}{hint}"
            raise CheckpointError(message) from None
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if not isinstance(values, dict) or values.get("format") != self.name:
            raise CheckpointError(
                f'{folder} is not a directory of format {self.name}: its {CONFIG_FILE} lacks "format": "{self.name}"'
            )
        version = values.get("format_version")
        if type(version) is not int or not 1 <= version <= self.version:
            raise CheckpointError(f"{path} has format version {version}; this release reads 1 to {self.version}")
        expected = {**COMMON, **self.further}
        for key, kind in expected.items():
            if not isinstance(values.get(key), kind):
                raise CheckpointError(f"{path}: {key!r} is missing, or is not {TYPES[kind]}")
        if unknown := {*values} - {*expected}:
            raise CheckpointError(f"{path} has unknown keys: {', '.join(sorted(unknown))}")
        for key in ("about", "digests"):
            for entry, value in values[key].items():
                if not isinstance(value, str):
                    raise CheckpointError(f"{path}: {key} has {value!r} for {entry!r}; it must be text")
        check_digests(folder, values["digests"])
        return values

    def network(self, folder: Path, values: Mapping[str, Any], build: Callable[[], Network]) -> Network:
        """The network that `build` makes, with the weights of a directory: float32, on the CPU, in evaluation mode."""
        path = listed(folder, values["digests"], self.weights_file)
        return with_weights(empty_network(path, build), path)


def _stored(network: nn.Module, dtype: torch.dtype) -> dict[str, LazyTensor]:
    """The weights in a type, as `to_int8` stores them in int8; one that parts share is there once."""
    values, names = network.state_dict(), stored_names(network)
    weights = {key: LazyTensor.of(value) for key, value in values.items() if names[key] == key}
    if dtype == torch.int8:
        return to_int8(weights)
    return {key: value.then(lambda t: t.to(dtype)) for key, value in weights.items()}
