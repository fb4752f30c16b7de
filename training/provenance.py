"""Where a run comes from: seed, version of the code, digests of its data. Every checkpoint and run folder has them."""

import functools
import hashlib
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from dalle.errors import DataError
from dalle.version import __version__

__all__ = ["about_run", "check_stamp", "code_version", "data_digest", "stamp_of"]

ROOT = Path(__file__).parents[1]
VERSION = "code_version"
BLOCKS, BLOCK_SIZE = 64, 2**16
"""Blocks of a file that its digest is over, evenly spread, and their size in bytes."""
SHORT = 12
"""Hex digits of a digest in the notes of a model."""


@functools.cache
def code_version() -> str:
    """The version of the library and, in a checkout, the commit: `0.1.0, commit 1a2b3c4d5e6f`, with `and changes` if
    files differ from it."""
    try:
        commit, changes = (
            subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True, timeout=20).stdout
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):  # no git, or no checkout
        return __version__
    return f"{__version__}, commit {commit.strip()}{' and changes' if changes.strip() else ''}"


def data_digest(paths: Sequence[Path]) -> str:
    """A digest of files of data, in hex: SHA-256 over the size of each and up to 64 blocks of 64 KiB, so that it takes
    a moment for any size. Names and folders do not count. Raises `DataError` for a file that cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            size = path.stat().st_size
            digest.update(size.to_bytes(8))
            with open(path, "rb") as file:
                step = max(BLOCK_SIZE, size // BLOCKS)
                for start in range(0, size, step):
                    file.seek(start)
                    digest.update(file.read(BLOCK_SIZE))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from error
    return digest.hexdigest()


def stamp_of(seed: int, inputs: Mapping[str, str | int]) -> dict[str, str]:
    """What a saved state is stamped with: the seed, the version of the code, and digests and sizes of the inputs."""
    return {"seed": str(seed), VERSION: code_version()} | {key: str(value) for key, value in inputs.items()}


def about_run(seed: int, inputs: Mapping[str, str | int]) -> dict[str, str]:
    """The stamp as notes of a model, digests shortened."""
    return {key: value[:SHORT] if key.endswith("_digest") else value for key, value in stamp_of(seed, inputs).items()}


def check_stamp(found: Mapping[str, str], expected: Mapping[str, str], path: Path) -> None:
    """Compare the stamp of a saved state with that of the run that would resume from it. An earlier state may lack
    fields. Warns of another version of the code; raises `DataError` for any other difference."""
    for key, value in expected.items():
        if found.get(key, value) == value:
            continue
        if key == VERSION:
            warnings.warn(
                f"{path} was saved by version {found[key]}, and this is {value}: the run may go on differently",
                stacklevel=2,
            )
        else:
            raise DataError(f"{path} is of a run with {key} = {found[key]}, not {value}: give another folder")
