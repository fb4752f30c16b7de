"""`push`: a model directory to a repository of a hub, in one commit, with a model card.

Files of ours that are there are replaced; all others are left alone, and so is a repository with another model.
"""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dalle.checkpoint import check_checkpoint
from dalle.checkpoint.files import TOKENIZER_FILE, VOCABULARY_FILE
from dalle.checkpoint.model_config import CONFIG_FILE, FORMAT, ModelConfig
from dalle.checkpoint.pulled import MAIN, Reference
from dalle.checkpoint.store import find_model
from dalle.checkpoint.vocabulary import read_vocabulary
from dalle.errors import CheckpointError, HubError
from dalle.hub.card import CARD_FILE, card_of
from dalle.hub.choose import MAX_TEXT_BYTES
from dalle.hub.client import LOG_IN, hub_errors, open_hub
from dalle.hub.download import Snapshot, address, megabytes, read_snapshot

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Pushed", "push"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pushed:
    """The result of a push."""

    commit: str
    url: str
    """Page of the repository."""


def push(
    model: str | Path,
    reference: Reference,
    *,
    private: bool = False,
    message: str | None = None,
    figures: Path | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> Pushed:
    """Publish a model, by name or directory, on the main branch of a repository, which is created if it does not exist.

    private: whether a repository that is created is private.
    message: message of the commit.
    figures: a Markdown file with measurements, for the card.
    report: called with a line about what is about to be sent.

    The repository changes by one commit, or not at all. Raises `CheckpointError` for a damaged model, `HubError` for a
    repository that has another model, is not to be reached or not to be written to.
    """
    if reference.revision != MAIN:
        raise HubError(f"{reference} has a revision: a model is pushed to {MAIN}")
    folder = find_model(model)
    check_checkpoint(folder)
    names = [CONFIG_FILE, *ModelConfig.read(folder).digests]
    if read_vocabulary(folder) is not None:
        names.append(VOCABULARY_FILE)
    text = _read_figures(figures)
    api = open_hub()
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token
    from huggingface_hub.errors import HfHubHTTPError

    with hub_errors(reference):
        if get_token() is None:
            raise HubError(f"pushing to {api.endpoint} needs a token that may write: {LOG_IN}")
        snapshot = _opened(api, reference, private=private)
        replaced = _replaced(api, snapshot)
        before = _read(api, snapshot, CARD_FILE)
        card = card_of(folder, reference, before=(before or b"").decode("utf-8", "replace"), figures=text)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in names),
            CommitOperationAdd(path_in_repo=CARD_FILE, path_or_fileobj=card.encode()),
            *(CommitOperationDelete(path_in_repo=name) for name in sorted(replaced - {*names})),
        ]
        size = megabytes(sum((folder / name).stat().st_size for name in names))
        report(f"{folder} to {api.endpoint}/{reference.repo_id}: {len(names)} files and a card, {size}")
        try:
            done = api.create_commit(
                reference.repo_id,
                operations,
                commit_message=message or f"{ModelConfig.read(folder).name}, pushed by dalle push",
                parent_commit=snapshot.commit,
            )
        except HfHubHTTPError:
            raise
        except (RuntimeError, ValueError) as error:  # of an upload that failed, or metadata that the hub rejects
            if isinstance(error, RuntimeError) and isinstance(error.__cause__, OSError):
                raise error.__cause__ from error
            reason = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
            raise HubError(f"{reference} was not changed: {' '.join(str(reason).split())}") from error
    return Pushed(commit=str(done.oid), url=f"{api.endpoint}/{reference.repo_id}")


def _read_figures(path: Path | None) -> str:
    try:
        return "" if path is None else path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the figures in {path} cannot be read: {error}") from error


def _opened(api: "HfApi", reference: Reference, *, private: bool) -> Snapshot:
    """The repository as it is now, created if it did not exist."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return read_snapshot(api, reference)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        api.create_repo(reference.repo_id, private=private, exist_ok=True)
        return read_snapshot(api, reference)


def _replaced(api: "HfApi", snapshot: Snapshot) -> set[str]:
    """The files of a model of this library that the repository has; raises `HubError` if it has another model."""
    there = {file.path for file in snapshot.files}
    weights = {name for name in there if name in (CONFIG_FILE, TOKENIZER_FILE) or name.endswith(".safetensors")}
    if not weights:
        return set()
    try:
        values = json.loads(_read(api, snapshot, CONFIG_FILE) or b"")
        if values["format"] == FORMAT:
            return {CONFIG_FILE, VOCABULARY_FILE, *values["digests"]} & there
    except (KeyError, TypeError, ValueError, RecursionError):
        pass
    named = ", ".join(sorted(weights)[:5])
    raise HubError(
        f"{snapshot.reference} has a model that `dalle push` did not write ({named}); push to another repository"
    )


def _read(api: "HfApi", snapshot: Snapshot, path: str) -> bytes | None:
    """The content of a small file of a repository; None if there is no such file."""
    from huggingface_hub.file_download import http_get

    file = snapshot.find(path)
    if file is None or file.size > MAX_TEXT_BYTES:
        return None
    content = io.BytesIO()
    url, headers = address(api, snapshot, path)
    http_get(url, content, headers=headers, expected_size=file.size, displayed_filename=path)
    return content.getvalue()
