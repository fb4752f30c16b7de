"""Models that were pulled from a hub, by the name of their repository: `hf:OWNER/NAME`, or `hf:OWNER/NAME@REVISION`.

They are in the folder that DALLE_MODELS names, or else in ~/.cache/dalle/models (see `cache_folder`):

    hf/OWNER--NAME/COMMIT/         a model directory: the repository at one commit
    hf/OWNER--NAME/refs/REVISION   the commit that a branch or tag had when it was last pulled
    hf/OWNER--NAME/downloads/      files that are not complete yet

Nothing here needs a network: a name stays at its commit until it is pulled again.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote

from dalle.checkpoint.model_config import CONFIG_FILE
from dalle.errors import CheckpointError
from dalle.files import atomic_write, cache_folder

__all__ = ["MAIN", "PREFIX", "Reference", "find_pulled", "is_reference", "list_pulled", "remember_commit", "repository"]

PREFIX = "hf:"
MAIN = "main"
"""The revision of a name that has none."""
COMMIT = re.compile(r"[0-9a-f]{40}")
PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
"""An owner or a name, as the hub allows them."""
REFERENCE = re.compile(rf"hf:/{{0,2}}({PART})/({PART})(?:@([A-Za-z0-9_][\w./-]*))?", re.ASCII)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """The name of a repository on a hub, at a revision: a branch, a tag or a commit."""

    owner: str
    name: str
    revision: str = MAIN

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `hf:OWNER/NAME`, with or without `@REVISION`. Raises `CheckpointError` for another form."""
        found = REFERENCE.fullmatch(text)
        if found is None or any(bad in found[0] for bad in ("--", "..")):
            raise CheckpointError(
                f"{text!r} does not name a repository: it must be hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
            )
        return cls(owner=found[1], name=found[2], revision=found[3] or MAIN)

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo_id}" + (f"@{self.revision}" if self.revision != MAIN else "")

    @property
    def repo_id(self) -> str:
        """OWNER/NAME, as the hub's own tools name it."""
        return f"{self.owner}/{self.name}"

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a whole commit, which never changes."""
        return COMMIT.fullmatch(self.revision) is not None


def is_reference(name: str | Path) -> bool:
    """Whether a model is named by its repository, and not by its own name or its folder."""
    return str(name).startswith(PREFIX)


def repository(reference: Reference) -> Path:
    """The folder that a repository is pulled into."""
    return _roots()[0] / f"{reference.owner}--{reference.name}"


def find_pulled(reference: Reference) -> Path | None:
    """The model directory of a repository at a revision, or None if that was not pulled."""
    for root in _roots():
        folder = root / f"{reference.owner}--{reference.name}"
        commit = (
            reference.revision if reference.is_commit else _commit(folder / "refs" / quote(reference.revision, safe=""))
        )
        if commit and (folder / commit / CONFIG_FILE).is_file():
            return folder / commit
    return None


def list_pulled() -> dict[str, Path]:
    """Model directories by the shortest name that loads them. A commit that no branch or tag has any more is named by
    itself."""
    found: dict[str, Path] = {}
    for folder in (folder for root in reversed(_roots()) for folder in sorted(root.glob("*--*"))):
        owner, _, name = folder.name.partition("--")
        named = set()
        for path in sorted((folder / "refs").glob("*")):
            commit = _commit(path)
            if commit and (folder / commit / CONFIG_FILE).is_file():
                found[str(Reference(owner=owner, name=name, revision=unquote(path.name)))] = folder / commit
                named.add(commit)
        for path in sorted(folder.glob(f"*/{CONFIG_FILE}")):
            if COMMIT.fullmatch(path.parent.name) and path.parent.name not in named:
                found[str(Reference(owner=owner, name=name, revision=path.parent.name))] = path.parent
    return found


def remember_commit(reference: Reference, commit: str) -> None:
    """Record the commit that a branch or tag has now. Raises `OSError` as writing does."""
    if not reference.is_commit:
        path = repository(reference) / "refs" / quote(reference.revision, safe="")
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, commit)


def _commit(path: Path) -> str | None:
    try:
        commit = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return commit if COMMIT.fullmatch(commit) else None


def _roots() -> list[Path]:
    """The folders of repositories; new ones go into the first."""
    folders = [Path(os.environ["DALLE_MODELS"])] if os.environ.get("DALLE_MODELS") else []
    return [folder / "hf" for folder in (*folders, cache_folder() / "models")]
