"""Conversion of the VQGAN, shared by the families: taming-transformers' names, and a configuration read from shapes.

Families with other names rename their weights to taming-transformers' first. Sizes are read from the shapes of the
weights, so that a project's options need no list here; a configuration file that describes them too is compared.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from dalle.checkpoint.weights import LazyTensor, Part
from dalle.errors import CheckpointError
from dalle.interop.family import agree, check_biases, fit
from dalle.vq.vqgan import ImageTokenizer, ImageTokenizerConfig

__all__ = ["described_vqgan", "inference_weights", "names_of", "vqgan_part"]

TRAINING_ONLY = (
    "loss.",
    "model_ema.",
    "colorize",
    "global_step",
    "quantize.codebook_used",
    "quantize.embedding.cluster_size",
    "quantize.embedding.embed_avg",
)
"""Prefixes of tensors that only training uses: perceptual loss, discriminator, counters, averages."""

LEAVES = {
    "query": "q",
    "key": "k",
    "value": "v",
    "output": "proj_out",
    "shortcut": "nin_shortcut",
}
"""Our names within a block -> taming-transformers', where they differ."""


def inference_weights(weights: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """The weights without those that only training uses, and a description of what was left out."""
    needed = {name: value for name, value in weights.items() if not name.startswith(TRAINING_ONLY)}
    if len(needed) == len(weights):
        return needed, ()
    kinds = ", ".join(prefix for prefix in TRAINING_ONLY if any(name.startswith(prefix) for name in weights))
    return needed, (f"{len(weights) - len(needed)} tensors that only training needs: {kinds}",)


def vqgan_part(
    path: Path, weights: Mapping[str, LazyTensor], *, image_size: int, normalize_codes: bool = False, **options: Any
) -> Part:
    """The image tokenizer as a part, from weights under taming-transformers' names. `options` are fields of the
    configuration that do not follow from shapes.

    Raises `CheckpointError` if a weight is missing, has another shape than the others imply, or has no place.
    """
    check_biases(path, weights)
    _check_codebook(path, weights)
    config = _describe(path, weights, image_size=image_size, normalize_codes=normalize_codes, **options)
    weights = dict(weights)
    if config.quantizer == "gumbel":
        weights["quantize.proj.weight"] = weights["quantize.proj.weight"].then(lambda t: t.flatten(1))
    return fit(path, ImageTokenizer, config, weights, names_of(config))


def _check_codebook(path: Path, weights: Mapping[str, LazyTensor]) -> None:
    """Raise `CheckpointError` if the vectors of the codebook have another length than `post_quant_conv` takes."""
    for name in ("quantize.embed.weight", "quantize.embedding.weight"):
        if name in weights and "post_quant_conv.weight" in weights:
            found, expected = weights[name].shape, weights["post_quant_conv.weight"].shape[1:2]
            if found[1:] != expected:
                raise CheckpointError(f"{path}: {name} has shape {found}; post_quant_conv implies (..., {expected[0]})")


def _describe(path: Path, weights: Mapping[str, LazyTensor], **options: Any) -> ImageTokenizerConfig:
    def shape(name: str, num_axes: int) -> tuple[int, ...]:
        if name not in weights or len(weights[name].shape) != num_axes:
            raise CheckpointError(f"{path} has no {name} with {num_axes} axes, which a VQGAN has")
        return weights[name].shape

    levels = {int(match[1]) for name in weights if (match := re.match(r"decoder\.up\.(\d+)\.", name))}
    if levels != {*range(len(levels))}:
        raise CheckpointError(f"{path} lacks a level of decoder.up: it has {sorted(levels)[:20]}")
    blocks = {match[1] for name in weights if (match := re.match(r"decoder\.up\.0\.block\.(\d+)\.norm1\.", name))}
    codebook = "quantize.embed.weight" if "quantize.proj.weight" in weights else "quantize.embedding.weight"
    codebook_size, codebook_dim = shape(codebook, 2)
    has_encoder = any(name.startswith("encoder.") for name in weights)
    out_channels = shape("decoder.conv_out.weight", 4)[0]
    if out_channels not in (3, 12):
        raise CheckpointError(f"{path} draws {out_channels} channels; expected 3, or 12 of a wavelet head")
    z_channels = shape("decoder.conv_in.weight", 4)[1]
    return ImageTokenizerConfig(
        widths=tuple(shape(f"decoder.up.{level}.block.0.conv1.weight", 4)[0] for level in sorted(levels)),
        base_width=shape("encoder.conv_in.weight", 4)[0] if has_encoder else None,
        num_res_blocks=len(blocks) - 1,
        attention_levels=tuple(level for level in sorted(levels) if f"decoder.up.{level}.attn.0.q.weight" in weights),
        middle_attention="decoder.mid.attn_1.q.weight" in weights,
        encoder_middle_attention=not has_encoder or "encoder.mid.attn_1.q.weight" in weights,
        resample_with_conv=len(levels) == 1 or "decoder.up.1.upsample.conv.weight" in weights,
        wavelet_head=out_channels == 12,
        decode_only=not has_encoder,
        quantizer="gumbel" if "quantize.proj.weight" in weights else "nearest",
        z_channels=z_channels,
        double_z=has_encoder and shape("encoder.conv_out.weight", 4)[0] == 2 * z_channels,
        codebook_size=codebook_size,
        codebook_dim=codebook_dim,
        **options,
    )


def names_of(config: ImageTokenizerConfig) -> dict[str, str]:
    """Our names of a VQGAN's weights -> taming-transformers', for a `patch_size` of 1, since that project has no
    patches. The weights that find alpha, which it has not either, keep their names."""
    with torch.device("meta"):
        ours = ImageTokenizer(config).state_dict()
    modules = dict(_modules(config))
    return {name: name if name.startswith("matting.") else _translate(name, modules) for name in ours}


def _translate(name: str, modules: Mapping[str, str]) -> str:
    head, tail = name, ""
    while head not in modules:
        head, _, leaf = head.rpartition(".")
        assert head, f"{name} has no counterpart"
        tail = f".{LEAVES.get(leaf, leaf)}{tail}"
    return modules[head] + tail


def _modules(config: ImageTokenizerConfig) -> Iterator[tuple[str, str]]:
    """Our names of modules, in the order in which `dalle.vq.vqgan` builds them, and taming-transformers' names."""
    last = len(config.widths) - 1

    def level_of(side: str, group: str, start: int, level: int, num_blocks: int) -> Iterator[tuple[str, str]]:
        for i in range(num_blocks):
            yield f"{side}.{start}", f"{side}.{group}.{level}.block.{i}"
            start += 1
            if level in config.attention_levels:
                yield f"{side}.{start}", f"{side}.{group}.{level}.attn.{i}"
                start += 1

    def middle(side: str, at: int, *, attention: bool) -> Iterator[tuple[str, str]]:
        for i, name in enumerate(["block_1", "attn_1", "block_2"] if attention else ["block_1", "block_2"]):
            yield f"{side}.{at}.{i}", f"{side}.mid.{name}"

    def length(level: int, num_blocks: int) -> int:
        return num_blocks * (1 + (level in config.attention_levels))

    if not config.decode_only:
        yield "encoder.1", "encoder.conv_in"
        at = 2
        for level in range(last + 1):
            yield from level_of("encoder", "down", at, level, config.num_res_blocks)
            at += length(level, config.num_res_blocks)
            if level < last:
                yield f"encoder.{at}", f"encoder.down.{level}.downsample"
                at += 1
        yield from middle("encoder", at, attention=config.middle_attention and config.encoder_middle_attention)
        yield f"encoder.{at + 1}", "encoder.norm_out"
        yield f"encoder.{at + 3}", "encoder.conv_out"
        yield f"encoder.{at + 4}", "quant_conv"
    at = 0
    if config.z_channels is not None:
        yield "decoder.0", "post_quant_conv"
        at = 1
    yield f"decoder.{at}", "decoder.conv_in"
    yield from middle("decoder", at + 1, attention=config.middle_attention)
    at += 2
    for level in reversed(range(last + 1)):
        yield from level_of("decoder", "up", at, level, config.num_res_blocks + 1)
        at += length(level, config.num_res_blocks + 1)
        if level > 0:
            yield f"decoder.{at}", f"decoder.up.{level}.upsample"
            at += 1
    yield f"decoder.{at}", "decoder.norm_out"
    yield f"decoder.{at + 2}", "decoder.conv_out"
    codebook = "embed" if config.quantizer == "gumbel" else "embedding"
    yield "quantizer.codebook", f"quantize.{codebook}.weight"
    yield "quantizer.to_logits", "quantize.proj"


def described_vqgan(
    path: Path,
    weights: Mapping[str, LazyTensor],
    config_path: Path,
    described: Any,
    *,
    out_channels: int = 3,
    **options: Any,
) -> Part:
    """The image tokenizer as `vqgan_part` returns it, checked against a configuration file.

    described: the file's content under taming-transformers' names: `ddconfig`, and `embed_dim` and `n_embed`. The image
        size is taken from it; everything else is compared with the weights.
    out_channels: channels of the decoder's output: 3, or 12 with a wavelet head.
    Raises `CheckpointError` as `vqgan_part` does, if file and weights contradict each other, and for a network that
    does not decode to pictures.
    """
    if not isinstance(described, dict) or type(described.get("resolution")) is not int:
        raise CheckpointError(f"{config_path} does not describe a VQGAN with a resolution")
    if described.get("give_pre_end"):
        raise CheckpointError(f"{config_path} has give_pre_end: this network outputs hidden states instead of pictures")
    for name, expected in (("in_channels", 3), ("out_ch", out_channels)):
        if described.get(name, expected) != expected:
            raise CheckpointError(f"{config_path} has {name} {described[name]}; expected {expected} for colours")
    part = vqgan_part(path, weights, image_size=described["resolution"], **options)
    assert isinstance(part.config, ImageTokenizerConfig)
    _check_described(config_path, part.config, {**described, "out_ch": out_channels}, path)
    return part


def _check_described(path: Path, config: ImageTokenizerConfig, described: Mapping[str, Any], weights: Path) -> None:
    resolutions = {config.image_size >> level: level for level in range(len(config.widths))}
    sizes = described.get("attn_resolutions")
    levels = None if sizes is None else sorted({resolutions[size] for size in sizes if size in resolutions})
    has_widths = {"ch", "ch_mult"} <= {*described}
    widths = [described["ch"] * times for times in described["ch_mult"]] if has_widths else None
    facts = {
        "ch": (described.get("ch"), config.base_width),
        "ch * ch_mult": (widths, list(config.widths)),
        "num_res_blocks": (described.get("num_res_blocks"), config.num_res_blocks),
        "levels of attn_resolutions": (levels, list(config.attention_levels)),
        "out_ch": (described["out_ch"], 12 if config.wavelet_head else 3),
        "z_channels": (described.get("z_channels"), config.z_channels),
        "double_z": (described.get("double_z"), config.double_z),
        "embed_dim": (described.get("embed_dim"), config.codebook_dim),
        "n_embed": (described.get("n_embed"), config.codebook_size),
    }
    agree(path, facts, weights)
