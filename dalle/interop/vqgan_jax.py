"""Family `vqgan-jax`: checkpoints of patil-suraj/vqgan-jax, DALL-E mini's image tokenizer; also exported.

Files: the folder with `config.json` and `flax_model.msgpack`.
Networks: the VQGAN.
Not read: `give_pre_end`, and `out_ch` other than 3 (the network does not decode to colours); DALL-E mini's Transformer
(an encoder-decoder; this library has decoder-only Transformers).

Axes are in Flax's order, and pixels inside the network are in [0, 1], as DALL-E mini uses it. The value of
`architectures` in the published configuration is a mistake ("del") and is ignored.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dalle.checkpoint.weights import LazyTensor
from dalle.errors import CheckpointError
from dalle.interop.family import Converted, Family, Source
from dalle.interop.flax_msgpack import read_flax, write_flax
from dalle.interop.vqgan import described_vqgan, names_of
from dalle.vq.vqgan import ImageTokenizerConfig

__all__ = ["FAMILY", "write_vqgan_jax"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "flax_model.msgpack"
LICENCE = "the project gives none for its code, nor do its published weights have one: see docs/interop.md"
RANGE_KEY = "pixel_range"
"""Key that this library adds to config.json for a network whose pixels are not in [0, 1], the project's only range."""


def _to_taming(name: str) -> str:
    """Rename encoder/down_0/block_1/conv1/kernel to encoder.down.0.block.1.conv1.weight."""
    *parents, leaf = name.split("/")
    parents = [re.sub(r"^(down|up|block|attn)_(\d+)$", r"\1.\2", part) for part in parents]
    if "mid" in parents:  # in the middle the number is part of the block's name
        parents = [re.sub(r"^(block|attn)\.", r"\1_", part) for part in parents]
    return ".".join([*parents, "bias" if leaf == "bias" else "weight"])


def _from_taming(name: str) -> str:
    """The inverse of `_to_taming`."""
    parent, _, leaf = name.rpartition(".")
    last = parent.rpartition(".")[2]
    if leaf == "weight":
        leaf = "scale" if last.startswith("norm") else "embedding" if last == "embedding" else "kernel"
    return re.sub(r"(down|up|block|attn)\.(\d+)", r"\1_\2", parent).replace(".", "/") + f"/{leaf}"


def _to_torch(kernel: Tensor) -> Tensor:
    return kernel.permute(3, 2, 0, 1)


def _to_flax(weight: Tensor) -> Tensor:
    return weight.permute(2, 3, 1, 0)


def recognise(source: Source) -> str | None:
    if found := _weights(source):
        return f"{found[0]} is a file of Flax, which only this family uses"
    for path in source.find(CONFIG_FILE):
        if {"ch_mult", "attn_resolutions", "n_embed"} <= {*source.json(path)}:
            return f"{path} has ch_mult, attn_resolutions and n_embed"
    return None


def _weights(source: Source) -> list[Path]:
    return source.find(WEIGHTS_FILE) or source.find("*.msgpack")  # a file may have been renamed


def convert(source: Source) -> Converted:
    path = source.only(_weights(source), WEIGHTS_FILE, "the weights")
    config_path = path.parent / CONFIG_FILE
    if not config_path.is_file():
        raise CheckpointError(f"{config_path} is missing: it is the configuration of {path.name}")
    described = source.json(config_path)
    if "bart" in str(described.get("model_type", "")):
        raise CheckpointError(
            f"{config_path} is for {described['model_type']}: DALL-E mini's encoder-decoder Transformer is not read, "
            "but its image tokenizer is: give the folder of that"
        )
    arrays = source.once(path, read_flax)
    weights = {
        _to_taming(name): array.then(_to_torch) if name.endswith("/kernel") else array for name, array in arrays.items()
    }
    unit = described.get(RANGE_KEY, [0, 1]) == [0, 1]
    part = described_vqgan(path, weights, config_path, described, pixel_range="unit" if unit else "signed")
    return Converted(
        image_tokenizer=part,
        about={
            "licence": LICENCE,
            "project": "https://github.com/patil-suraj/vqgan-jax",
        },
        derived=("pixels: [0, 1] in the network, as DALL-E mini uses it",) if RANGE_KEY not in described else (),
    )


FAMILY = Family(
    name="vqgan-jax",
    expects=f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}",
    recognise=recognise,
    convert=convert,
)


def write_vqgan_jax(folder: Path, config: ImageTokenizerConfig, weights: Mapping[str, LazyTensor]) -> None:
    """Write an image tokenizer, given by its configuration and weights under our names, as vqgan-jax reads it.

    Raises `CheckpointError` for a network that vqgan-jax cannot describe, `OSError` if writing fails.
    """
    described = _described(config)
    names = names_of(config)
    arrays = {
        _from_taming(names[ours]): weight.then(_to_flax) if len(weight.shape) == 4 else weight
        for ours, weight in weights.items()
    }
    write_flax(folder / WEIGHTS_FILE, arrays)
    (folder / CONFIG_FILE).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _described(config: ImageTokenizerConfig) -> dict[str, Any]:
    ch = config.encoder_widths[0]
    reasons = {
        "patch_size above 1": config.patch_size != 1,
        f"widths that are not multiples of the first, {ch}": any(width % ch for width in config.widths),
        "norm_groups other than 32": config.norm_groups != 32,
        "norm_epsilon other than 1e-6": config.norm_epsilon != 1e-6,
        "no attention in the middle": not (config.middle_attention and config.encoder_middle_attention),
        "no 1 x 1 convolutions around the codebook": config.z_channels is None,
        "codes of unit length": config.normalize_codes,
        "a blank code": config.blank_code is not None,
        f"the quantizer {config.quantizer}": config.quantizer != "nearest",
        "a wavelet head": config.wavelet_head,
        "an alpha channel": config.channels == 4,
        "no encoder": config.decode_only,
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise CheckpointError(f"vqgan-jax cannot describe this image tokenizer: it has {', '.join(found)}")
    described = {
        "architectures": ["VQModel"],
        "attn_resolutions": [config.image_size >> level for level in config.attention_levels],
        "ch": ch,
        "ch_mult": [width // ch for width in config.widths],
        "double_z": config.double_z,
        "dropout": 0.0,
        "embed_dim": config.codebook_dim,
        "give_pre_end": False,
        "in_channels": 3,
        "n_embed": config.codebook_size,
        "num_res_blocks": config.num_res_blocks,
        "num_resolutions": len(config.widths),
        "out_ch": 3,
        "resamp_with_conv": config.resample_with_conv,
        "resolution": config.image_size,
        "z_channels": config.z_channels,
    }
    return described if config.pixel_range == "unit" else described | {RANGE_KEY: [-1, 1]}
