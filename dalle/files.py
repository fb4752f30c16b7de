"""Atomic writes: a file or folder appears under its name when it is complete, or not at all. Nothing that a program has
not written itself is replaced.

`prepare_folder`, `write_file` and the checks are for output that a person asked for: they raise `CannotWriteError`.
"""

import errno
import fnmatch
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dalle.errors import DalleError

__all__ = [
    "CannotWriteError",
    "atomic_file",
    "atomic_folder",
    "atomic_write",
    "cache_folder",
    "check_claimed",
    "check_output",
    "flush_file",
    "is_special",
    "names_in",
    "prepare_folder",
    "write_file",
]


def cache_folder() -> Path:
    """The folder of what can be made or fetched again: DALLE_CACHE, or else ~/.cache/dalle."""
    root = os.environ.get("DALLE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dalle"
    return Path(root)


class CannotWriteError(DalleError):
    """A file or folder cannot be written: the disk is full, the folder is gone or belongs to somebody else, or what is
    there must not be replaced."""


def atomic_write(path: Path, content: bytes | str, *, part: Path | None = None) -> None:
    """Write a file, text as UTF-8, in place of one that may be there. Arguments and errors as in `atomic_file`."""
    with atomic_file(path, part=part) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path, *, part: Path | None = None, fsync: bool = False) -> Iterator[Path]:
    """A temporary path, to which the body of the `with` writes the file that then replaces `path`.

    part: the temporary path, on the same file system. By default it is `NAME.PID.part` beside `path`: processes that
        write the same file at once do not disturb each other. A fixed path is for files with one writer: what a killed
        process leaves there is overwritten by the next one, and not left for good.
    fsync: flush the content to the disk before the file gets its name, which then outlasts a loss of power.

    If the body or the replacement raises, the temporary file is removed and `path` is left as it was. A device or a
    pipe is written to directly, and never replaced. Raises `OSError` as writing does.
    """
    if is_special(path):
        yield path
        return
    if part is None:
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        if fsync:
            flush_file(part)
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(folder: Path, *, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """An empty temporary folder, which the body of the `with` fills and which then takes its place as `folder`.

    check: called with what is at that place, already moved aside, before it is removed; if it raises, that is moved
        back. None: nothing is replaced but an empty folder, and anything else, also if it appears while the body runs,
        is an `OSError`.

    If the body raises, the temporary folder is removed and `folder` is left as it was. Only a folder is ever replaced:
    a file, a device or a pipe is a `NotADirectoryError` before the body runs. A folder that is replaced is moved aside
    for an instant: a process that is killed just then leaves it, whole, in `.NAME-.../before` beside. A symbolic link
    stays, and the folder that it names is written. Raises `OSError` as writing does, and for the working directory,
    from which relative paths would lead nowhere.
    """
    folder = Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    with suppress(FileNotFoundError):  # of a working directory that is gone
        if _is_within(Path.cwd(), folder):
            raise OSError(errno.EBUSY, "this program runs in it: run it in another folder", str(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name[:200]}-", dir=folder.parent))
    files, before = temporary / "new", temporary / "before"
    try:
        files.mkdir()
        yield files
        if check is not None:
            with suppress(FileNotFoundError):
                folder.rename(before)
            if before.exists():
                check(before)
        files.rename(folder)
    except BaseException:
        with suppress(OSError):
            if before.exists() and not folder.exists():
                before.rename(folder)
        if before.exists():  # its place was taken by another process, which has not seen it
            shutil.rmtree(files, ignore_errors=True)
        else:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(temporary, ignore_errors=True)


def check_output(
    out: Path,
    what: str,
    why_foreign: Callable[[Path], str | None],
    *,
    overwrite: bool,
    sources: Iterable[Path] = (),
    moved: Path | None = None,
) -> None:
    """Check that a program may write `out`, a file or folder, before it begins its work.

    what: what the program writes there, such as "a model directory".
    why_foreign: returns why something that is there was not written by the program; None if it was.
    overwrite: whether the caller wants what the program wrote there before to be replaced.
    sources: what the program reads. They are never replaced, nor what contains them or is inside them.
    moved: the path at which `out` is while this is called, if it has been moved aside.

    Raises `CannotWriteError`, which says what is there. An empty folder is no obstacle, and neither is a device or a
    pipe, which is written to and not replaced.
    """
    there = moved or out
    if not os.path.lexists(there) or _is_empty_folder(there) or is_special(there):
        return
    for source in sources:
        contains, is_inside = _is_within(source, there), _is_within(there, source)
        if contains or is_inside:
            relation = "is" if contains and is_inside else "contains" if contains else "is inside"
            raise CannotWriteError(f"{out} {relation} {source}, which is read: give another place for {what}")
    if (reason := why_foreign(there)) is not None:
        raise CannotWriteError(f"{out} is not {what} to be replaced: {reason}; give another place")
    if not overwrite:
        raise CannotWriteError(f"{out} holds {what} already; --overwrite replaces it")


def check_claimed(folder: Path | str, held: Iterable[str], marker: str, names: Iterable[str]) -> None:
    """Check that a program which writes several files into a folder may do so, before it begins its work.

    held: names of the files and folders that are in the folder.
    marker: the file by which the program recognises a folder of its own.
    names: the other files and folders that it writes there; patterns as in `fnmatch`.

    Raises `CannotWriteError` if the folder has one of the names and no marker: the program has not written it.
    """
    found = sorted(held)
    if marker in found:
        return
    for name in found:
        if any(fnmatch.fnmatch(name, pattern) for pattern in names):
            raise CannotWriteError(
                f"{folder} holds {name}, which would be replaced; without {marker} it is of another origin: give "
                "another folder"
            )


def names_in(folder: Path) -> list[str]:
    """The names of the files and folders in a folder; none if it does not exist."""
    with suppress(FileNotFoundError):
        return os.listdir(folder)
    return []


def is_special(path: Path) -> bool:
    """Whether a path is a device or a pipe. Reading one may not end."""
    return path.exists() and not (path.is_file() or path.is_dir())


def _is_empty_folder(path: Path) -> bool:
    try:
        return path.is_dir() and next(path.iterdir(), None) is None
    except OSError:
        return False


def _is_within(inner: Path, outer: Path) -> bool:
    """Whether a path is `outer` or inside it, by any spelling and through symbolic links."""
    inner = Path(os.path.realpath(inner))
    for path in (inner, *inner.parents):
        with suppress(OSError):
            if os.path.samefile(path, outer):
                return True
    return False


def flush_file(path: Path) -> None:
    """Flush the content of a file to the disk. Raises `OSError` as flushing does."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def prepare_folder(folder: Path) -> None:
    """Make the folder and check that it can be written to, before anything is drawn. Raises `CannotWriteError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / ".dalle-probe", b"")
        (folder / ".dalle-probe").unlink(missing_ok=True)  # another process may probe the same folder
    except OSError as error:
        raise CannotWriteError(f"cannot write to {folder}: {error.strerror or error}") from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all. Raises `CannotWriteError`."""
    try:
        atomic_write(path, content)
    except OSError as error:
        raise CannotWriteError(f"cannot write {path}: {error.strerror or error}") from error
