"""A run folder: the configuration of a run, and its whole state in one file that is replaced atomically.

    config.json         the configuration; a run with another configuration is refused
    inputs.json         digests of tokenizers and numbers of pairs; a run with others is refused
    state.safetensors   every tensor of modules and optimizers; in its header, the number of steps done
    tensorboard/        scalars and pictures
    model/              the trained model, written at the end of the run
    healthy/, best/     the model that stage 1 or 2 keeps beside it (see `gates`)

Nothing else needs saving: every random number of a step is a function of (seed, step).
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dalle.errors import DataError
from dalle.files import atomic_file, atomic_write, check_claimed, names_in

__all__ = ["Parts", "claim_folder", "claimed", "locked", "restore_state", "save_state", "saved_step"]

Parts = Mapping[str, nn.Module | torch.optim.Optimizer]
"""Modules and optimizers that change from step to step, by name."""

STATE_FILE = "state.safetensors"
CONFIG_FILE = "config.json"
INPUTS_FILE = "inputs.json"
LOCK_FILE = ".lock"
FOLDERS = ("tensorboard", "model", "healthy", "best")
NEW_PARTS = {"gate"}
"""Parts that the state of a run of an earlier version may lack."""
FREE_FIELDS = {"export_minutes"}
"""Fields of a configuration that may change when a run is resumed, as they do not affect the training."""


def claim_folder(
    folder: Path,
    config: Mapping[str, Any],
    inputs: Mapping[str, Any],
    *,
    names: Sequence[str] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Make the run folder, and write the configuration of the run and the digests and sizes of its inputs into it.

    names: files and folders that the run writes there besides those of this module. defaults: values of fields that an
        earlier version of the program may not have written into the configuration.

    Raises `CannotWriteError` if the folder has files of these names that no run has written; `DataError` if it holds a
    run with another configuration or other inputs, or if its files cannot be read.
    """
    check_claimed(folder, names_in(folder), CONFIG_FILE, (INPUTS_FILE, STATE_FILE, *FOLDERS, *names))
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder / CONFIG_FILE, config, defaults)
    _claim(folder / INPUTS_FILE, inputs)


@contextmanager
def claimed(folder: Path, config: Mapping[str, Any], names: Sequence[str]) -> Iterator[None]:
    """Claim a folder, as `claim_folder` does, while the body prepares a run in it. If the body raises `DataError`, a
    folder that was new is released again."""
    is_new = not (folder / CONFIG_FILE).exists()
    claim_folder(folder, config, {}, names=names)
    try:
        yield
    except DataError:
        if is_new:
            for name in (CONFIG_FILE, INPUTS_FILE):
                (folder / name).unlink()
        raise


def _claim(path: Path, values: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})) -> None:
    if path.exists():
        try:
            before = _completed(json.loads(path.read_text()), defaults)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}; give another folder") from error
        different = [
            f"{key} = {old!r}, not {new!r}" for key, old, new in _differences(before, json.loads(json.dumps(values)))
        ]
        if different:
            raise DataError(
                f"{path.parent} holds a run with {'; '.join(different)}: resume it with the same values, or give "
                "another folder"
            )
    else:
        atomic_write(path, json.dumps(values, indent=2) + "\n")


def _completed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values, and the defaults of what they lack, in nested objects too."""
    completed = {**defaults, **values}
    for key, inner in defaults.items():
        if isinstance(inner, dict) and isinstance(values.get(key), dict):
            completed[key] = _completed(values[key], inner)
    return completed


def _differences(before: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Key, old and new value of each difference; keys of nested objects are joined by a dot."""
    for key in sorted({*before, *values} - FREE_FIELDS):
        old, new = before.get(key), values.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from ((f"{key}.{inner}", *both) for inner, *both in _differences(old, new))
        elif old != new:
            yield key, old, new


@contextmanager
def locked(folder: Path, *, keep: bool = True) -> Iterator[None]:
    """Lock a folder that a program writes to against a second process. The lock ends with the process, even if that is
    killed.

    keep: leave the lock's file in the folder, and not remove it at the end.
    Raises `DataError` if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    with open(path, "w") as file:
        try:
            # unlike flock, lockf is not shared with forked workers, which outlive a killed process by seconds
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                raise FileExistsError(path)  # the file was removed by a process that has just finished
        except OSError as error:
            raise DataError(f"{folder} is in use: another process writes to it; give another folder") from error
        try:
            yield
        finally:
            if not keep:
                path.unlink(missing_ok=True)


def save_state(parts: Parts, step: int, folder: Path) -> None:
    """Write the tensors of the parts and the number of steps done. Replaces the state that was saved before,
    atomically."""
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            tensors |= {f"{name}/{key}": value for key, value in part.state_dict().items()}
        else:
            for index, values in part.state_dict()["state"].items():
                tensors |= {f"{name}/{index}/{key}": value for key, value in values.items()}
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with atomic_file(folder / STATE_FILE, part=folder / f"{STATE_FILE}.part", fsync=True) as unfinished:
        save_file(contiguous, unfinished, {"step": str(step)})


def saved_step(folder: Path) -> int:
    """The number of steps done when the run was last saved; 0 if it never was. Raises `DataError` for a damaged
    file."""
    path = folder / STATE_FILE
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            return int(file.metadata()["step"])
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def restore_state(parts: Parts, folder: Path) -> int:
    """Load the saved state into the parts. Returns the number of steps done; 0 if no state was saved.

    Raises `DataError` for a damaged file.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            step = int(file.metadata()["step"])
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    for name, part in parts.items():
        own = {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(name + "/")}
        if name in NEW_PARTS and not own:
            continue
        if isinstance(part, nn.Module):
            part.load_state_dict(own)
        else:
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in own.items():
                index, kind = key.split("/")
                state.setdefault(int(index), {})[kind] = value
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
    return step


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read: {error}; remove it to start the run from the beginning")
