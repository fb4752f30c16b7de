"""The translator's data from parts of the real packages, which are in `tests/data/translation_packages.tar.xz`."""

import tarfile
from pathlib import Path

from training.emoji.packages import Packages
from training.translation.sources import PACKAGES

__all__ = ["unpacked_packages"]

ARCHIVE = Path(__file__).parents[1] / "data" / "translation_packages.tar.xz"


def unpacked_packages(folder: Path) -> Packages:
    """The packages, unpacked into a folder, with their licences."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
        archive.extractall(folder)
    return Packages({name: folder / f"{name}-{version}" / "package" for name, version in PACKAGES.items()})
