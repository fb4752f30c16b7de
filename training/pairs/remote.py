"""Shards on a web server or an object store: fetched once, and kept in the cache on this machine.

A URL is any that fsspec knows (`https://`, `s3://`, `gs://`, `hf://`, ...). Its file is kept in `shards` in the folder
that the environment variable DALLE_CACHE names (default: ~/.cache/dalle), and is not asked for again.
"""

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec
from tqdm import tqdm

from dalle.errors import DataError
from dalle.files import atomic_file, cache_folder
from training.pairs.waiting import waiting

__all__ = ["fetch", "is_url", "matching_urls"]

TRIES = 3
AT_ONCE = 4
"""Files that are fetched at the same time."""


def is_url(pattern: str | Path) -> bool:
    """Whether a shard is given by a URL, and not by a path."""
    return isinstance(pattern, str) and "://" in pattern


def matching_urls(pattern: str) -> list[str]:
    """The URLs that a URL names, sorted: itself, or all that match its wildcard `*`. Raises `DataError` if the place
    cannot be listed, or needs a driver that is not installed."""
    if "*" not in pattern:
        return [pattern]
    system, path = _opened(pattern)
    try:
        return sorted(system.unstrip_protocol(found) for found in system.glob(path))
    except Exception as error:  # the drivers of fsspec have exceptions of their own
        raise DataError(f"{pattern} cannot be listed: {_reason(error)}") from error


def fetch(urls: Sequence[str]) -> list[Path]:
    """The files of these URLs on this machine; those that are not in the cache are fetched. Several processes may ask
    for the same ones.

    Raises `DataError` for a file that cannot be fetched, or not as a whole, in three tries.
    """
    paths = [_cached(url) for url in urls]
    missing = [(url, path) for url, path in zip(urls, paths, strict=True) if not path.exists()]
    with ThreadPoolExecutor(AT_ONCE) as pool, tqdm(total=len(missing), desc="fetch shards", disable=not missing) as bar:
        try:
            for _ in pool.map(lambda one: _fetch(*one), missing):
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return paths


def _cached(url: str) -> Path:
    """Where the file of a URL is kept: under its own name, in a folder for the whole URL."""
    name = PurePosixPath(urlsplit(url).path).name or "shard"
    return cache_folder() / "shards" / hashlib.sha256(url.encode()).hexdigest()[:16] / name


def _fetch(url: str, path: Path) -> None:
    system, remote = _opened(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with waiting(path.with_name(".lock")):
        if path.exists():  # another process has fetched it
            return
        for tries_left in reversed(range(TRIES)):
            try:
                with atomic_file(path, part=path.with_name(path.name + ".part")) as part:
                    system.get_file(remote, str(part))
                    size = system.info(remote).get("size")
                    if size is not None and part.stat().st_size != size:
                        raise OSError(f"only {part.stat().st_size} of {size} bytes came")
                return
            except Exception as error:  # the drivers of fsspec have exceptions of their own
                if not tries_left or isinstance(error, FileNotFoundError | PermissionError):
                    raise DataError(f"{url} cannot be fetched: {_reason(error)}") from error
                time.sleep(TRIES - tries_left)


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise DataError(f"{url} needs another package: {error}") from error
    except ValueError as error:
        raise DataError(f"{url} is no URL that can be read: {error}") from error


def _reason(error: Exception) -> str:
    return f"it does not exist ({error})" if isinstance(error, FileNotFoundError) else str(error) or repr(error)
