"""Presets by name: functions that return a whole configuration. `--help` of a stage lists them."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import tyro

from dalle.config import Config
from dalle.decoder.config import DecoderConfig
from dalle.vq.vqgan import ImageTokenizerConfig
from training.command import mistakes_in_words
from training.decoder import DecoderTrainingConfig
from training.loop import LoopConfig
from training.vq import VQTrainingConfig

__all__ = ["DECODER_PRESETS", "VQ_PRESETS", "run_preset"]


def vq_emoji() -> VQTrainingConfig:
    """256 codes for a 128 x 128 picture with transparency: the default model's image tokenizer."""
    return VQTrainingConfig(
        run="runs/vq-emoji",
        model=ImageTokenizerConfig(
            channels=4,
            patch_size=4,
            widths=(64, 128),
            decoder_widths=(96, 192),
            num_res_blocks=1,
            norm_groups=16,
            encoder_middle_attention=False,
            blank_code=0,
        ),
        loop=LoopConfig(steps=8000, batch_size=32, average_decay=0.998, look_steps=500, save_minutes=3.0),
    )


def vq_tiny() -> VQTrainingConfig:
    """A minute on one core: to see that everything runs, not to see pictures."""
    return VQTrainingConfig(
        run="runs/vq-tiny",
        model=ImageTokenizerConfig(
            patch_size=8, widths=(16, 32), num_res_blocks=1, norm_groups=8, codebook_size=64, codebook_dim=8
        ),
        loop=LoopConfig(steps=60, batch_size=8, warmup_steps=10, look_steps=30, log_steps=5),
        unquantized_steps=20,
    )


def _shape(**values: Any) -> DecoderConfig:
    """A decoder's shape, but for what stage 2 reads off the tokenizers."""
    from_tokenizers: dict[str, Any] = {
        "text_vocab_size": 1,
        "text_length": 1,
        "codebook_size": 1,
        "grid_height": 1,
        "grid_width": 1,
    }
    return DecoderConfig(**from_tokenizers, **values)


def decoder_emoji() -> DecoderTrainingConfig:
    """The default model's decoder: 15 million parameters over rows of 256 codes."""
    return DecoderTrainingConfig(
        run="runs/decoder-emoji",
        embedding_weight=0.5,
        micro_batch_size=16,
        model=_shape(width=320, depth=8, num_heads=5, num_kv_heads=5, mlp_width=896),
        loop=LoopConfig(
            steps=8000, batch_size=64, warmup_steps=200, average_decay=0.998, look_steps=500, save_minutes=4.0
        ),
    )


def decoder_tiny() -> DecoderTrainingConfig:
    """A minute on one core, from the tiny image tokenizer: to see that everything runs, not to see pictures."""
    return DecoderTrainingConfig(
        run="runs/decoder-tiny",
        image_tokenizer="runs/vq-tiny/model",
        train_shards=("runs/codes-tiny/train/*.safetensors",),
        val_shards=("runs/codes-tiny/val/*.safetensors",),
        model=_shape(width=32, depth=2, num_heads=2, num_kv_heads=2, head_dim=16, mlp_width=64),
        loop=LoopConfig(steps=60, batch_size=8, warmup_steps=10, look_steps=30, log_steps=5),
    )


C = TypeVar("C", bound=Config)

VQ_PRESETS = {"emoji": vq_emoji, "tiny": vq_tiny}
DECODER_PRESETS = {"emoji": decoder_emoji, "tiny": decoder_tiny}


def run_preset(
    program: str, description: str | None, presets: Mapping[str, Callable[[], C]], run: Callable[[C], bool]
) -> None:
    """The command line of a stage: a preset's name, then any of its fields to change. Exit code 2 for a caller's
    mistake, 3 for a run that was asked to stop before its end."""
    choices = {name: ((preset.__doc__ or "").strip(), preset()) for name, preset in presets.items()}
    with mistakes_in_words():
        config = tyro.extras.overridable_config_cli(choices, prog=f"python -m {program}", description=description)
        finished = run(config)
    sys.exit(0 if finished else 3)
