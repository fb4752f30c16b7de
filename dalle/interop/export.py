"""`export_checkpoint`: write a model directory in a layout that other projects read, `vqgan-jax` or `hf`.

`hf` is a folder of safetensors and JSON with a subfolder for each network. Names of weights are stable: those of an
image tokenizer are the names of the project that its network comes from, those of a decoder our own; docs/interop.md
lists them.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from einops import rearrange

from dalle.checkpoint import read_parts
from dalle.checkpoint.model_config import ModelConfig
from dalle.checkpoint.weights import LazyTensor, Part, write_safetensors
from dalle.errors import CheckpointError
from dalle.files import atomic_folder
from dalle.interop import dalle_pytorch, openai_dvae, vqgan
from dalle.interop.vqgan_jax import write_vqgan_jax
from dalle.vq.discrete_vae import DiscreteVAEConfig
from dalle.vq.kinds import KINDS, kind_of
from dalle.vq.openai_dvae import OpenAIDiscreteVAEConfig
from dalle.vq.vqgan import ImageTokenizerConfig

__all__ = ["LAYOUTS", "export_checkpoint"]


def export_checkpoint(folder: str | Path, layout: str, out: str | Path) -> None:
    """Write a model directory in one of the `LAYOUTS` to a new folder `out`, atomically.

    Raises `CheckpointError` for a damaged directory, for a network that the layout cannot describe, and if `out`
    exists.
    """
    folder, out = Path(folder), Path(out)
    if layout not in LAYOUTS:
        raise CheckpointError(f"there is no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    if os.path.lexists(out):
        raise CheckpointError(f"{out} exists already: an export overwrites nothing")
    parts = read_parts(folder)
    try:
        with atomic_folder(out) as files:
            LAYOUTS[layout](folder, parts, files)
            for path in files.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror or error}") from error


def _to_vqgan_jax(folder: Path, parts: Mapping[str, Part], out: Path) -> None:
    part = parts["image_tokenizer"]
    if not isinstance(part.config, ImageTokenizerConfig):
        raise CheckpointError(f"{folder} has an image tokenizer of the kind {kind_of(part.config)}, not a VQGAN")
    write_vqgan_jax(out, part.config, part.weights)


def _to_hf(folder: Path, parts: Mapping[str, Part], out: Path) -> None:
    config = ModelConfig.read(folder)
    top = {"name": config.name, "about": dict(config.about), "sampling": config.sampling.to_dict()}
    _write_json(out / "config.json", {"model_type": "dalle", "parts": sorted(parts), **top})
    for name, part in parts.items():
        (out / name).mkdir()
        _write_json(out / name / "config.json", _hf_config(part))
        write_safetensors(out / name / "model.safetensors", _published(part))
    if (folder / "tokenizer.json").is_file():
        shutil.copyfile(folder / "tokenizer.json", out / "tokenizer.json")


def _hf_config(part: Part) -> dict[str, object]:
    is_image_tokenizer = type(part.config) in {config_class for config_class, _ in KINDS.values()}
    return {"model_type": kind_of(part.config) if is_image_tokenizer else "decoder", **part.config.to_dict()}


def _published(part: Part) -> dict[str, LazyTensor]:
    """The weights of a network under the names of the project that the network comes from."""
    match part.config:
        case ImageTokenizerConfig():
            names = vqgan.names_of(part.config)
        case DiscreteVAEConfig():
            names = dalle_pytorch.names_of(part.config)
        case OpenAIDiscreteVAEConfig():
            names = openai_dvae.names_of(part.config)
        case _:
            return dict(part.weights)
    weights = {names[ours]: tensor for ours, tensor in part.weights.items()}
    if "quantize.proj.weight" in weights:  # taming-transformers has a 1 x 1 convolution in its place
        weights["quantize.proj.weight"] = weights["quantize.proj.weight"].then(lambda t: rearrange(t, "k d -> k d 1 1"))
    return weights


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


LAYOUTS: dict[str, Callable[[Path, Mapping[str, Part], Path], None]] = {"vqgan-jax": _to_vqgan_jax, "hf": _to_hf}
"""Layouts by name, with the function that writes the parts of a model directory into an empty folder."""
