"""The models on this machine by name: those in this package, and those in the folder that DALLE_MODELS names.

A model's name is the name of its folder. This module imports nothing large: shell completion uses it.
"""

import os
from pathlib import Path

__all__ = ["PACKAGED", "list_installed"]

PACKAGED = Path(__file__).parent / "models"
"""The folder of the models in this package."""


def list_installed() -> dict[str, Path]:
    """Model directories by name. A model in the folder DALLE_MODELS hides one of the same name in the package."""
    folders = [PACKAGED]
    if os.environ.get("DALLE_MODELS"):
        folders.append(Path(os.environ["DALLE_MODELS"]))
    return {path.parent.name: path.parent for folder in folders for path in sorted(folder.glob("*/config.json"))}
