"""The NOTICE beside the shards: authors and licences of the pictures, as the packages state them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dalle.errors import DataError
from training.emoji.packages import Packages, read_json
from training.emoji.sets import CLDR_PACKAGES, SETS, Entry, PictureSet

__all__ = ["notice"]

CHANGES = """\
Pictures and names for training text-to-image models, made from the packages below by `python -m training.emoji`.
Changes: a selection of the pictures, each drawn at 128 x 128 pixels on a transparent background, clip art cropped
to its drawing and framed; names turned into captions. None of the authors endorses this use.
"""
LICENCE_FILES = ("LICENSE*", "LICENCE*", "COPYING*", "usr/share/doc/*/copyright")


def notice(packages: Packages, entries: Sequence[Entry]) -> str:
    """The text of the NOTICE: the changes, every set with version, author and licence, and the licence texts that are
    enclosed in packages.

    Raises `DataError` if a package states another licence than its entry in `training.emoji.sets`.
    """
    counts = Counter(entry.picture_set.name for entry in entries)
    parts = [CHANGES]
    for picture_set in SETS:
        folder = packages.folders[picture_set.package]
        lines = [
            f"{picture_set.package} {picture_set.version}",
            f"  in the data:  {counts[picture_set.name]} pairs of the style `{picture_set.style}`",
            *_terms(picture_set, folder),
        ]
        parts.append("\n".join(lines) + "\n")
    for package, version in CLDR_PACKAGES.items():
        said = read_json(packages.folders[package] / "package.json")
        lines = [
            f"{package} {version}",
            "  in the data:  names and keywords",
            f"  author:       {said['author']}",
            f"  licence:      {said['license']}",
        ]
        parts.append("\n".join(lines) + "\n")
    for text, owners in _enclosed(packages).items():
        parts.append(f"{'-' * 100}\nEnclosed with {', '.join(owners)}:\n\n{text.strip()}\n")
    return "\n".join(parts)


def _terms(picture_set: PictureSet, folder: Path) -> list[str]:
    """Lines with name, author and licence, as the package states them."""
    if picture_set.kind == "clip art":
        if "Public Domain Dedication" not in (folder / "usr/share/doc/openclipart-svg/copyright").read_text():
            raise DataError(f"{picture_set.package}: its copyright file no longer dedicates it to the public domain")
        return [
            "  about:        Open Clip Art Library",
            "  author:       its contributors, each named in the SVG file of the picture",
            "  licence:      Public Domain Dedication",
        ]
    package = read_json(folder / "package.json")
    stated: dict[str, Any] = read_json(folder / "info.json") if (folder / "info.json").exists() else {}
    licence = stated.get("license", {"spdx": package.get("license")})
    if not licence.get("spdx") == package.get("license") == picture_set.licence:
        raise DataError(
            f"{picture_set.package} states the licence {licence.get('spdx')} ({package.get('license')} in its "
            f"package.json); the data says {picture_set.licence}"
        )
    author = stated.get("author", {"name": package.get("author"), "url": package.get("homepage")})
    return [
        f"  about:        {stated.get('name', package.get('description'))} {stated.get('version', '')}".rstrip(),
        f"  author:       {author['name']}, {author.get('url', 'no address given')}",
        f"  licence:      {licence['spdx']}" + (f", {licence['url']}" if "url" in licence else ""),
    ]


def _enclosed(packages: Packages) -> dict[str, list[str]]:
    """Licence texts in the packages, each with the names of the packages that enclose it."""
    texts: dict[str, list[str]] = {}
    for package, folder in packages.folders.items():
        for pattern in LICENCE_FILES:
            for path in sorted(folder.glob(pattern)):
                texts.setdefault(path.read_text(encoding="utf-8", errors="replace"), []).append(package)
    return texts
