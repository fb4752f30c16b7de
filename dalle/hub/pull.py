"""`pull`: a repository of a hub as a model directory on this machine, whole or not at all.

A model directory of this library is fetched as it is. Another project's checkpoint is fetched and then converted by
the caller, who is the command: loading a model never reads foreign files.
"""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dalle.checkpoint import check_checkpoint
from dalle.checkpoint.files import check_replaceable, finish_files
from dalle.checkpoint.model_config import CONFIG_FILE, FORMAT, ModelConfig
from dalle.checkpoint.pulled import PREFIX, Reference, find_pulled, is_reference, remember_commit, repository
from dalle.checkpoint.store import find_model
from dalle.errors import CheckpointError, DalleError, HubError
from dalle.files import atomic_folder
from dalle.hub.choose import MAX_TEXT_BYTES, foreign_files, own_files
from dalle.hub.client import hub_errors, open_hub
from dalle.hub.download import RemoteFile, Snapshot, check_room, fetch, megabytes, read_snapshot

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Convert", "Pulled", "model_folder", "pull"]

Convert = Callable[[Path, Path, str], None]
"""Converts a folder of another project's files to a model directory in an empty folder; the text is their source."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pulled:
    """The result of a pull."""

    folder: Path
    """The model directory."""
    commit: str
    is_new: bool
    """False if this commit was on this machine already."""


def model_folder(model: str | Path) -> Path:
    """The directory of a model by name or path, as `find_model` finds it; a repository that is not on this machine is
    pulled first.

    Raises `CheckpointError`, `HubError` and `CannotWriteError` as both do.
    """
    if is_reference(model) and find_pulled(reference := Reference.parse(str(model))) is None:
        return pull(reference).folder
    return find_model(model)


def pull(
    reference: Reference,
    *,
    convert: Convert | None = None,
    include: Sequence[str] = (),
    pickles: bool = False,
    again: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> Pulled:
    """Fetch a repository at its revision's present commit, and make it a model of this machine.

    convert: reads another project's checkpoint; None rejects it.
    include, pickles: the files of another project that are fetched (see `foreign_files`).
    again: convert a checkpoint again that is on this machine already.
    report: called with a line about what is about to be fetched.

    A failed pull leaves the models as they were, and what it has fetched for the next one. Raises `HubError`,
    `CheckpointError` or `CannotWriteError`.
    """
    api = open_hub()
    place = repository(reference)
    downloads = place / "downloads"
    with _kept(downloads), hub_errors(reference):
        snapshot = read_snapshot(api, reference)
        folder = place / snapshot.commit
        with _alone(place):
            is_new = not (folder / CONFIG_FILE).is_file()
            if is_new or again:
                files = _own_files(api, snapshot, downloads)
                is_own = files is not None
                if files is None:
                    if convert is None:
                        raise HubError(
                            f"{reference} is not a model of this library: `dalle pull {reference}` converts those of "
                            "some other projects"
                        )
                    files = foreign_files(snapshot, include=include, pickles=pickles)
                elif include or pickles or again:
                    raise HubError(f"{reference} is a model of this library: options for other projects do not apply")
                size = megabytes(sum(file.size for file in files))
                report(f"{reference} at {snapshot.commit[:12]}: {len(files)} files, {size}")
                check_room(files, downloads)
                with (
                    _fetched(api, snapshot, files, downloads) as source,
                    atomic_folder(folder, check=functools.partial(_check_ours, folder)) as model,
                    _naming(reference, model),
                ):
                    if is_own or convert is None:
                        _link({path.name: path for path in source.iterdir()}, model)
                        check_checkpoint(model)
                        finish_files(model)
                    else:
                        convert(source, model, f"{PREFIX}{reference.repo_id}@{snapshot.commit}")
                shutil.rmtree(downloads, ignore_errors=True)
            remember_commit(reference, snapshot.commit)
    return Pulled(folder=folder, commit=snapshot.commit, is_new=is_new)


def _check_ours(folder: Path, moved: Path) -> None:
    check_replaceable(folder, overwrite=True, moved=moved)


def _own_files(api: "HfApi", snapshot: Snapshot, downloads: Path) -> list[RemoteFile] | None:
    """The files of a model directory, or None for a repository of another project. Only `config.json` is fetched."""
    file = snapshot.find(CONFIG_FILE)
    if file is None or file.size > MAX_TEXT_BYTES:
        return None
    with _fetched(api, snapshot, [file], downloads) as folder:
        try:
            values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            return None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            return None
        return own_files(snapshot, ModelConfig.read(folder).digests)


@contextlib.contextmanager
def _fetched(api: "HfApi", snapshot: Snapshot, files: Sequence[RemoteFile], downloads: Path) -> Iterator[Path]:
    """A temporary folder of fetched files under their own names."""
    paths = {file.path: fetch(api, snapshot, file, downloads) for file in files}
    with tempfile.TemporaryDirectory(prefix="files-", dir=downloads) as temporary:
        folder = Path(temporary)
        _link(paths, folder)
        with _naming(snapshot.reference, folder):
            yield folder


@contextlib.contextmanager
def _naming(reference: Reference, folder: Path) -> Iterator[None]:
    """Name the repository instead of a temporary folder in errors of the body."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(folder), str(reference))) from error


def _link(paths: dict[str, Path], folder: Path) -> None:
    """Give files other names in a folder, without a copy where the file system can."""
    for name, path in paths.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Let one process at a time pull a repository; others wait."""
    from huggingface_hub.utils import WeakFileLock

    place.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(place / "lock"):
        yield


@contextlib.contextmanager
def _kept(downloads: Path) -> Iterator[None]:
    """Say in errors of the body that what was fetched is kept, if anything was."""
    try:
        yield
    except DalleError as error:
        if size := sum(path.stat().st_size for path in downloads.glob("*") if path.is_file()):
            text = f"{error}. {megabytes(size)} that were fetched are kept in {downloads}, and the next pull uses them"
            raise type(error)(text) from error
        raise
