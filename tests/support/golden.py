"""Golden sets: checkpoints of other projects, with the vectors that the projects' own code computed from them.

`tests/data/golden` has some of the sets; DALLE_GOLDEN may name a folder with more. Every set that is found is tested.
"""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDERS = [Path(__file__).parents[1] / "data" / "golden"]
if os.environ.get("DALLE_GOLDEN"):
    FOLDERS.append(Path(os.environ["DALLE_GOLDEN"]))

TOLERANCE = 1e-4
"""Largest absolute difference of floats; codes must be equal."""


def find(path: str) -> Path | None:
    """A file or folder of a set, or None if it is missing."""
    return next((folder / path for folder in FOLDERS if (folder / path).exists()), None)


def found(path: str) -> Path:
    """A file or folder of a set in `tests/data/golden`."""
    path_found = find(path)
    assert path_found is not None
    return path_found


def vectors(project: str, prefix: str = "") -> dict[str, Tensor]:
    """Tensors that a project's code computed: those whose names start with the prefix, under names without it."""
    folder = find(f"{project}/golden.safetensors")
    assert folder is not None
    tensors = load_file(folder)
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def distance(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference of two tensors of the same shape."""
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def decoder_of(folder: Path, num_ids: int) -> Path:
    """Write a `dalle.pt` of DALLE-pytorch whose decoder has `num_ids` text ids, 24 of them in a row."""
    content = torch.load(FOLDERS[0] / "options/dalle-pytorch/plain_axial_pos.pt", weights_only=True)
    weights, width, num_codes = content["weights"], 24, 20
    content["hparams"] |= {"num_text_tokens": num_ids, "text_seq_len": 24}
    weights["text_emb.weight"] = torch.randn(num_ids + 24, width)
    weights["text_pos_emb.weight"] = torch.randn(25, width)
    weights["to_logits.1.weight"] = torch.randn(num_ids + 24 + num_codes, width)
    weights["to_logits.1.bias"] = torch.randn(num_ids + 24 + num_codes)
    folder.mkdir()
    torch.save(content, folder / "dalle.pt")
    return folder
