"""The files of a repository that a pull fetches: those of a model directory, or those that a known family may need."""

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from dalle.checkpoint.files import TOKENIZER_FILE, VOCABULARY_FILE
from dalle.checkpoint.model_config import CONFIG_FILE
from dalle.errors import HubError
from dalle.hub.download import RemoteFile, Snapshot

__all__ = ["MAX_TEXT_BYTES", "foreign_files", "own_files"]

WEIGHTS = ("*.safetensors", "*.msgpack")
PICKLES = ("*.pt", "*.pth", "*.ckpt", "*.bin", "*.pkl")
TEXTS = ("*.json", "*.yaml", "*.yml", "*.txt", "*.model")
"""Configurations and vocabularies of the known families."""
MAX_TEXT_BYTES = 64 << 20
MAX_DEPTH = 3
"""Levels of folders that `dalle import` searches."""
NUM_NAMED = 5
"""Number of files that an error names."""


def own_files(snapshot: Snapshot, digests: Mapping[str, str]) -> list[RemoteFile]:
    """The files of a model directory: `config.json`, and those whose SHA-256 it has in `digests`; and the
    vocabulary, if the repository has one.

    Raises `HubError`, before anything large is fetched, for a file that the repository lacks, has with another digest,
    or that a model directory cannot have.
    """
    files = []
    for name in (CONFIG_FILE, *digests):
        if name not in (CONFIG_FILE, TOKENIZER_FILE) and not (name.endswith(".safetensors") and "/" not in name):
            raise HubError(
                f"{CONFIG_FILE} of {snapshot.reference} lists {name!r}, which is no file of a model directory"
            )
        if (file := snapshot.find(name)) is None:
            raise HubError(f"{snapshot.reference} is not complete: it has no {name}, which {CONFIG_FILE} lists")
        if name in digests and file.sha256 not in (None, digests[name]):
            raise HubError(
                f"{name} of {snapshot.reference} is not of this model: its SHA-256 is {str(file.sha256)[:12]}..., and "
                f"{CONFIG_FILE} has {digests[name][:12]}..."
            )
        files.append(file)
    vocabulary = snapshot.find(VOCABULARY_FILE)
    return files if vocabulary is None or vocabulary.size > MAX_TEXT_BYTES else [*files, vocabulary]


def foreign_files(snapshot: Snapshot, *, include: Sequence[str], pickles: bool) -> list[RemoteFile]:
    """The files that a known family could need: weights, configurations and vocabularies, of those that match `include`
    if that is not empty; pickles only if they are wanted.

    Raises `HubError` if there are no weights among them, or only pickles that are not wanted.
    """
    files = [file for file in snapshot.files if len(PurePosixPath(file.path).parts) <= MAX_DEPTH + 1]
    if include:
        files = [file for file in files if any(fnmatch.fnmatchcase(file.path, pattern) for pattern in include)]
    pickled = [file for file in files if _matches(file, PICKLES)]
    weights = [file for file in files if _matches(file, WEIGHTS)] + pickled * pickles
    if not weights:
        if pickled:
            raise HubError(
                f"{snapshot.reference} has its weights as pickles only ({_named(pickled)}): --pickles fetches "
                "them for the restricted reader of `dalle import`, which runs no code that is in them"
            )
        there = _named(files) or (f"nothing that matches {', '.join(include)}" if include else "no files")
        raise HubError(f"{snapshot.reference} has no weights that a known project writes; it has {there}")
    return weights + [file for file in files if _matches(file, TEXTS) and file.size <= MAX_TEXT_BYTES]


def _matches(file: RemoteFile, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(file.path.lower(), pattern) for pattern in patterns)


def _named(files: Sequence[RemoteFile]) -> str:
    more = len(files) - NUM_NAMED
    return ", ".join(file.path for file in files[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
