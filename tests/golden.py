"""Checkpoints of other projects with what their own code computed from them: where they are, and one import of each.

`tests/data/golden` has some of the sets; DALLE_GOLDEN may name a folder with more. Every set that is there is tested.
"""

import os
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

FOLDERS = [Path(__file__).parent / "data" / "golden"]
if os.environ.get("DALLE_GOLDEN"):
    FOLDERS.append(Path(os.environ["DALLE_GOLDEN"]))

TOLERANCE = 1e-4
"""Of floats, absolute; codes are exact."""


def find(path: str) -> Path | None:
    """A file or folder of a set, if it is there."""
    return next((folder / path for folder in FOLDERS if (folder / path).exists()), None)


def vectors(project: str, prefix: str = "") -> dict[str, Tensor]:
    """What a project's code computed: tensors whose names start with the prefix, without it."""
    folder = find(f"{project}/golden.safetensors")
    assert folder is not None
    tensors = load_file(folder)
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def distance(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference; shapes are the same."""
    assert a.shape == b.shape
    return (a - b).abs().max().item()
