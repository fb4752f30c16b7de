"""What a family of foreign checkpoints is: how it is recognised, and what converting one gives.

A family is one file of this package, with one `Family` in it. It sees the files through a `Source`, which reads them
without running anything and remembers which were read, and gives a `Converted`: for each network our configuration and
the weights under our names, read when they are written.
"""

import copy
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from torch import nn

from dalle.checkpoint.weights import LazyTensor, Part, read_safetensors
from dalle.config import Config
from dalle.decoder.sampling import SamplingParams
from dalle.errors import CheckpointError
from dalle.interop.torch_files import StrangeFileError, looks_saved, read_torch
from dalle.text.tokenizer import PromptTokenizer

__all__ = ["Converted", "Family", "Source", "agree", "fit", "state_dict", "take", "unwrapped"]

MAX_TEXT_BYTES = 64 << 20
"""Of a configuration or a vocabulary."""
MAX_DEPTH = 3
"""Of folders below the one that was given."""
WRAPPERS = ("module.", "_orig_mod.", "module.")
"""What torch puts before names: for training on several devices and for compiling, in either order."""


class Source:
    """The file or folder given to `dalle import`, and what was read of it.

    Raises `CheckpointError` if it is not there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise CheckpointError(f"{path} is not there; expected a checkpoint's file or folder")
        try:
            self.files = [self.path] if self.path.is_file() else sorted(_files_below(self.path, MAX_DEPTH))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        self._contents: dict[Path, Any] = {}
        self._strange: list[StrangeFileError] | None = None
        """Of files that are of something else, where such may lie."""

    @property
    def read(self) -> list[Path]:
        """The files that were read, in that order."""
        return list(self._contents)

    def find(self, *patterns: str) -> list[Path]:
        """The files whose names match one of the patterns, as `fnmatch` has them; of a pattern with a slash, the last
        folders count too."""
        return [path for path in self.files if any(path.match(pattern) for pattern in patterns)]

    def torch_files(self, *patterns: str) -> list[Path]:
        """What `find` finds; but a file that was itself given may have any name, if torch.save can have written it."""
        return [self.path] if self.files == [self.path] and looks_saved(self.path) else self.find(*patterns)

    def one(self, pattern: str, meaning: str) -> Path:
        """The one file that matches. Raises `CheckpointError`, saying what it would be, if there is none or several."""
        return self.only(self.find(pattern), pattern, meaning)

    def only(self, found: list[Path], pattern: str, meaning: str) -> Path:
        """The one file that was found in looking for `pattern`. Raises as `one` does."""
        if not found:
            raise CheckpointError(f"{self.path} has no {pattern}, which would be {meaning}")
        if len(found) > 1:
            names = ", ".join(map(str, found))
            raise CheckpointError(f"{self.path} has several files for {meaning}: {names}; give the path of one of them")
        return found[0]

    def nearest(self, find: Callable[["Source"], list[Path]], levels: int = 2) -> list[Path]:
        """What `find` finds among the files or, if that is nothing, in the nearest folder that has some: the one around
        the path or those above it, as many as `levels`, each with the folders in it. For what projects keep beside a
        checkpoint."""
        strange: list[StrangeFileError] = []
        for folder in (None, *self.path.resolve().parents[:levels]):
            place = self
            if folder is not None:
                place = copy.copy(self)  # which shares what has been read
                place.files = sorted(_files_below(folder, 1))
                place._strange = strange
            if found := find(place):
                return found
        if strange:
            raise CheckpointError(
                f"what {self.path} needs is not beside it, unless it is in a file that cannot be read: {strange[0]}"
            )
        return []

    def torch(self, path: Path) -> Any:
        """What torch.save wrote, as `read_torch` gives it; None for a file of something else, where such may
        lie."""
        return self._tried(path, read_torch)

    def tensors(self, path: Path) -> Any:
        """The same, or the tensors by name of a safetensors file."""
        return self._tried(path, _read_safetensors) if path.suffix == ".safetensors" else self.torch(path)

    def text(self, path: Path) -> str:
        return self.once(path, _read_text)

    def json(self, path: Path) -> dict[str, Any]:
        return self._mapping(path, json.loads)

    def yaml(self, path: Path) -> dict[str, Any]:
        return self._mapping(path, yaml.safe_load)

    def once(self, path: Path, read: Callable[[Path], Any]) -> Any:
        """What a reader gives for a file, which is read once and counted as read."""
        if path not in self._contents:
            self._contents[path] = read(path)
        return self._contents[path]

    def _tried(self, path: Path, read: Callable[[Path], Any]) -> Any:
        try:
            return self.once(path, read)
        except StrangeFileError as error:
            if self._strange is None:
                raise
            self._strange.append(error)
            return None

    def _mapping(self, path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
        try:
            content = parse(self.text(path))
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"{path} cannot be read: {reason}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} is no mapping of names to values")
        return content


@dataclasses.dataclass(frozen=True, kw_only=True)
class Converted:
    """What a checkpoint directory of ours is written from."""

    image_tokenizer: Part
    decoder: Part | None = None
    text_tokenizer: PromptTokenizer | None = None
    sampling: SamplingParams | None = None
    about: Mapping[str, str]
    """Free text by key; at least `licence`, of the weights if it is known."""
    ignored: tuple[str, ...] = ()
    """What was in the files and is not needed, in words."""
    derived: tuple[str, ...] = ()
    """What is not in the files and was concluded from them, in words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A project whose checkpoints can be read."""

    name: str
    """As in `--family`."""
    expects: str
    """The files of a checkpoint, for whoever has given the wrong ones."""
    recognise: Callable[[Source], str | None]
    """Why a source is of this family, or None. Looks at names of files, configurations and names of tensors only."""
    convert: Callable[[Source], Converted]
    """Raises `CheckpointError`, naming the file and what was expected, if the source cannot be converted."""


def state_dict(path: Path, content: Any, *keys: str) -> dict[str, LazyTensor]:
    """The tensors by name that a torch file holds, under the first of these keys that it has; without keys, or where a
    file has weights and nothing around them, as a whole.

    Whatever is no tensor is left out. Raises `CheckpointError` if there are none.
    """
    for key in keys:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    else:
        bare = isinstance(content, dict) and any(isinstance(value, LazyTensor) for value in content.values())
        if keys and not bare:
            raise CheckpointError(f"{path} has no {' or '.join(map(repr, keys))} with weights")
    weights = unwrapped({name: value for name, value in content.items() if isinstance(value, LazyTensor)})
    if not weights:
        raise CheckpointError(f"{path} has no weights")
    return weights


def unwrapped(weights: Mapping[str, Any]) -> dict[str, Any]:
    """What has names, without the `WRAPPERS` that stand before all of them."""
    for wrapper in WRAPPERS:
        if all(isinstance(name, str) and name.startswith(wrapper) for name in weights):
            weights = {name.removeprefix(wrapper): value for name, value in weights.items()}
    return dict(weights)


def fit(
    path: Path,
    network_class: Callable[..., nn.Module],
    config: Config,
    weights: Mapping[str, LazyTensor],
    names: Mapping[str, str],
) -> Part:
    """Weights under foreign names as those of a network of ours; `names` leads from each of our names to theirs.

    Raises `CheckpointError` if one is missing, has another shape, or is left over: what is not needed has to be put
    aside knowingly before.
    """
    with torch.device("meta"):
        expected = network_class(config).state_dict()
    for ours, value in expected.items():
        theirs = names[ours]
        if theirs not in weights:
            raise CheckpointError(f"{path} lacks {theirs}, of shape {tuple(value.shape)}")
        if weights[theirs].shape != tuple(value.shape):
            raise CheckpointError(
                f"{path}: {theirs} has shape {weights[theirs].shape}; with the rest, expected {tuple(value.shape)}"
            )
    if left_over := sorted({*weights} - {names[ours] for ours in expected}):
        raise CheckpointError(f"{path} has {left_over[0]}, which no {network_class.__name__} has a place for")
    found = {ours: weights[names[ours]] for ours in expected}
    return Part(config=config, weights={ours: _at_most_float32(tensor) for ours, tensor in found.items()})


def _at_most_float32(tensor: LazyTensor) -> LazyTensor:
    return tensor.then(lambda t: t.float()) if tensor.dtype == torch.float64 else tensor


def agree(described: Path, facts: Mapping[str, tuple[Any, Any]], weights: Path) -> None:
    """Compare what a file says of a network, unless that is None, with what its weights are: facts are names -> (said,
    found). Raises `CheckpointError` for the first that differ."""
    for name, (said, found) in facts.items():
        if said is not None and said != found:
            raise CheckpointError(f"{described} says {name} {said}; the weights of {weights} have {found}")


def take(weights: Mapping[str, LazyTensor], prefix: str) -> dict[str, LazyTensor]:
    """The weights whose names have the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _files_below(folder: Path, depth: int) -> Iterable[Path]:
    for path in folder.iterdir():
        if path.is_file():
            yield path
        elif path.is_dir() and depth and not path.is_symlink():
            yield from _files_below(path, depth - 1)


def _read_safetensors(path: Path) -> dict[str, LazyTensor]:
    try:
        return read_safetensors(path)
    except KeyError as error:
        raise StrangeFileError(f"{path} has numbers of type {error}, which no known family has") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no safetensors file, or not a whole one: {error}") from error


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise CheckpointError(f"{path} has more than {MAX_TEXT_BYTES >> 20} MB, which is no configuration")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no text: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
