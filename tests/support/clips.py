"""Small CLIP models and classifiers, and weights of other projects' Vision Transformers under our names."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dalle.clip.clip import Clip
from dalle.clip.config import ClipConfig, TextConfig, VisionConfig
from dalle.text.bpe import TextTokenizer
from tests.support.models import CAPTIONS

__all__ = ["clip_config", "renamed", "renamed_transformers", "small_clip", "text_tokenizer", "vision_config"]

TIMM = {
    "patch_embed.proj.": "patches.",
    "norm.": "final_norm.",
    "fc_norm.": "final_norm.",
    "blocks.": "encoder.blocks.",
    "norm1.": "attention_norm.",
    "attn.qkv.": "attention.qkv.",
    "attn.proj.": "attention.output.",
    "norm2.": "mlp_norm.",
    "mlp.fc1.": "mlp.input.",
    "mlp.fc2.": "mlp.output.",
}
"""Parts of names in timm, and here."""
TRANSFORMERS = {
    "embeddings.cls_token": "class_token",
    "embeddings.position_embeddings": "position_embedding.table",
    "embeddings.patch_embeddings.projection.": "patches.",
    "layers.": "encoder.blocks.",
    "layernorm_before.": "attention_norm.",
    "layernorm_after.": "mlp_norm.",
    "layernorm.": "final_norm.",
    "attention.o_proj.": "attention.output.",
    "mlp.fc1.": "mlp.input.",
    "mlp.fc2.": "mlp.output.",
}
"""Parts of names in transformers, and here; query, key and value are apart there."""


def vision_config(**changes: Any) -> VisionConfig:
    values: dict[str, Any] = {"image_size": 16, "patch_size": 8, "width": 24, "depth": 2, "num_heads": 3}
    return VisionConfig(**(values | {"mlp_width": 48} | changes))


def text_tokenizer() -> TextTokenizer:
    return TextTokenizer.train(CAPTIONS, vocab_size=280, text_length=24, lowercase=True)


def clip_config(tokenizer: TextTokenizer, **changes: Any) -> ClipConfig:
    text = TextConfig(
        vocab_size=tokenizer.vocab_size,
        text_length=tokenizer.text_length,
        end_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        width=16,
        depth=2,
        num_heads=2,
        mlp_width=32,
    )
    return dataclasses.replace(ClipConfig(vision=vision_config(), text=text, embedding_width=8), **changes)


def small_clip(tokenizer: TextTokenizer, **changes: Any) -> Clip:
    """A CLIP model with random weights, none of them zero."""
    torch.manual_seed(0)
    network = Clip(clip_config(tokenizer, **changes))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a Vision Transformer of timm under our names."""
    found = {}
    for name, value in weights.items():
        ours = "." + name
        for theirs, part in TIMM.items():
            ours = ours.replace(f".{theirs}", f".{part}")
        if name == "patch_embed.proj.weight":
            value = value.flatten(1)
        if name in ("cls_token", "pos_embed"):
            ours, value = {"cls_token": ".class_token", "pos_embed": ".position_embedding.table"}[name], value.squeeze()
        found[ours.removeprefix(".")] = value
    return found


def renamed_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a Vision Transformer of transformers under our names."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        ours = name
        for theirs, part in TRANSFORMERS.items():
            ours = ours.replace(theirs, part)
        value = value.flatten(1) if name.endswith("projection.weight") else value
        if match := re.search(r"attention\.([qkv])_proj\.", ours):
            ours = ours.replace(match[0], "attention.qkv.")
            found[ours] = torch.cat([found[ours], value]) if ours in found else value
        else:
            found[ours] = value.squeeze() if ours.startswith(("class_token", "position")) else value
    return found
