"""Presets of stage 2 by name: functions that return a whole configuration."""

from typing import Any

from dalle.decoder.config import DecoderConfig
from training.decoder_config import DecoderTrainingConfig
from training.loop import LoopConfig

__all__ = ["PRESETS", "base", "emoji", "finetune", "large", "tiny", "xl"]


def _shape(**values: Any) -> DecoderConfig:
    """The shape of a decoder, with placeholders for the sizes that stage 2 takes from the tokenizers."""
    from_tokenizers: dict[str, Any] = {
        "text_vocab_size": 1,
        "text_length": 1,
        "codebook_size": 1,
        "grid_height": 1,
        "grid_width": 1,
    }
    return DecoderConfig(**from_tokenizers, **values)


def emoji() -> DecoderTrainingConfig:
    """Decoder of the next default model: 15 million parameters, for pictures of 256 codes."""
    return DecoderTrainingConfig(
        run="runs/decoder-emoji",
        embedding_weight=0.5,
        micro_batch_size=16,
        model=_shape(width=320, depth=8, num_heads=5, num_kv_heads=5, mlp_width=896),
        loop=LoopConfig(
            steps=8000, batch_size=64, warmup_steps=200, average_decay=0.998, look_steps=500, save_minutes=4.0
        ),
    )


def tiny() -> DecoderTrainingConfig:
    """A test that everything runs, in a minute on one core, on the codes of the tiny image tokenizer."""
    return DecoderTrainingConfig(
        run="runs/decoder-tiny",
        image_tokenizer="runs/vq-tiny/model",
        train_shards=("runs/codes-tiny/train/*.safetensors",),
        val_shards=("runs/codes-tiny/val/*.safetensors",),
        model=_shape(width=32, depth=2, num_heads=2, num_kv_heads=2, head_dim=16, mlp_width=64),
        loop=LoopConfig(steps=60, batch_size=8, warmup_steps=10, look_steps=30, log_steps=5),
    )


def base() -> DecoderTrainingConfig:
    """Decoder of 110 million parameters, on the codes of the preset `base` of stage 1. For a GPU."""
    return _wide(
        "base",
        image_tokenizer="runs/vq-base/model",
        shape={"width": 768, "depth": 12, "num_heads": 12, "num_kv_heads": 12, "mlp_width": 2304},
        matrix_rate=0.01,
        learning_rate=1e-3,
        steps=100_000,
        batch_size=256,
        micro_batch_size=64,
    )


def large() -> DecoderTrainingConfig:
    """Decoder of 340 million parameters, on the codes of the preset `large` of stage 1. For a large GPU, or several."""
    return _wide(
        "large",
        image_tokenizer="runs/vq-large/model",
        shape={"width": 1024, "depth": 24, "num_heads": 16, "num_kv_heads": 16, "mlp_width": 2816},
        matrix_rate=0.007,
        learning_rate=6e-4,
        steps=200_000,
        batch_size=512,
        micro_batch_size=32,
    )


def xl() -> DecoderTrainingConfig:
    """Decoder of 1.3 billion parameters, on the codes of the preset `large` of stage 1. For several large GPUs."""
    return _wide(
        "xl",
        image_tokenizer="runs/vq-large/model",
        shape={"width": 2048, "depth": 24, "num_heads": 32, "num_kv_heads": 32, "mlp_width": 5632},
        matrix_rate=0.005,
        learning_rate=3e-4,
        steps=300_000,
        batch_size=1024,
        micro_batch_size=32,
        recompute=True,
    )


def finetune() -> DecoderTrainingConfig:
    """Trains a finished model further on your pictures: `--start-from MODEL`, imported ones included, with the token
    shards of `python -m training.codes --model MODEL`. All weights, or adapters alone with `--lora-rank 8`."""
    return DecoderTrainingConfig(
        run="runs/decoder-finetune",
        name="finetuned",
        image_tokenizer=None,
        text_tokenizer=None,
        train_shards=("runs/codes-finetune/train/*.safetensors",),
        val_shards=("runs/codes-finetune/val/*.safetensors",),
        matrix_optimizer="adamw",
        learning_rate=1e-4,
        weight_decay=0.01,
        code_noise=0.0,
        micro_batch_size=8,
        model=_shape(),
        loop=LoopConfig(steps=1000, batch_size=16, warmup_steps=50, average_decay=0.99, look_steps=100, log_steps=10),
    )


def _wide(name: str, *, shape: dict[str, int], steps: int, batch_size: int, **changes: Any) -> DecoderTrainingConfig:
    """A configuration for many pictures, which are not memorised: few codes are replaced, and the average is long."""
    return DecoderTrainingConfig(
        run=f"runs/decoder-{name}",
        name=name,
        model=_shape(**shape),
        code_noise=0.1,
        compile=True,
        loop=LoopConfig(
            steps=steps,
            batch_size=batch_size,
            warmup_steps=2000,
            average_decay=0.9999,
            look_steps=2500,
            save_minutes=10.0,
            export_minutes=60.0,
        ),
        **changes,
    )


PRESETS = {"emoji": emoji, "tiny": tiny, "base": base, "large": large, "xl": xl, "finetune": finetune}
