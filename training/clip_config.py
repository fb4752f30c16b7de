"""`ClipTrainingConfig`: everything that decides a run of `training.clip`, checked; and its presets by name."""

import dataclasses

from dalle.clip.config import ClipConfig, TextConfig, VisionConfig
from dalle.config import Config, require
from training.loop import LoopConfig
from training.pairs.problems import MAX_BROKEN

__all__ = ["PRESETS", "ClipTrainingConfig", "emoji", "tiny"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTrainingConfig(Config):
    """Configuration of a run that trains a CLIP model. Vocabulary and length of the text encoder are those of the text
    tokenizer, whatever `model` says."""

    model: ClipConfig
    loop: LoopConfig
    run: str
    """Run folder: configuration, state, TensorBoard scalars, and at the end `model`."""
    name: str = "emoji"
    """Name of the model."""
    text_tokenizer: str = "runs/bpe/tokenizer.json"
    """Text tokenizer, as `python -m training.bpe` writes it."""
    train_shards: tuple[str, ...] = ("data/emoji/train-*.tar",)
    """Picture-caption shards to train on: tar files, folders, glob patterns or URLs."""
    val_shards: tuple[str, ...] = ("data/emoji/val_combo.tar",)
    """Picture-caption shards to validate on: tar files, folders, glob patterns or URLs."""
    max_broken: float = MAX_BROKEN
    """Largest share of pairs that may be broken. In the place of a picture that cannot be read, the next one is used,
    and problems.jsonl in the run folder lists it; more of them stop the run."""
    matrix_rate: float = 0.02
    """Peak learning rate of Muon, for the matrices of the blocks."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW, for embeddings, projections, norms, biases, scale and bias of the logits."""
    weight_decay: float = 0.1
    """Weight decay of both optimizers; norms and biases have none."""
    partner_share: float = 0.25
    """Share of a batch, at most a half, that shows the same things as other pictures of the batch: in another style or
    skin tone if there is one. They are positives of captions that name no style, and the hardest negatives of
    captions that do."""

    def __post_init__(self) -> None:
        for name in ("matrix_rate", "learning_rate"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; it must be above 0")
        require(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}; it must not be negative")
        require(0 <= self.max_broken < 1, f"max_broken is {self.max_broken}; it must be in [0, 1)")
        require(0 <= self.partner_share <= 0.5, f"partner_share is {self.partner_share}; it must be in [0, 0.5]")
        require(self.loop.batch_size >= 2, f"batch_size is {self.loop.batch_size}; a contrast needs at least 2 pairs")


def emoji() -> ClipTrainingConfig:
    """CLIP model for pictures of the default model: 64 pixels, 1.9 million parameters, about 35 core-minutes."""
    return ClipTrainingConfig(
        run="runs/clip-emoji",
        model=_shape(
            VisionConfig(image_size=64, patch_size=16, width=128, depth=4, num_heads=4, mlp_width=512),
            {"width": 128, "depth": 2, "num_heads": 4, "mlp_width": 512},
            embedding_width=128,
        ),
        loop=LoopConfig(
            steps=4000, batch_size=256, warmup_steps=100, average_decay=0.998, look_steps=250, save_minutes=3.0
        ),
    )


def tiny() -> ClipTrainingConfig:
    """A test that everything runs, in a minute on one core; it learns little."""
    return ClipTrainingConfig(
        run="runs/clip-tiny",
        model=_shape(
            VisionConfig(image_size=32, patch_size=8, width=32, depth=1, num_heads=2, mlp_width=64),
            {"width": 32, "depth": 1, "num_heads": 2, "mlp_width": 64},
            embedding_width=32,
        ),
        loop=LoopConfig(steps=60, batch_size=16, warmup_steps=10, look_steps=30, log_steps=5),
    )


def _shape(vision: VisionConfig, text: dict[str, int], *, embedding_width: int) -> ClipConfig:
    """The shape of a model, with placeholders for the sizes that training takes from the text tokenizer."""
    placeholders = {"vocab_size": 1, "text_length": 1, "end_id": 0}
    return ClipConfig(vision=vision, text=TextConfig.from_dict(text | placeholders), embedding_width=embedding_width)


PRESETS = {"emoji": emoji, "tiny": tiny}
