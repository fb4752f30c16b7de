"""Packages of pictures and names: downloaded with npm and apt-get into a cache folder, unpacked, and read.

The clients check the checksums. A package in the cache folder is not downloaded again, so it may also be copied there
by hand.
"""

import base64
import dataclasses
import hashlib
import json
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dalle.errors import DataError
from dalle.files import atomic_folder

__all__ = ["IconSet", "Packages", "fetch_npm", "fetch_packages", "read_json"]

OPENCLIPART = "openclipart-svg"
FETCH_SECONDS = 900


@dataclasses.dataclass(frozen=True)
class Packages:
    """Folders of unpacked packages, by package name."""

    folders: Mapping[str, Path]

    def icons(self, package: str) -> "IconSet":
        """Opens the `@iconify-json` package of this name."""
        return IconSet(self.folders[package])


class IconSet:
    """An Iconify set: bodies of SVG pictures by name, aliases, and, in some sets, names by code points."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        icons = read_json(folder / "icons.json")
        self.icons: Mapping[str, Mapping[str, Any]] = icons["icons"]
        self.aliases: Mapping[str, Mapping[str, Any]] = icons.get("aliases", {})
        self._defaults: dict[str, Any] = {"width": icons.get("width", 16), "height": icons.get("height", 16)}

    @cached_property
    def chars(self) -> Mapping[str, str]:
        """Names of pictures by code points, in lower-case hexadecimal joined by `-`; empty if the set has none."""
        path = self.folder / "chars.json"
        chars: Mapping[str, str] = read_json(path) if path.exists() else {}
        return chars

    @cached_property
    def categories(self) -> Mapping[str, Sequence[str]]:
        """Names of pictures by category."""
        categories: Mapping[str, Sequence[str]] = read_json(self.folder / "metadata.json").get("categories", {})
        return categories

    def drawn_as(self, name: str) -> tuple[str, bool]:
        """The name of the picture to draw, which for an alias is that of its parent, and whether to mirror it.

        Raises `DataError` for a name that is not in the set.
        """
        alias = {} if name in self.icons else self.aliases.get(name, {})
        parent = alias.get("parent", name)
        if parent not in self.icons:
            raise DataError(f"{self.folder} has no picture {name!r}: is it another version of the package?")
        return parent, bool(alias.get("hFlip"))

    def svg(self, name: str, size: int) -> str:
        """A picture as an SVG of size x size pixels; one that is not square is centred and not cropped."""
        icon = self._defaults | dict(self.icons[name])
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{size}" height="{size}" viewBox="0 0 {icon["width"]} {icon["height"]}">{icon["body"]}</svg>'
        )


def fetch_packages(npm: Mapping[str, str], cache: Path) -> Packages:
    """Download the packages that the cache lacks, and unpack all of them there.

    npm: versions of the npm packages by name; openclipart-svg is downloaded from Debian in addition.
    Raises `DataError`, with advice, if a client is missing or fails, or if a package has another name or version.
    """
    return Packages({**fetch_npm(npm, cache).folders, OPENCLIPART: _fetch_openclipart(cache)})


def fetch_npm(npm: Mapping[str, str], cache: Path, integrity: Mapping[str, str] = MappingProxyType({})) -> Packages:
    """Download the npm packages that the cache lacks, and unpack all of them there.

    npm: versions by name. integrity: SHA-512 of archives by name, in the notation of npm (`sha512-BASE64`).
    Raises `DataError`, with advice, if npm is missing or fails, or if a package has another name, version or digest.
    """
    cache.mkdir(parents=True, exist_ok=True)
    archives = {f"{name}@{version}": cache / _npm_archive(name, version) for name, version in npm.items()}
    missing = [spec for spec, archive in archives.items() if not archive.exists()]
    if missing:
        _run(
            ["npm", "pack", "--silent", *missing],
            cache,
            "install Node.js with npm and let it reach its registry, or copy "
            f"{_listed(archives[spec] for spec in missing)} into {cache} by hand",
        )
    folders = {}
    for (name, version), archive in zip(npm.items(), archives.values(), strict=True):
        if not archive.exists():
            raise DataError(f"npm pack {name}@{version} left no {archive}")
        if name in integrity and (found_digest := _integrity(archive)) != integrity[name]:
            raise DataError(f"{archive} has the digest {found_digest}, not {integrity[name]}: delete it and try again")
        folders[name] = _unpacked(archive, cache / archive.stem) / "package"
        found = read_json(folders[name] / "package.json")
        if (found.get("name"), found.get("version")) != (name, version):
            raise DataError(f"{archive} holds {found.get('name')} {found.get('version')}, not {name} {version}")
    return Packages(folders)


def _integrity(archive: Path) -> str:
    """SHA-512 of a file in the notation of npm."""
    return f"sha512-{base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()}"


def _fetch_openclipart(cache: Path) -> Path:
    pattern = f"{OPENCLIPART}_*0.18*.deb"
    if not list(cache.glob(pattern)):
        _run(
            ["apt-get", "download", OPENCLIPART],
            cache,
            "run apt-get update first; on systems other than Debian and its derivatives, copy "
            f"{OPENCLIPART} 0.18 (a .deb file) into {cache} by hand",
        )
    archives = sorted(cache.glob(pattern))
    if not archives:
        raise DataError(
            f"apt-get download {OPENCLIPART} downloaded no version 0.18 into {cache}; copy it there by hand"
        )
    return _unpacked(archives[-1], cache / f"{OPENCLIPART}-0.18")


def _unpacked(archive: Path, folder: Path) -> Path:
    """The folder with the files of the archive, unpacked if it does not exist; it exists only when it is complete."""
    if folder.exists():
        return folder
    try:
        _unpack(archive, folder)
    except OSError:
        if not folder.exists():  # else another process has unpacked it meanwhile
            raise
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    with atomic_folder(folder) as unfinished:
        if archive.suffix == ".deb":
            _run(
                ["dpkg-deb", "-x", str(archive.absolute()), str(unfinished.absolute())],
                archive.parent,
                "install dpkg, or delete the archive if it is damaged",
            )
        else:
            try:
                with tarfile.open(archive) as file:
                    # Python before 3.11.4 has no data filter; npm has checked the digest of the archive
                    file.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
                    file.extractall(unfinished)
            except (tarfile.TarError, OSError, EOFError) as error:
                reason = " ".join(str(error).split())
                raise DataError(f"{archive} cannot be unpacked ({reason}); delete it and try again") from error


def _run(command: Sequence[str], folder: Path, advice: str) -> None:
    said = " ".join(command[:3])
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_SECONDS)
    except FileNotFoundError:
        raise DataError(f"{command[0]} is not installed, and `{said}` needs it: {advice}") from None
    except subprocess.TimeoutExpired:
        raise DataError(f"`{said}` took longer than {FETCH_SECONDS} s: {advice}") from None
    if done.returncode:
        complaint = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise DataError(f"`{said}` failed ({complaint[0].strip()}): {advice}")


def _npm_archive(name: str, version: str) -> str:
    return f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"


def _listed(paths: Iterable[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_json(path: Path) -> Any:
    """A JSON file of a package. Raises `DataError` if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); delete the folder and try again") from error
