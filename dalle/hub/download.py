"""A repository at one commit, and its files: fetched with resuming, and verified against the hub's list.

A file is fetched at the commit that was read first, so that a push in between changes nothing. The part that a broken
download leaves is named by the file's digest: the next download continues it, or leaves it alone if the file changed.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dalle.checkpoint.pulled import Reference
from dalle.errors import HubError
from dalle.files import CannotWriteError
from dalle.hub.client import LIBRARY
from dalle.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["RemoteFile", "Snapshot", "address", "check_room", "fetch", "megabytes", "read_snapshot"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a repository at a commit."""

    path: str
    """Path from the top of the repository, with slashes."""
    size: int
    """Bytes."""
    sha256: str | None
    """SHA-256 of a large file, in hexadecimal; None for a file that git itself stores."""
    blob: str
    """git's SHA-1 of the file, or of the pointer to a large one."""

    @property
    def digest(self) -> str:
        return self.sha256 or self.blob

    def digest_of(self, path: Path) -> str:
        """The digest of a file on the disk, of the kind that the hub's list has for this one."""
        with open(path, "rb") as file:
            if self.sha256 is not None:
                return hashlib.file_digest(file, "sha256").hexdigest()
            found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
            return hashlib.file_digest(file, lambda: found).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A repository at one commit: its list of files."""

    reference: Reference
    commit: str
    files: tuple[RemoteFile, ...]

    def find(self, path: str) -> RemoteFile | None:
        """The file with a path, or None."""
        return next((file for file in self.files if file.path == path), None)


def read_snapshot(api: "HfApi", reference: Reference) -> Snapshot:
    """Read the commit and the files of a repository at the reference's revision. Raises errors as `fetch` does."""
    try:
        info = api.model_info(reference.repo_id, revision=reference.revision, files_metadata=True)
        files = tuple(
            RemoteFile(
                path=entry.rfilename,
                size=int(entry.size or 0),
                sha256=entry.lfs.sha256 if entry.lfs is not None else None,
                blob=entry.blob_id or "",
            )
            for entry in info.siblings or ()
        )
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HubError(f"{api.endpoint} does not answer as a hub does ({type(error).__name__}: {error})") from error
    if not info.sha or not all(file.digest for file in files):
        raise HubError(
            f"{api.endpoint} does not answer as a hub does: the commit of {reference}, or a digest, is missing"
        )
    for file in files:
        if {"", ".", ".."} & {*file.path.split("/")}:
            raise HubError(f"{reference} lists a file {file.path!r}, which would be written outside its folder")
    return Snapshot(reference=reference, commit=info.sha, files=files)


def address(api: "HfApi", snapshot: Snapshot, path: str) -> tuple[str, dict[str, str]]:
    """The address of a file at the snapshot's commit, and the headers of a request for it, with the token if any."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(snapshot.reference.repo_id, path, revision=snapshot.commit, endpoint=api.endpoint)
    headers = build_hf_headers(library_name=LIBRARY, library_version=__version__)
    return url, headers | {"accept-encoding": "identity"}


def fetch(api: "HfApi", snapshot: Snapshot, file: RemoteFile, folder: Path) -> Path:
    """Download a file into a folder, unless it is there; a part of it is continued. Returns its path, which is named by
    its digest.

    Raises `HubError` if the file has another digest than the hub's list, and errors of the hub's client and the disk,
    which `hub_errors` puts into words.
    """
    from huggingface_hub.file_download import http_get

    path = folder / file.digest
    if path.exists():
        return path
    part = folder / f"{file.digest}.part"
    reference = snapshot.reference
    url, headers = address(api, snapshot, file.path)
    folder.mkdir(parents=True, exist_ok=True)
    if part.exists() and part.stat().st_size > file.size:
        part.unlink()
    with open(part, "ab") as content:
        http_get(
            url,
            content,
            resume_size=content.tell(),
            expected_size=file.size,
            headers=headers,
            displayed_filename=file.path,
        )
    if (found := file.digest_of(part)) != file.digest:
        part.unlink()
        raise HubError(
            f"{file.path} of {reference} arrived damaged: its digest is {found[:12]}..., not {file.digest[:12]}... as "
            "the hub lists; it was removed: pull again"
        )
    part.replace(path)
    return path


def check_room(files: Sequence[RemoteFile], folder: Path) -> None:
    """Raise `CannotWriteError` if the disk lacks the room for what is still to be fetched into a folder."""
    there = folder
    while not there.exists():
        there = there.parent
    needed = sum(file.size for file in files if not (folder / file.digest).exists())
    needed -= sum(part.stat().st_size for file in files if (part := folder / f"{file.digest}.part").exists())
    if needed > (free := shutil.disk_usage(there).free):
        raise CannotWriteError(f"{megabytes(needed)} are to be fetched, and {there} has room for {megabytes(free)}")


def megabytes(num_bytes: int) -> str:
    """A size for people: `12.3 MB`."""
    return f"{num_bytes / 1e6:,.1f} MB"
