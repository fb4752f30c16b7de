"""Small models of every shape that the tests share: decoders, and whole model directories."""

from pathlib import Path
from typing import Any

import torch

from dalle.checkpoint import save_checkpoint
from dalle.checkpoint.vocabulary import Style, Vocabulary
from dalle.decoder.config import DecoderConfig
from dalle.decoder.decoder import Decoder
from dalle.decoder.sampling import SamplingParams
from dalle.text.bpe import TextTokenizer
from dalle.vq.vqgan import ImageTokenizer, ImageTokenizerConfig

DOT = "UklGRjQAAABXRUJQVlA4ICgAAABwAQCdASoIAAgAAsBMJaACdAFAAAD+645eRzvSpVf/KV/7Gv8FeVAA"
"""A WebP file of 8 x 8 pixels."""

VOCABULARY = Vocabulary(
    description="Pandas and fish: name one, then a style.",
    examples=("a red panda", "two blue fish"),
    styles=(Style(name="flat", phrase="flat style", picture=DOT), Style(name="round", phrase="round icon")),
    concepts=("blue fish", "fish", "red fish", "red panda"),
    words=("bamboo",),
)
"""What a small model is said to know."""

CAPTIONS = ["a red panda", "a green heart", "two blue fish in the sea", "flag of nowhere", "smiling face, emoji style"]


def decoder_config(**changes: object) -> DecoderConfig:
    """A decoder small enough to run a thousand times, over rows of 12 text positions and 4 x 4 codes."""
    values: dict[str, object] = {
        "text_vocab_size": 300,
        "text_length": 12,
        "codebook_size": 32,
        "grid_height": 4,
        "grid_width": 4,
        "width": 32,
        "depth": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "mlp_width": 48,
    }
    return DecoderConfig(**(values | changes))  # type: ignore[arg-type]


FAMILIES: dict[str, dict[str, object]] = {
    "padding on the right": {"attend_padding": True, "positions": "learned", "norm": "layernorm", "mlp": "gelu"},
    "token shift": {"attend_padding": True, "unique_padding": True, "begin_ids": (0,), "token_shift": True}
    | {"positions": "rotary_text_image", "rotary_values": True, "layer_scale": 0.5, "divide_max": True, "depth": 3}
    | {"patterns": ("row", "column", "convolution"), "shared_attention": (0, 1, 0), "shared_mlp": (0, 0, 1)},
    "masks without a begin": {"attend_padding": True, "unique_padding": True, "begin_ids": (2,), "pattern_shift": 1}
    | {"patterns": ("local", "convolution_wrapped"), "convolution_size": 3, "sandwich_norm": True, "head_norm": True}
    | {"positions": "axial"},
    "classes": {"text_length": 1, "attend_padding": True, "positions": "rotary_2d_image", "text_head": False},
    "features": {"text_vocab_size": 2, "feature_width": 6, "positions": "rotary_2d_image", "text_head": False},
}
"""Decoders with the rows and options of other projects."""


def lively_decoder(**changes: object) -> Decoder:
    """A decoder with weights large enough that its codes depend on everything before them."""
    decoder = Decoder(decoder_config(**changes)).eval()
    for parameter in decoder.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return decoder


def write_model(folder: Path, **changes: Any) -> Path:
    """Write a model directory with lively weights, named as its folder; `changes` are of its image tokenizer."""
    torch.manual_seed(0)
    text = TextTokenizer.train(CAPTIONS, vocab_size=300, text_length=12, lowercase=True)
    values: dict[str, Any] = {"image_size": 16, "patch_size": 2, "widths": (8, 16), "num_res_blocks": 1}
    values |= {"norm_groups": 4, "codebook_size": 32, "codebook_dim": 4}
    image = ImageTokenizer(ImageTokenizerConfig(**(values | changes)))
    torch.nn.init.normal_(image.quantizer.codebook)
    if image.config.channels == 4:
        torch.nn.init.normal_(image.decoder.get_parameter(f"{len(image.decoder) - 2}.weight"), std=0.4)
    save_checkpoint(
        folder,
        name=folder.name,
        image_tokenizer=image,
        text_tokenizer=text,
        decoder=lively_decoder(text_vocab_size=text.vocab_size),
        about={"licence": "none"},
        sampling=SamplingParams(guidance_scale=2.0, top_k=16),
    )
    return folder
