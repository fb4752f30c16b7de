"""`VQTrainingConfig`: everything that decides a run of stage 1, checked."""

import dataclasses
from typing import Literal

from dalle.config import Config, require, require_at_least, require_multiple
from dalle.vq.vqgan import ImageTokenizerConfig
from training.loop import LoopConfig

__all__ = ["VQTrainingConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQTrainingConfig(Config):
    """Everything that decides a stage 1 run."""

    model: ImageTokenizerConfig
    loop: LoopConfig
    run: str
    """Run folder: configuration, state, TensorBoard scalars and pictures, and at the end `model`."""
    train_shards: tuple[str, ...] = ("data/emoji/train-*.tar",)
    val_shards: tuple[str, ...] = ("data/emoji/val_combo.tar",)
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    flip: bool = True
    """Mirror every second picture at random."""
    pixel_loss: Literal["l1", "l2"] = "l2"
    """Distance of pixels. Pictures with alpha are compared over a random colour each."""
    alpha_weight: float = 1.0
    """Weight of the same distance of alpha itself, beside that of the pixels."""
    perceptual_weight: float = 0.0
    """Weight of LPIPS."""
    perceptual_crop: int = 64
    """Side of the random square, in pixels, that the perceptual loss looks at."""
    perceptual_pictures: int | None = None
    """Number of pictures of a batch that the perceptual loss looks at; None: all."""
    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    """Step at which the discriminator starts to pull on the decoder; it learns from the first."""
    discriminator_width: int = 64
    discriminator_layers: int = 2
    commitment_weight: float = 0.25
    codebook: Literal["average", "gradient"] = "average"
    """How the codebook learns: by moving averages, or by gradient."""
    codebook_decay: float = 0.99
    restart_below: float = 0.05
    """Restart an entry used less than this share of an equal share. Only with moving averages."""
    unquantized_steps: int = 300
    compile: bool = False
    """Let `torch.compile` fuse the networks: for CUDA; on a CPU it gains nothing."""
    start_from: str | None = None
    """Model directory whose image tokenizer training starts from; its shape replaces `model`."""
    only_decoder: bool = False
    """Keep encoder and codebook, so that codes stay what they are, and train the way back to pixels alone."""
    random_codes: float = 0.0
    """Share of codes that are replaced at random before they become pixels, so that one wrong code does not spoil its
    surroundings (RobusTok, arXiv 2503.08354). Only with `only_decoder`."""
    drawn_by: str | None = None
    """Model directory of stage 2. In half of the pictures, it draws up to half of the codes anew from those before
    them: mistakes of the kind that it makes. Only with `only_decoder`."""

    def __post_init__(self) -> None:
        for name in "alpha_weight perceptual_weight adversarial_weight commitment_weight weight_decay".split():
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must not be negative")
        require(self.learning_rate > 0, f"learning_rate is {self.learning_rate}; it must be above 0")
        require(0 < self.codebook_decay < 1, f"codebook_decay is {self.codebook_decay}; it must be in (0, 1)")
        require(0 <= self.restart_below < 1, f"restart_below is {self.restart_below}; it must be in [0, 1)")
        require_at_least(self, 16, "perceptual_crop")
        require(
            self.perceptual_pictures is None or self.perceptual_pictures >= 1,
            f"perceptual_pictures is {self.perceptual_pictures}; it must be at least 1",
        )
        require_multiple(self, 4, "discriminator_width")
        require_at_least(self, 1, "discriminator_layers")
        require(not self.only_decoder or self.start_from is not None, "only_decoder needs start_from")
        require(0 <= self.random_codes < 1, f"random_codes is {self.random_codes}; it must be in [0, 1)")
        require(self.only_decoder or not self.random_codes, "random_codes needs only_decoder")
        require(self.only_decoder or self.drawn_by is None, "drawn_by needs only_decoder")
