"""CLIP models in open_clip's layout: `open_clip_config.json`, `open_clip_model.safetensors` and CLIP's `merges.txt`.

The shape is that of CLIP's ViT models: a class token, a norm before the first block, GELU or QuickGELU, and a text
encoder with a causal mask that is read at the end of the text. Anything else is refused: other text encoders, models
with convolutions, attention pooling.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dalle.checkpoint.clip import save_clip
from dalle.checkpoint.weights import LazyTensor
from dalle.clip.clip import Clip
from dalle.clip.config import ClipConfig, TextConfig, VisionConfig
from dalle.clip.model import ClipModel
from dalle.errors import CheckpointError, ConfigError
from dalle.interop.family import Source, fit
from dalle.interop.tokenizer_files import clip_tokenizer

__all__ = ["import_open_clip", "is_open_clip", "load_open_clip"]

CONFIG_FILE, WEIGHTS_FILE, MERGES_FILE = "open_clip_config.json", "open_clip_model.safetensors", "merges.txt"
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of pixels that CLIP's models have unless their settings say otherwise."""
MODEL_KEYS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias"}
VISION_KEYS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
BLOCK = {
    "attention_norm.": "ln_1.",
    "attention.qkv.": "attn.in_proj_",
    "attention.output.": "attn.out_proj.",
    "mlp_norm.": "ln_2.",
    "mlp.input.": "mlp.c_fc.",
    "mlp.output.": "mlp.c_proj.",
}
"""Names of a block's parts here, and in open_clip."""
NAMES = {
    "vision.class_token": "visual.class_embedding",
    "vision.position_embedding.table": "visual.positional_embedding",
    "vision.patches.weight": "visual.conv1.weight",
    "vision.input_norm.": "visual.ln_pre.",
    "vision.final_norm.": "visual.ln_post.",
    "vision.encoder.blocks.": "visual.transformer.resblocks.",
    "vision_projection.weight": "visual.proj",
    "text.embedding.weight": "token_embedding.weight",
    "text.position_embedding.table": "positional_embedding",
    "text.final_norm.": "ln_final.",
    "text.encoder.blocks.": "transformer.resblocks.",
    "text_projection.weight": "text_projection",
    "log_scale": "logit_scale",
    "bias": "logit_bias",
}
"""Names of weights here, or how they begin, and in open_clip."""


def is_open_clip(path: str | Path) -> bool:
    """Whether a folder has settings of open_clip."""
    return (Path(path) / CONFIG_FILE).is_file()


def import_open_clip(folder: str | Path, out: str | Path, *, overwrite: bool = False) -> ClipModel:
    """Convert a CLIP model in open_clip's layout to a CLIP directory `out`, whose name becomes the model's. Returns the
    model. Raises as `load_open_clip` and `save_clip` do, and leaves `out` unchanged then."""
    clip, out = load_open_clip(folder), Path(out)
    save_clip(
        out,
        name=out.resolve().name,
        network=clip.network,
        text_tokenizer=clip.text_tokenizer,
        about=clip.about,
        overwrite=overwrite,
        sources=[Path(folder)],
    )
    return clip


def load_open_clip(folder: str | Path) -> ClipModel:
    """Read a CLIP model in open_clip's layout, as Hugging Face's hub has it. No code in the files is run.

    Raises `CheckpointError`, naming the file, for a model of another shape, and for weights or settings that are
    unknown or missing.
    """
    source = Source(folder)
    path = source.one(CONFIG_FILE, "settings of open_clip")
    weights_path = source.one(WEIGHTS_FILE, "weights of open_clip")
    merges = source.one(MERGES_FILE, "merges of CLIP's tokenizer")
    weights = dict(source.tensors(weights_path))
    try:
        config = _config(source.json(path), weights)
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} does not describe a CLIP model with a Vision Transformer: {error}") from error
    tokenizer = clip_tokenizer(source.text(merges), config.text.text_length)
    if tokenizer.vocab_size != config.text.vocab_size:
        raise CheckpointError(
            f"{merges} gives {tokenizer.vocab_size} ids, and {path} has {config.text.vocab_size}: they belong to "
            "different models"
        )
    return ClipModel(
        name=Path(folder).resolve().name,
        network=_network(weights_path, config, weights),
        text_tokenizer=tokenizer,
        about={"family": "open_clip"},
    )


def _config(content: Mapping[str, Any], weights: Mapping[str, LazyTensor]) -> ClipConfig:
    model, preprocessing = content["model_cfg"], content.get("preprocess_cfg", {})
    vision, text = model["vision_cfg"], model["text_cfg"]
    for name, found, known in (
        ("model_cfg", model, MODEL_KEYS),
        ("vision_cfg", vision, VISION_KEYS),
        ("text_cfg", text, TEXT_KEYS),
    ):
        if unknown := sorted({*found} - known):
            raise ValueError(f"its {name} has {unknown[0]}, which is not supported")
    shared: dict[str, Any] = {"mlp": "gelu_sigmoid" if model.get("quick_gelu", False) else "gelu"}

    def sizes(one: Mapping[str, Any]) -> dict[str, Any]:
        width = one["width"]
        return shared | {"width": width, "depth": one["layers"], "mlp_width": int(width * one.get("mlp_ratio", 4.0))}

    return ClipConfig(
        vision=VisionConfig(
            **sizes(vision),
            num_heads=vision["width"] // vision.get("head_width", 64),
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            patch_bias=False,
            input_norm=True,
            pixel_mean=tuple(preprocessing.get("mean", OPENAI_MEAN)),
            pixel_std=tuple(preprocessing.get("std", OPENAI_STD)),
        ),
        text=TextConfig(
            **sizes(text),
            num_heads=text["heads"],
            vocab_size=text["vocab_size"],
            text_length=text["context_length"],
            end_id=text["vocab_size"] - 1,
            causal=True,
            attend_padding=True,
        ),
        embedding_width=model["embed_dim"],
        loss="sigmoid" if "logit_bias" in weights else "softmax",
    )


def _network(path: Path, config: ClipConfig, weights: dict[str, LazyTensor]) -> Clip:
    """The network with these weights. CLIP's projections are multiplied from the other side, and its patches are cut by
    a convolution."""
    for name in ("visual.proj", "text_projection"):
        if name in weights:
            weights[name] = weights[name].then(lambda t: t.T.contiguous())
    if (patches := weights.get("visual.conv1.weight")) is not None:
        weights["visual.conv1.weight"] = patches.then(lambda t: t.flatten(1))
    weights.setdefault("logit_bias", LazyTensor.of(torch.tensor(0.0)))
    with torch.device("meta"):
        names = {ours: _foreign(ours) for ours in Clip(config).state_dict()}
    part = fit(path, Clip, config, weights, names)
    network = Clip(config)
    network.load_state_dict({name: tensor.load().float() for name, tensor in part.weights.items()})
    return network.eval()


def _foreign(name: str) -> str:
    """The name in open_clip of a weight."""
    for ours, theirs in NAMES.items():
        if name == ours or (ours.endswith(".") and name.startswith(ours)):
            rest = name.removeprefix(ours)
            for part, their_part in BLOCK.items() if ".blocks." in ours else ():
                rest = rest.replace(f".{part}", f".{their_part}")
            return theirs + rest
    raise AssertionError(name)
