"""Family `dalle-pytorch`: checkpoints of lucidrains/DALLE-pytorch.

Files: `vae.pt`, or `dalle.pt`, which contains its image tokenizer under the prefix `vae.`; for text, a tokenizer's file
in the same folder with as many ids as the decoder.
Networks: DiscreteVAE and, in `dalle.pt`, also OpenAI's dVAE and taming-transformers' VQGAN; decoders of the versions
from 0.9 on, with full, axial or convolutional attention, rotary or learned positions, token shift and shared layers.
Not read: reversible layers (they keep two streams, another network under the same names); sparse attention (DeepSpeed's
kernels choose the blocks at random, and the file does not have them); gMLP layers (they have no attention); versions
before 0.9 (their text has no ids for padding, which needs another mask).

Sizes of the two downloaded image tokenizers are read from shapes, since the file has no parameters for them. In the
decoder, names of layers grow with each wrapper, and every layer that shares weights stores them; the table of rotary
positions is computed here and compared with the stored one. Differences between versions are resolved by the version
number in the file or, without one, by the names.
"""

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dalle.checkpoint.weights import LazyTensor, Part
from dalle.decoder.config import DecoderConfig
from dalle.decoder.sampling import SamplingParams
from dalle.errors import CheckpointError
from dalle.interop.decoders import ForeignWeights, decoder_part, grid_side
from dalle.interop.family import Converted, Family, Source, fit, state_dict, take
from dalle.interop.openai_dvae import dvae_part
from dalle.interop.tokenizer_files import read_tokenizer
from dalle.interop.vqgan import inference_weights, vqgan_part
from dalle.text.padded import PaddedTokenizer
from dalle.transformer.masks import Pattern
from dalle.transformer.positions import rotary_text_image_table
from dalle.vq.discrete_vae import DiscreteVAE, DiscreteVAEConfig

__all__ = ["FAMILY", "names_of"]

DEFAULT_IMAGE_SIZE = 256
"""Pixels on a side for the image tokenizers that DALLE-pytorch downloads."""
TRAINING_ONLY = {"temperature", "straight_through", "reinmax", "kl_div_loss_weight", "smooth_l1_loss"}
"""Parameters of a DiscreteVAE that have no effect after training."""

PATTERNS: dict[str, Pattern] = {
    "full": "causal",
    "axial_row": "row",
    "axial_col": "column",
    "conv_like": "convolution",
}
CAUSAL_WINDOWS = (1, 5)
"""The version since which `conv_like` attends to the window that ends at a code; before, to the window around it."""
KEPT_SHARE = 1 - 0.9
"""Share of the joint vocabulary that the project's programs keep in sampling (their top-k)."""


def recognise(source: Source) -> str | None:
    for path in _checkpoints(source):
        return f"{path} has hparams and weights"
    return None


def convert(source: Source) -> Converted:
    found = _checkpoints(source)
    # dalle.pt contains the content of vae.pt
    whole = [path for path in found if "vae_params" in source.torch(path)]
    path = source.only(whole or found, "vae.pt or dalle.pt", "the model")
    content = source.torch(path)
    part = _image_tokenizer(path, content, image_size=DEFAULT_IMAGE_SIZE)
    decoder, text_tokenizer, sampling, derived = None, None, None, []
    if "vae_params" in content:
        decoder = _decoder(path, content)
        config = decoder.config
        assert isinstance(config, DecoderConfig)
        text_tokenizer = _text_tokenizer(source, config)
        if text_tokenizer is None:
            derived.append(f"no text tokenizer of {config.layout.num_text_ids} ids lies beside {path.name}: no prompts")
        kept = int(KEPT_SHARE * (config.text_vocab_size + config.codebook_size))
        sampling = SamplingParams(top_k=max(1, kept))
    ignored = sorted({*map(str, content)} & {"epoch", "opt_state", "scheduler_state"})
    return Converted(
        image_tokenizer=part,
        decoder=decoder,
        text_tokenizer=text_tokenizer,
        sampling=sampling,
        files={"image_tokenizer": path, "decoder": path},
        about={
            "licence": "code MIT; the project publishes no weights: ask whoever trained these",
            "project": "https://github.com/lucidrains/DALLE-pytorch",
        },
        ignored=(f"state of training: {', '.join(ignored)}",) if ignored else (),
        derived=tuple(derived),
    )


def _checkpoints(source: Source) -> list[Path]:
    return [
        path
        for path in source.torch_files("*.pt", "*.pth")
        if isinstance(content := source.torch(path), dict) and {"hparams", "weights"} <= {*content}
    ]


def _image_tokenizer(path: Path, content: Mapping[str, Any], *, image_size: int) -> Part:
    """The image tokenizer of `vae.pt` or `dalle.pt`; `image_size` is for kinds that have none in the file."""
    weights = state_dict(path, content, "weights")
    if "vae_params" not in content:
        return _discrete_vae(path, content["hparams"], weights)
    inside = take(weights, "vae.")
    kind = content.get("vae_class_name") or _vae_class(content, inside)
    if kind == "DiscreteVAE":
        return _discrete_vae(path, content["vae_params"], inside)
    if kind == "OpenAIDiscreteVAE":
        halves = {"enc.": "encoder.", "dec.": "decoder."}
        named = {long + name: value for short, long in halves.items() for name, value in take(inside, short).items()}
        return dvae_part(path, named, image_size=image_size)
    if kind in ("VQGanVAE", "VQGanVAE1024"):
        needed, _ = inference_weights(take(inside, "model."))
        return vqgan_part(path, needed, image_size=image_size)
    raise CheckpointError(
        f"{path} has an image tokenizer of class {kind!r}; known are DiscreteVAE, OpenAIDiscreteVAE, VQGanVAE"
    )


def _vae_class(content: Mapping[str, Any], weights: Mapping[str, LazyTensor]) -> str:
    """The class of the image tokenizer in a file of an older version, which names no class and has parameters for a
    DiscreteVAE only."""
    if content["vae_params"] is not None:
        return "DiscreteVAE"
    return "VQGanVAE" if any(name.startswith("model.") for name in weights) else "OpenAIDiscreteVAE"


def _discrete_vae(path: Path, params: Any, weights: Mapping[str, LazyTensor]) -> Part:
    if not isinstance(params, dict):
        raise CheckpointError(f"{path} has no parameters of its DiscreteVAE")
    known = {
        "image_size": "image_size",
        "num_layers": "num_layers",
        "num_tokens": "codebook_size",
        "codebook_dim": "codebook_dim",
        "hidden_dim": "width",
        "num_resnet_blocks": "num_res_blocks",
    }
    unknown = {*params} - {*known, *TRAINING_ONLY, "channels", "normalization"}
    if unknown or params.get("channels", 3) != 3:
        found = f"{', '.join(sorted(unknown))}" if unknown else f"{params['channels']} channels"
        raise CheckpointError(f"{path} has a DiscreteVAE with {found}, which is not supported")
    values: dict[str, Any] = {ours: params[theirs] for theirs, ours in known.items() if theirs in params}
    if "normalization" in params:
        mean, std = params["normalization"] or ((0.0,) * 3, (1.0,) * 3)
        values |= {"pixel_mean": [*mean][:3], "pixel_std": [*std][:3]}
    config = DiscreteVAEConfig.from_dict(values)
    num_blocks = sum(name.startswith("encoder.") and name.endswith(".net.0.weight") for name in weights)
    if config.num_res_blocks != num_blocks:
        raise CheckpointError(f"{path} says num_resnet_blocks {config.num_res_blocks}; its weights have {num_blocks}")
    return fit(path, DiscreteVAE, config, weights, names_of(config))


def names_of(config: DiscreteVAEConfig) -> dict[str, str]:
    """Our names of a DiscreteVAE's weights -> DALLE-pytorch's."""
    num_layers, num_res = config.num_layers, config.num_res_blocks
    enter = 1 if num_res else 0
    modules = {
        f"encoder.{2 * num_layers + num_res}": f"encoder.{num_layers + num_res}",
        f"decoder.{enter + num_res + 2 * num_layers}": f"decoder.{enter + num_res + num_layers}",
    }
    if enter:
        modules["decoder.0"] = "decoder.0"
    for i in range(num_layers):
        modules[f"encoder.{2 * i}"] = f"encoder.{i}.0"
        modules[f"decoder.{enter + num_res + 2 * i}"] = f"decoder.{enter + num_res + i}.0"
    for i in range(num_res):
        for j in range(3):
            modules[f"encoder.{2 * num_layers + i}.conv{j + 1}"] = f"encoder.{num_layers + i}.net.{2 * j}"
            modules[f"decoder.{enter + i}.conv{j + 1}"] = f"decoder.{enter + i}.net.{2 * j}"
    names = {f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, theirs in modules.items() for leaf in ("weight", "bias")}
    return names | {"codebook": "codebook.weight"}


def _decoder(path: Path, content: Mapping[str, Any]) -> Part:
    params: dict[str, Any] = content["hparams"]
    inside = {
        name.replace("image_pos_emb.weights.", "image_pos_emb.weights_"): value  # as in newer versions
        for name, value in state_dict(path, content, "weights").items()
        if not name.startswith("vae.")
    }
    theirs = ForeignWeights(path, inside)
    theirs.ignore("logits_mask")  # versions before 0.10 stored it
    if params.get("reversible"):
        raise CheckpointError(f"{path} has reversible layers, which are not read: they are another network")
    patterns = _patterns(path, params.get("attn_types") or ("full",))
    depth = theirs.count(r"transformer\.layers\.layers\.(\d+)\.")
    theirs.check_width("to_logits.0.weight", "text_emb.weight", "image_emb.weight", "text_pos_emb.weight")
    width = theirs.shape("to_logits.0.weight", 1)[0]
    is_rotary = "transformer.pos_emb" in theirs
    text_length = params.get("text_seq_len", 256)
    num_codes = (
        _num_rotary(inside["transformer.pos_emb"]) - text_length - 1
        if is_rotary
        else theirs.shape("image_pos_emb.weights_0", 4)[1] * theirs.shape("image_pos_emb.weights_1", 4)[2]
    )
    side = grid_side(path, num_codes)
    num_heads, head_dim = params.get("heads", 8), params.get("dim_head", 64)
    blocks = [_block_names(path, inside, i) for i in range(depth)]
    tied = bool(params.get("share_input_output_emb"))
    num_text = params.get("num_text_tokens", 10000) + text_length
    if not tied and (found := theirs.shape("text_emb.weight")[0]) != num_text:
        raise CheckpointError(
            f"{path} has {found} text embeddings; expected num_text_tokens and one for the padding at each of "
            f"text_seq_len positions, {num_text}. Versions before 0.9 have none for padding and are not read"
        )
    num_outputs = theirs.shape("to_logits.1.weight")[0]
    if not _has_causal_windows(content, blocks[0]):
        patterns = tuple("convolution_centered" if pattern == "convolution" else pattern for pattern in patterns)
    config = DecoderConfig(
        text_vocab_size=num_text,
        text_length=text_length,
        codebook_size=num_outputs - num_text,
        grid_height=side,
        grid_width=side,
        pad_id=0,
        attend_padding=True,
        unique_padding=True,
        begin_ids=(0,),
        width=width,
        depth=depth,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        mlp="geglu",
        mlp_width=theirs.shape(f"{blocks[0].mlp}.net.3.weight")[1],
        norm="layernorm",
        qk_norm=False,
        sandwich_norm=f"{blocks[0].branches[0]}.fn.norm_out.weight" in theirs,
        divide_max=bool(params.get("stable")),
        layer_scale=1.0,
        positions="rotary_text_image" if is_rotary else "axial",
        rotary_base=10000.0,
        rotary_values=is_rotary,
        rotary_dtype=_rotary_dtype(inside["transformer.pos_emb"]) if is_rotary else "float32",
        token_shift=blocks[0].shifted,
        patterns=patterns,
        shared_attention=tuple(params.get("shared_attn_ids") or ()),
        shared_mlp=tuple(params.get("shared_ff_ids") or ()),
        output_bias=True,
        mlp_bias=True,
        head_bias=True,
    )
    ours = {**theirs.linear("final_norm", "to_logits.0"), **theirs.linear("head", "to_logits.1")}
    if tied:
        theirs.ignore(r"(text|image)_emb\.linear\.(weight|bias)")
        ours["embedding.weight"] = theirs.take("to_logits.1.weight")
    else:
        ours["embedding.weight"] = theirs.take("text_emb.weight", "image_emb.weight")
    if is_rotary:
        _check_rotary(path, theirs.constant("transformer.pos_emb"), config)
    else:
        ours["position_embedding.text"] = theirs.take("text_pos_emb.weight")
        for name, axis in (("rows", 0), ("columns", 1)):
            ours[f"position_embedding.{name}"] = theirs.take(f"image_pos_emb.weights_{axis}", then=_rows_of_width)
    for i, block in enumerate(blocks):
        here = f"blocks.{i}"
        for branch, name in zip(block.branches, ("attention", "mlp"), strict=True):
            ours |= theirs.linear(f"{here}.{name}_norm", f"{branch}.fn.norm")
            if config.sandwich_norm:
                ours |= theirs.linear(f"{here}.after_{name}.0", f"{branch}.fn.norm_out")
            scale = f"{here}.after_{name}.{1 if config.sandwich_norm else 0}.scale"
            ours[scale] = theirs.take(f"{branch}.scale", then=torch.flatten)
        ours |= theirs.linear(f"{here}.attention.qkv", f"{block.attention}.to_qkv")
        ours |= theirs.linear(f"{here}.attention.output", f"{block.attention}.to_out.0")
        ours |= theirs.linear(f"{here}.mlp.output", f"{block.mlp}.net.3")
        for leaf in ("weight", "bias"):  # the gate is the second half there and the first half here
            ours[f"{here}.mlp.input.{leaf}"] = theirs.take(f"{block.mlp}.net.0.{leaf}", then=_halves_swapped)
    return decoder_part(theirs, config, ours)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Block:
    """Names under which a block's weights are stored: its two branches, and the layers inside them."""

    branches: tuple[str, str]
    attention: str
    mlp: str

    @property
    def shifted(self) -> bool:
        """Whether the block has token shift, which adds one wrapper, or two in the project's newer versions."""
        return self.mlp.count(".fn") > 2

    @property
    def cached(self) -> bool:
        """Whether attention has the wrapper for the cache, which version 1.3 introduced and the MLP does not have."""
        return self.attention.count(".fn") > self.mlp.count(".fn")


def _block_names(path: Path, weights: Mapping[str, LazyTensor], layer: int) -> _Block:
    branches = (f"transformer.layers.layers.{layer}.0", f"transformer.layers.layers.{layer}.1")
    found = []
    for branch, leaf in zip(branches, ("to_qkv.weight", "net.0.weight"), strict=True):
        pattern = re.compile(rf"({re.escape(branch)}(?:\.fn)+)\.{re.escape(leaf)}")
        names = [match[1] for name in weights if (match := pattern.fullmatch(name))]
        if len(names) != 1:
            raise CheckpointError(f"{path} has no {leaf} in {branch}; layers of that kind are not read")
        found += names
    return _Block(branches=branches, attention=found[0], mlp=found[1])


def _patterns(path: Path, kinds: Any) -> tuple[Pattern, ...]:
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if unknown := [kind for kind in kinds if kind not in PATTERNS]:
        raise CheckpointError(f"{path} has attention of type {unknown[0]!r}; supported are {', '.join(PATTERNS)}")
    return tuple(PATTERNS[kind] for kind in kinds)


def _has_causal_windows(content: Mapping[str, Any], block: _Block) -> bool:
    """Whether `conv_like` attends to the window that ends at a code: by the file's version or, in a file without one,
    by the names of the weights."""
    version = content.get("version")
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2]) if isinstance(version, str) else ()
    return numbers >= CAUSAL_WINDOWS if numbers else block.cached


def _halves_swapped(weight: Tensor) -> Tensor:
    return torch.cat(weight.chunk(2)[::-1])


def _rows_of_width(table: Tensor) -> Tensor:
    """(1, h, 1, D) or (1, 1, w, D) -> (h or w, D)."""
    return table.reshape(-1, table.shape[-1])


def _num_rotary(table: LazyTensor) -> int:
    """The number of positions of the rotary table: text, <BOS> and codes. Up to version 1.1 the table has 4 axes and
    lacks the last position, from which nothing is predicted."""
    return table.shape[-2] + (1 if len(table.shape) == 4 else 0)


def _rotary_dtype(table: LazyTensor) -> Literal["float32", "float16", "bfloat16"]:
    """The dtype of the stored angles: those of a file in half precision are rounded, and the project uses them so.
    Angles in float64 were computed in float32."""
    return "float16" if table.dtype == torch.float16 else "bfloat16" if table.dtype == torch.bfloat16 else "float32"


def _check_rotary(path: Path, stored: Tensor, config: DecoderConfig) -> None:
    """Compare the stored table, in which each angle is repeated and zeros are left out, with the computed one."""
    angles = stored.reshape(-1, stored.shape[-1])[:, ::2].float()
    found = torch.stack([angles.cos(), angles.sin()], dim=-1)
    dtype: torch.dtype = getattr(torch, config.rotary_dtype)
    table = rotary_text_image_table(config.layout, config.head_dim, config.rotary_base, dtype)
    expected = table[: len(found), : found.shape[1]]
    # at position 8192 the last bit of a frequency is 5e-4 of an angle, and machines differ in it
    if found.shape != expected.shape or not (found - expected).abs().max() < 1e-3:
        raise CheckpointError(f"{path}: its transformer.pos_emb is not what the project computes for these sizes")


def _text_tokenizer(source: Source, config: DecoderConfig) -> PaddedTokenizer | None:
    """The text tokenizer with as many ids as the decoder, in the given folder or beside the given file; failing that,
    CLIP's, which declares 49408 ids whatever its file has."""
    num_ids, is_folder = config.layout.num_text_ids, source.path.is_dir()
    candidates = {}
    for path in source.nearest(lambda place: place.find("*.txt", "*.json", "*.model"), levels=0 if is_folder else 1):
        # files beside the given one may be unrelated, and need not be complete
        with contextlib.nullcontext() if is_folder else contextlib.suppress(CheckpointError):
            if (tokenizer := read_tokenizer(source, path, config.text_length)) is not None:
                candidates[path] = tokenizer
    fitting = [path for path, tokenizer in candidates.items() if tokenizer.vocab_size == num_ids]
    if not fitting:
        fitting = [path for path, one in candidates.items() if one.config.clean == "clip" and one.vocab_size <= num_ids]
    if fitting:
        return candidates[source.only(fitting, "tokenizer.json", "the text tokenizer")]
    if candidates and is_folder:
        sizes = ", ".join(f"{path} {one.vocab_size}" for path, one in candidates.items())
        raise CheckpointError(
            f"the decoder was trained with {num_ids} text ids, and no text tokenizer has that number: {sizes}"
        )
    return None


FAMILY = Family(
    name="dalle-pytorch",
    expects="vae.pt or dalle.pt, or a folder with one of them",
    recognise=recognise,
    convert=convert,
)
