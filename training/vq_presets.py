"""Presets of stage 1 by name: functions that return a whole configuration."""

from dalle.vq.vqgan import ImageTokenizerConfig
from training.loop import LoopConfig
from training.vq_config import VQTrainingConfig

__all__ = ["PRESETS", "base", "emoji", "large", "tiny"]


def emoji() -> VQTrainingConfig:
    """Image tokenizer of the next default model: 16 x 16 codes for a picture of 128 x 128 pixels with transparency."""
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


def tiny() -> VQTrainingConfig:
    """A test that everything runs, in a minute on one core; it learns no useful pictures."""
    return VQTrainingConfig(
        run="runs/vq-tiny",
        model=ImageTokenizerConfig(
            patch_size=8, widths=(16, 32), num_res_blocks=1, norm_groups=8, codebook_size=64, codebook_dim=8
        ),
        loop=LoopConfig(steps=60, batch_size=8, warmup_steps=10, look_steps=30, log_steps=5),
        unquantized_steps=20,
    )


def base() -> VQTrainingConfig:
    """Image tokenizer of photographs and drawings of 128 x 128 pixels: 16 x 16 codes of 8,192. For a GPU."""
    return _photographs(
        "base",
        ImageTokenizerConfig(
            image_size=128, patch_size=2, widths=(128, 256, 256), codebook_size=8192, codebook_dim=8, num_res_blocks=2
        ),
        steps=100_000,
        batch_size=128,
    )


def large() -> VQTrainingConfig:
    """Image tokenizer of photographs and drawings of 256 x 256 pixels: 16 x 16 codes of 8,192. For a GPU."""
    return _photographs(
        "large",
        ImageTokenizerConfig(
            image_size=256,
            patch_size=2,
            widths=(128, 128, 256, 512),
            codebook_size=8192,
            codebook_dim=8,
            num_res_blocks=2,
        ),
        steps=200_000,
        batch_size=128,
    )


def _photographs(name: str, model: ImageTokenizerConfig, *, steps: int, batch_size: int) -> VQTrainingConfig:
    """All losses, the discriminator from a tenth of the steps on, after reconstructions have shapes."""
    return VQTrainingConfig(
        run=f"runs/vq-{name}",
        model=model,
        train_shards=("data/mine/train-*.tar",),
        val_shards=("data/mine/val.tar",),
        learning_rate=2e-4,
        pixel_loss="l1",
        perceptual_weight=1.0,
        adversarial_weight=0.1,
        adversarial_start=steps // 10,
        discriminator_layers=3,
        unquantized_steps=1000,
        compile=True,
        loop=LoopConfig(
            steps=steps,
            batch_size=batch_size,
            warmup_steps=1000,
            average_decay=0.9995,
            look_steps=2500,
            save_minutes=10.0,
            export_minutes=60.0,
        ),
    )


PRESETS = {"emoji": emoji, "tiny": tiny, "base": base, "large": large}
