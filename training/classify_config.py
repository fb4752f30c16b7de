"""`ClassifyConfig`: everything that decides a run of `training.classify`, checked; and its presets by name."""

import dataclasses

from dalle.clip.config import VisionConfig
from dalle.config import Config, require
from training.loop import LoopConfig
from training.pairs.problems import MAX_BROKEN

__all__ = ["PRESETS", "ClassifyConfig", "emoji", "tiny"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyConfig(Config):
    """Configuration of a run that trains a classifier of pictures, on labelled folders or on shards."""

    vision: VisionConfig
    loop: LoopConfig
    run: str
    """Run folder: configuration, state, TensorBoard scalars, confusion pictures, and at the end `model`."""
    name: str = "emoji"
    """Name of the classifier."""
    pictures: str | None = None
    """Folder with a folder of pictures for each label, or with folders such as `train` and `val` that hold these. None:
    the shards are read instead."""
    val_fraction: float = 0.1
    """Share of the pictures of a folder without splits that are validated on; a hash of its path decides for each."""
    train_shards: tuple[str, ...] = ("data/emoji/train-*.tar",)
    """Picture-caption shards to train on: tar files, folders, glob patterns or URLs."""
    val_shards: tuple[str, ...] = ("data/emoji/val_combo.tar",)
    """Picture-caption shards to validate on: tar files, folders, glob patterns or URLs."""
    labels: tuple[str, ...] = ("style", "group")
    """Keys of the shards' metadata that hold the labels; each has a head of its own. Pictures without a label are left
    out of its loss."""
    max_broken: float = MAX_BROKEN
    """Largest share of the shards' pairs that may be broken, as in stage 1."""
    matrix_rate: float = 0.02
    """Peak learning rate of Muon, for the matrices of the blocks."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW, for all other weights."""
    weight_decay: float = 0.1
    """Weight decay of both optimizers; norms and biases have none."""
    smoothing: float = 0.1
    """Share of the target that is spread evenly over all labels (label smoothing)."""
    start_from: str | None = None
    """CLIP directory whose Vision Transformer is trained further; its shape replaces `vision`. None: new weights."""

    def __post_init__(self) -> None:
        for name in ("matrix_rate", "learning_rate"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; it must be above 0")
        require(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}; it must not be negative")
        for name in ("max_broken", "smoothing"):
            require(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        require(0 < self.val_fraction < 1, f"val_fraction is {self.val_fraction}; it must be between 0 and 1")
        require(len(self.labels) > 0, "labels needs at least one key of the metadata")


def emoji() -> ClassifyConfig:
    """Classifier of the style and the group of emoji: 64 pixels, 2.7 million parameters."""
    return ClassifyConfig(
        run="runs/classify-emoji",
        vision=VisionConfig(image_size=64, patch_size=8, width=192, depth=6, num_heads=3, mlp_width=768),
        loop=LoopConfig(
            steps=2000, batch_size=128, warmup_steps=100, average_decay=0.998, look_steps=250, save_minutes=3.0
        ),
    )


def tiny() -> ClassifyConfig:
    """A test that everything runs, in a minute on one core; it learns little."""
    return ClassifyConfig(
        run="runs/classify-tiny",
        vision=VisionConfig(image_size=32, patch_size=8, width=32, depth=1, num_heads=2, mlp_width=64),
        loop=LoopConfig(steps=60, batch_size=16, warmup_steps=10, look_steps=30, log_steps=5),
    )


PRESETS = {"emoji": emoji, "tiny": tiny}
