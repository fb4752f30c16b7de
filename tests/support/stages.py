"""Inputs of the two stages of training, as small as possible, made by the real programs' own functions.

A test file has a fixture `data` that calls `write_stage_1` or `write_stage_2`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle.checkpoint import save_checkpoint
from dalle.vq.quantize import CodebookAverage
from dalle.vq.vqgan import ImageTokenizer, ImageTokenizerConfig
from tests.support.models import decoder_config
from tests.support.pairs import write_pairs
from training.bpe import train_text_tokenizer
from training.codes import encode_pairs
from training.decoder_config import DecoderTrainingConfig
from training.loop import LoopConfig
from training.pairs.shards import PairShards, find_shards
from training.vq import VQTask
from training.vq_config import VQTrainingConfig

__all__ = [
    "MODEL",
    "NUM_TRAIN",
    "NUM_VAL",
    "changed",
    "decoder_training",
    "step",
    "vq_training",
    "weights",
    "write_stage_1",
    "write_stage_2",
]

NUM_TRAIN, NUM_VAL = 24, 9
MODEL = ImageTokenizerConfig(
    image_size=16, patch_size=2, widths=(8, 16), num_res_blocks=1, norm_groups=4, codebook_size=32, codebook_dim=4
)
LOOP = LoopConfig(
    steps=12,
    batch_size=4,
    warmup_steps=2,
    log_steps=1,
    look_steps=6,
    workers=0,
    device="cpu",
    precision="float32",
    average_decay=0.5,
)


def write_transparent(folder: Path) -> None:
    """Write shards `train-000.tar`, `train-001.tar` and `val.tar` of squares on a transparent background."""
    write_pairs(folder, "train", NUM_TRAIN, per_shard=15, transparent=True)
    write_pairs(folder, "val", NUM_VAL, transparent=True)


def write_stage_1(folder: Path) -> None:
    """Write shards `train-000.tar`, `train-001.tar` and `val.tar`, a text tokenizer `tokenizer.json`, and an image
    tokenizer `eyes`, which is untrained but has a codebook of its own latents."""
    write_pairs(folder, "train", NUM_TRAIN, weights=(1.0, 0.5), per_shard=15)
    write_pairs(folder, "val", NUM_VAL)
    shards = (str(folder / "train-*.tar"),)
    train_text_tokenizer(shards, out=folder / "tokenizer.json", vocab_size=300, text_length=16)
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(MODEL)
    with torch.no_grad():
        latents = tokenizer.latents(PairShards(find_shards(shards)).images(range(NUM_TRAIN))).flatten(0, 2)
    average = CodebookAverage(tokenizer.quantizer, decay=0.9, restart_below=0.0)
    average.start(tokenizer.quantizer, latents, torch.Generator().manual_seed(0))
    save_checkpoint(folder / "eyes", name="eyes", image_tokenizer=tokenizer)


def write_stage_2(folder: Path) -> None:
    """Write the output of `write_stage_1`, and its token shards in `codes/train` and `codes/val`."""
    write_stage_1(folder)
    for name in ("train", "val"):
        encode_pairs(
            (str(folder / f"{name}*.tar"),),
            image_tokenizer=folder / "eyes",
            text_tokenizer=folder / "tokenizer.json",
            out=folder / "codes" / name,
            num_captions=3,
            device="cpu",
        )


def vq_training(folder: Path, *, loop: dict[str, Any] | None = None, **changes: Any) -> VQTrainingConfig:
    """The configuration of a stage 1 run on the output of `write_stage_1`."""
    values: dict[str, Any] = {
        "model": MODEL,
        "loop": dataclasses.replace(LOOP, **(loop or {})),
        "run": str(folder / "run"),
        "train_shards": (str(folder / "train-*.tar"),),
        "val_shards": (str(folder / "val.tar"),),
        "unquantized_steps": 3,
        "discriminator_width": 8,
        "perceptual_crop": 16,
    }
    return VQTrainingConfig(**(values | changes))


def decoder_training(folder: Path, *, loop: dict[str, Any] | None = None, **changes: Any) -> DecoderTrainingConfig:
    """The configuration of a stage 2 run on the output of `write_stage_2`."""
    values: dict[str, Any] = {
        "model": decoder_config(width=16, depth=1, num_heads=2, head_dim=8, mlp_width=16),
        "loop": dataclasses.replace(LOOP, **(loop or {})),
        "run": str(folder / "run"),
        "image_tokenizer": str(folder / "eyes"),
        "text_tokenizer": str(folder / "tokenizer.json"),
        "train_shards": (str(folder / "codes/train/*.safetensors"),),
        "val_shards": (str(folder / "codes/val/*.safetensors"),),
    }
    return DecoderTrainingConfig(**(values | changes))


def step(task: VQTask, number: int) -> dict[str, float]:
    """Take a training step of stage 1. Returns its scalars."""
    torch.manual_seed(number)
    scalars = task.train_step(number, task.batch(number))
    return {name: float(torch.as_tensor(value).detach()) for name, value in scalars.items()}


def weights(task: VQTask, part: str) -> list[Tensor]:
    """Copies of the parameters of a part of the image tokenizer: `encoder`, `quantizer` or `decoder`."""
    return [p.detach().clone() for p in getattr(task.model, part).parameters()]


def changed(before: list[Tensor], after: list[Tensor]) -> bool:
    """Whether any parameter differs."""
    return not all(map(torch.equal, before, after))
