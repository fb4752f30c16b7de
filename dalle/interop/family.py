"""`Family`, a project whose checkpoints can be imported; `Source`, the files given; `Converted`, the result.

Each family is one file of this package with one `Family` in it. It reads files through a `Source`, which runs no code
from them and records which were read, and returns a `Converted`: for each network our configuration and its weights
under our names, which are loaded only when they are written.
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
from dalle.interop.torch_files import UnknownFileError, looks_saved, read_torch
from dalle.text.tokenizer import PromptTokenizer

__all__ = [
    "Converted",
    "Family",
    "PointerError",
    "Source",
    "agree",
    "check_biases",
    "fit",
    "numbers",
    "state_dict",
    "take",
    "unwrapped",
]

MAX_TEXT_BYTES = 64 << 20
"""Largest size of a configuration or a vocabulary."""
MAX_DEPTH = 3
"""Levels of folders that are searched below the given one."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
WRAPPERS = ("module.", "_orig_mod.", "module.")
"""Prefixes that torch adds to names in training on several devices and in compiling, in either order."""


class PointerError(UnknownFileError):
    """The file is a pointer of Git LFS."""


class Source:
    """The file or folder given to `dalle import`, with a cache of the contents that were read.

    Raises `CheckpointError` if the path does not exist or cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise CheckpointError(f"{path} does not exist; expected a checkpoint's file or folder")
        if not (self.path.is_file() or self.path.is_dir()):
            raise CheckpointError(f"{path} is a device, a pipe or a socket; expected a checkpoint's file or folder")
        self.irregular: list[Path] = []
        """What was found beside the files and is neither file nor folder, such as a link to nothing."""
        try:
            if self.path.is_file():
                self.path.open("rb").close()
                self.files = [self.path]
            else:
                self.files = sorted(_files_below(self.path, MAX_DEPTH, self.irregular))
        except OSError as error:
            raise CheckpointError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
        self.unreadable: dict[Path, CheckpointError] = {}
        """Errors of configurations that could not be parsed, which may be unrelated."""
        self._contents: dict[Path, Any] = {}
        self._skipped: list[UnknownFileError] | None = None
        """Errors of files that are not checkpoints, in a folder where such files are skipped; None raises them."""

    @property
    def read(self) -> list[Path]:
        """The files that were read, in the order of reading."""
        return list(self._contents)

    def find(self, *patterns: str) -> list[Path]:
        """The files whose names match one of the glob patterns; a pattern with a slash is matched against the last
        folders of the path too."""
        return [path for path in self.files if any(path.match(pattern) for pattern in patterns)]

    def torch_files(self, *patterns: str) -> list[Path]:
        """The files that `find` returns or, if the path is a file that torch.save may have written, that file under any
        name."""
        return [self.path] if self.files == [self.path] and looks_saved(self.path) else self.find(*patterns)

    def one(self, pattern: str, meaning: str) -> Path:
        """The one file that matches. Raises `CheckpointError`, with the `meaning`, if none or several match."""
        return self.only(self.find(pattern), pattern, meaning)

    def only(self, found: list[Path], pattern: str, meaning: str) -> Path:
        """The one file in `found`, the result of a search for `pattern`. Raises `CheckpointError` as `one` does."""
        if not found:
            for path in self.irregular:
                if path.match(pattern):
                    raise CheckpointError(f"{path} is not a file, but a device, a pipe or a link to nothing")
            raise CheckpointError(f"{self.path} has no {pattern} ({meaning})")
        if len(found) > 1:
            names = ", ".join(map(str, found))
            raise CheckpointError(f"{self.path} has several files for {meaning}: {names}; give the path of one of them")
        return found[0]

    def nearest(self, find: Callable[["Source"], list[Path]], levels: int = 2) -> list[Path]:
        """Files that a project keeps beside a checkpoint: the result of `find` on this source or, if that is empty, on
        the nearest folder above the path where it is not, up to `levels` of them, each with its subfolders."""
        skipped: list[UnknownFileError] = []
        for folder in (None, *self.path.resolve().parents[:levels]):
            place = self
            if folder is not None:
                place = copy.copy(self)  # shares the cache of contents
                place.files = sorted(_files_below(folder, 1, self.irregular))
                place._skipped = skipped
            if found := find(place):
                return found
        if skipped:
            raise CheckpointError(
                f"a file that {self.path} needs is not beside it, unless it is one that cannot be read: {skipped[0]}"
            )
        return []

    def torch(self, path: Path) -> Any:
        """The content of a file of torch.save, as `read_torch` returns it; None for a file of another kind that may be
        skipped."""
        return self._read_or_skip(path, read_torch)

    def tensors(self, path: Path) -> Any:
        """The tensors by name of a safetensors file; the content of any other file as `torch` returns it."""
        return self._read_or_skip(path, _read_safetensors) if path.suffix == ".safetensors" else self.torch(path)

    def text(self, path: Path) -> str:
        return self.once(path, _read_text)

    def json(self, path: Path) -> dict[str, Any]:
        return self._mapping(path, json.loads)

    def yaml(self, path: Path) -> dict[str, Any]:
        return self._mapping(path, yaml.safe_load)

    def once(self, path: Path, read: Callable[[Path], Any]) -> Any:
        """The result of `read` for a file, called once and cached; the file is recorded as read."""
        if path not in self._contents:
            _check_no_pointer(path)
            self._contents[path] = read(path)
        return self._contents[path]

    def _read_or_skip(self, path: Path, read: Callable[[Path], Any]) -> Any:
        try:
            return self.once(path, read)
        except UnknownFileError as error:
            if self._skipped is None:
                raise
            self._skipped.append(error)
            return None

    def _mapping(self, path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
        try:
            content = parse(self.text(path))
            if not isinstance(content, dict):
                raise CheckpointError(f"{path} is not a mapping of names to values")
        except CheckpointError as error:
            self.unreadable[path] = error
            raise
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            reason = str(error).partition("\n")[0]
            if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
                reason = f"line {error.problem_mark.line + 1}: {error.problem}"
            self.unreadable[path] = CheckpointError(f"{path} cannot be read: {reason}")
            raise self.unreadable[path] from error
        return content


@dataclasses.dataclass(frozen=True, kw_only=True)
class Converted:
    """A converted checkpoint: the parts of a model directory, and notes about the conversion."""

    image_tokenizer: Part
    decoder: Part | None = None
    text_tokenizer: PromptTokenizer | None = None
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    """The file that each of these three comes from, by the name of its field, in a checkpoint with a decoder."""
    sampling: SamplingParams | None = None
    about: Mapping[str, str]
    """Free text by key; at least `licence`, that of the weights if it is known."""
    ignored: tuple[str, ...] = ()
    """Descriptions of what the files contain and a model directory does not need."""
    derived: tuple[str, ...] = ()
    """Descriptions of values that are not in the files and were inferred or assumed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A project whose checkpoints can be imported."""

    name: str
    """The name that `--family` takes."""
    expects: str
    """Description of a checkpoint's files, for error messages."""
    recognise: Callable[[Source], str | None]
    """Returns why a source is recognised as this family, or None. It reads names of files and of tensors, and
    configurations only."""
    lacks: Callable[[Source], str | None] = lambda _: None
    """Returns what a source that no family recognises lacks to be one of this family, or None."""
    convert: Callable[[Source], Converted]
    """Converts a source. Raises `CheckpointError`, which names the file and what was expected, if that fails."""


def state_dict(path: Path, content: Any, *keys: str) -> dict[str, LazyTensor]:
    """The tensors by name in the content of a torch file: under the first of the `keys` that it has or, without keys or
    in a file of bare weights, at the top.

    Values that are not tensors are left out. Raises `CheckpointError` if there are no tensors.
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
    """The weights without those `WRAPPERS` that all their names begin with."""
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
    """A network of ours as its configuration and weights, from weights under foreign names; `names` maps our names to
    theirs.

    Raises `CheckpointError` if a weight is missing, has another shape, or is left over: callers remove the weights that
    are not needed first.
    """
    with torch.device("meta"):
        expected = network_class(config).state_dict()
    for ours, value in expected.items():
        theirs = names[ours]
        if theirs not in weights:
            raise CheckpointError(f"{path} lacks {theirs}, of shape {tuple(value.shape)}")
        if weights[theirs].shape != tuple(value.shape):
            raise CheckpointError(
                f"{path}: {theirs} has shape {weights[theirs].shape}; the others imply {tuple(value.shape)}"
            )
    if left_over := sorted({*weights} - {names[ours] for ours in expected}):
        raise CheckpointError(f"{path} has {left_over[0]}, which no {network_class.__name__} has a place for")
    found = {ours: (names[ours], weights[names[ours]]) for ours in expected}
    return Part(config=config, weights={ours: numbers(path, *weight) for ours, weight in found.items()})


def check_biases(path: Path, weights: Mapping[str, LazyTensor]) -> None:
    """Check that the weight of every layer has as many rows as its bias, before sizes are read from one of them.

    Raises `CheckpointError` for the first that has not. Transposed convolutions have other axes.
    """
    for name, bias in weights.items():
        weight = weights.get(name.removesuffix("bias") + "weight") if name.endswith(".bias") else None
        if weight is not None and len(weight.shape) > 1 and weight.shape[:1] != bias.shape:
            found, expected = name.removesuffix("bias") + "weight", ", ".join(map(str, bias.shape))
            raise CheckpointError(f"{path}: {found} has shape {weight.shape}; its bias implies ({expected}, ...)")


def numbers(path: Path, name: str, tensor: LazyTensor) -> LazyTensor:
    """A weight that is checked when it is loaded: its numbers must be finite. Numbers in float64 become float32.

    Raises `CheckpointError`, now or on loading, with the file and the weight's name there.
    """
    if not tensor.dtype.is_floating_point:
        raise CheckpointError(f"{path}: {name} has numbers of type {_type(tensor.dtype)}; weights are floating-point")
    if tensor.dtype == torch.float64:
        tensor = tensor.then(lambda t: t.float())

    def load() -> torch.Tensor:
        found = tensor.load()
        # least and largest number are NaN if any number is; unlike isfinite, this needs no memory
        if found.numel() and not torch.stack(found.aminmax()).isfinite().all():
            raise CheckpointError(f"{path}: {name} has numbers that are NaN or infinite: the file is damaged")
        return found

    return LazyTensor(tensor.shape, tensor.dtype, load)


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def agree(described: Path, facts: Mapping[str, tuple[Any, Any]], weights: Path) -> None:
    """Check that a configuration file agrees with the weights: `facts` maps names to (described, found), where a
    described value of None is not compared. Raises `CheckpointError` for the first that differ."""
    for name, (said, found) in facts.items():
        if said is not None and said != found:
            raise CheckpointError(f"{described} says {name} {said}; the weights of {weights} have {found}")


def take(weights: Mapping[str, LazyTensor], prefix: str) -> dict[str, LazyTensor]:
    """The weights whose names have the prefix, under their names without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _files_below(folder: Path, depth: int, irregular: list[Path]) -> Iterable[Path]:
    for path in folder.iterdir():
        if path.is_file():
            yield path
        elif not path.is_dir():
            irregular.append(path)
        elif depth and not path.is_symlink():
            yield from _files_below(path, depth - 1, irregular)


def _check_no_pointer(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if start == LFS_POINTER:
        raise PointerError(
            f"{path} is a pointer of Git LFS instead of the file itself: run `git lfs pull` there, or download the file"
        )


def _read_safetensors(path: Path) -> dict[str, LazyTensor]:
    try:
        return read_safetensors(path)
    except TypeError as error:
        raise UnknownFileError(f"{path}: {error}, which no known family uses") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file, or an incomplete one: {error}") from error


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise CheckpointError(f"{path} has more than {MAX_TEXT_BYTES >> 20} MB, too much for a configuration")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not a text file: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
