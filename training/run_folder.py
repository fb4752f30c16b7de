"""A run folder: the configuration of a run, and its whole state, which is replaced atomically.

    config.json         the configuration; a run with another configuration is refused
    inputs.json         digests of tokenizers and numbers of pairs; a run with others is refused
    state.safetensors   every tensor of modules and optimizers; `stamp`, JSON with seed, version of the code and
                        inputs; in its header, the number of steps done
    state-*.safetensors the rest of it, if it is divided over processes (see `state_files`)
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
from torch import Tensor, nn

from dalle.errors import DataError
from dalle.files import atomic_write, check_claimed, names_in
from training.provenance import check_stamp
from training.state_files import STATE_FILES, SavedTensors, read_tensors, write_tensors

__all__ = ["Parts", "claim_folder", "claimed", "locked", "restore_state", "save_state", "saved_step"]

Parts = Mapping[str, nn.Module | torch.optim.Optimizer]
"""Modules and optimizers that change from step to step, by name."""

STATE_FILE = "state.safetensors"
CONFIG_FILE = "config.json"
INPUTS_FILE = "inputs.json"
STAMP = "stamp"
"""The tensor with the JSON of where a run comes from."""
LOCK_FILE = ".lock"
FOLDERS = ("tensorboard", "model", "healthy", "best")
NEW_PARTS = {"gate"}
"""Parts that the state of a run of an earlier version may lack."""
FREE_FIELDS = {"export_minutes", "log", "shard", "whole_gradients"}
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
    check_claimed(folder, names_in(folder), CONFIG_FILE, (INPUTS_FILE, STATE_FILE, STATE_FILES, *FOLDERS, *names))
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder / CONFIG_FILE, config, defaults)
    _claim(folder / INPUTS_FILE, inputs, inputs)  # an earlier version of the program may have had fewer of them


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


def save_state(parts: Parts, step: int, folder: Path, stamp: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write the tensors of the parts and the number of steps done. Replaces the state that was saved before,
    atomically. Called in all processes, of which each writes what it alone holds.

    stamp: where the run comes from (see `training.provenance`).
    """
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            # a weight that two modules share is saved twice
            seen: set[int] = set()
            for key, value in part.state_dict().items():
                tensors[f"{name}/{key}"] = value.clone() if value.data_ptr() in seen else value
                seen.add(value.data_ptr())
        else:
            for index, values in part.state_dict()["state"].items():
                tensors |= {f"{name}/{index}/{key}": value for key, value in values.items()}
    if stamp:  # a tensor, since a header of several fields has them in any order
        tensors[STAMP] = torch.frombuffer(bytearray(json.dumps(dict(stamp)).encode()), dtype=torch.uint8)
    write_tensors(folder / STATE_FILE, tensors, step)


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


def restore_state(parts: Parts, folder: Path, stamp: Mapping[str, str] = MappingProxyType({})) -> int:
    """Load the saved state into the parts. Returns the number of steps done; 0 if no state was saved.

    Raises `DataError` for a damaged file, and for one with another stamp than this.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return 0
    try:
        with read_tensors(path) as saved:
            if STAMP in saved.names:
                check_stamp(json.loads(bytes(saved.whole(STAMP).tolist())), stamp, path)
            for name, part in parts.items():
                _restore(name, part, saved)
            return saved.step
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _restore(name: str, part: nn.Module | torch.optim.Optimizer, saved: SavedTensors) -> None:
    keys = [key[len(name) + 1 :] for key in saved.names if key.startswith(name + "/")]
    if name in NEW_PARTS and not keys:
        return
    if isinstance(part, nn.Module):
        held = part.state_dict()
        part.load_state_dict({key: saved.like(f"{name}/{key}", held.get(key)) for key in keys})
        return
    parameters = [p for group in part.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key in keys:
        index, kind = key.split("/")
        state.setdefault(int(index), {})[kind] = saved.like(f"{name}/{key}", parameters[int(index)])
    part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read: {error}; remove it to start the run from the beginning")
