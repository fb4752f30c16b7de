"""`VQTrainingConfig`: everything that decides a run of stage 1, checked."""

import dataclasses
from typing import Literal

from dalle.config import Config, require, require_at_least, require_multiple
from dalle.vq.vqgan import ImageTokenizerConfig
from training.gates import HealthConfig
from training.loop import LoopConfig
from training.pairs.problems import MAX_BROKEN

__all__ = ["VQTrainingConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQTrainingConfig(Config):
    """Configuration of a run of stage 1, which trains an image tokenizer."""

    model: ImageTokenizerConfig
    loop: LoopConfig
    run: str
    """Run folder: configuration, state, TensorBoard scalars and pictures, `healthy`, and at the end `model`."""
    train_shards: tuple[str, ...] = ("data/emoji/train-*.tar",)
    """Picture-caption shards to train on: tar files, folders, glob patterns or URLs."""
    val_shards: tuple[str, ...] = ("data/emoji/val_combo.tar",)
    """Picture-caption shards to validate on: tar files, folders, glob patterns or URLs."""
    max_broken: float = MAX_BROKEN
    """Largest share of pairs that may be broken. In the place of a picture that cannot be read, the next one is used,
    and problems.jsonl in the run folder lists it; more of them stop the run."""
    learning_rate: float = 5e-4
    """Peak learning rate of AdamW, for the image tokenizer and for the discriminator."""
    weight_decay: float = 0.01
    """Weight decay of AdamW, for matrices and convolutions; norms and biases have none."""
    flip: bool = True
    """Mirror half of the pictures, at random."""
    pixel_loss: Literal["l1", "l2"] = "l2"
    """Reconstruction loss between pixels: mean absolute (l1) or mean squared (l2) error. Pictures with alpha are
    compared over a random colour each."""
    alpha_weight: float = 1.0
    """Weight of the reconstruction loss of the alpha channel; that of the pixels has weight 1."""
    perceptual_weight: float = 0.0
    """Weight of the perceptual loss (LPIPS); 0: no such loss."""
    perceptual_crop: int = 64
    """Side, in pixels, of the random square crop that the perceptual loss is computed on."""
    perceptual_pictures: int | None = None
    """Number of pictures of a batch that the perceptual loss is computed on; None: all of them."""
    adversarial_weight: float = 0.0
    """Weight of the adversarial loss, times an adaptive weight that balances the gradients; 0: no discriminator."""
    adversarial_start: int = 0
    """Step from which the adversarial loss trains the decoder; the discriminator is trained from the first step."""
    discriminator_width: int = 64
    """Channels of the discriminator's first convolution; a multiple of 4."""
    discriminator_layers: int = 2
    """Number of the discriminator's convolutions with group norm; each but the last halves the resolution."""
    lecam_weight: float = 0.0
    """Weight of LeCam regularization in the discriminator's loss, which keeps it from winning on few pictures; 0.001 to
    0.05 is usual. 0: no such loss."""
    r1_weight: float = 0.0
    """Weight of R1 regularization in the discriminator's loss, the gamma of its paper: half of it times the mean
    squared norm of the gradient of a real picture's mean logit. 0.1 to 10 is usual. 0: no such loss."""
    r1_interval: int = 16
    """Steps between two computations of R1 regularization, which then counts for all of them (StyleGAN2, arXiv
    1912.04958)."""
    commitment_weight: float = 0.25
    """Weight of the commitment loss, which keeps the encoder's latents near their codebook vectors."""
    entropy_weight: float = 0.0
    """Weight of the entropy loss, which lets each patch choose its code clearly and all patches together use all codes
    (MAGVIT-v2, arXiv 2310.05737): the mean entropy of a patch's soft choice minus the entropy of the mean choice, in
    nats; 0.1 is usual. It needs memory for a number for each patch of a batch and each code. 0: no such loss."""
    entropy_temperature: float = 0.01
    """Temperature of the soft choice: the softmax of negative squared distances divided by it."""
    codebook: Literal["average", "gradient"] = "average"
    """How the codebook is trained: by moving averages of the latents, or by gradient descent."""
    codebook_decay: float = 0.99
    """Decay of the moving averages that train the codebook."""
    restart_below: float = 0.05
    """Restart threshold: codebook vectors that are used less often than this share of the mean are replaced by latents.
    Only for a codebook that is trained by moving averages."""
    unquantized_steps: int = 300
    """Steps at the start of training without quantization; the codebook is then initialised from latents."""
    health: HealthConfig = dataclasses.field(default_factory=HealthConfig)
    """When the codebook counts as collapsed, which stops the run."""
    compile: bool = False
    """Compile the networks with `torch.compile`: faster on CUDA; no gain on a CPU."""
    start_from: str | None = None
    """Model directory whose image tokenizer is trained further; its shape replaces `model`. None: new weights."""
    only_decoder: bool = False
    """Train only the decoder half, from codes to pixels; encoder and codebook, and so all codes, stay as they are."""
    alpha_widths: tuple[int, ...] | None = None
    """Give an image tokenizer of RGB an alpha channel to draw: a network with this many channels in each level, from
    the finest to the coarsest, finds alpha in the decoded picture, and it alone is trained. The encoder reads pictures
    over white, so all codes stay as they are, and so do pictures over white. Only with `only_decoder`."""
    random_codes: float = 0.0
    """Share of codes that are replaced at random before they are decoded, so that the decoder half learns to confine
    the damage of a wrong code to its place (RobusTok, arXiv 2503.08354). Only with `only_decoder`."""
    drawn_by: str | None = None
    """Model directory of stage 2 that redraws, in half of the pictures, up to half of the codes given those before
    them, so that the decoder half sees the errors that stage 2 makes. Only with `only_decoder`. None: no such codes."""

    def __post_init__(self) -> None:
        for name in (
            *"alpha_weight perceptual_weight adversarial_weight lecam_weight r1_weight commitment_weight".split(),
            *("entropy_weight", "weight_decay"),
        ):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must not be negative")
        require(0 <= self.max_broken < 1, f"max_broken is {self.max_broken}; it must be in [0, 1)")
        for name in ("learning_rate", "entropy_temperature"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; it must be above 0")
        require(0 < self.codebook_decay < 1, f"codebook_decay is {self.codebook_decay}; it must be in (0, 1)")
        require(0 <= self.restart_below < 1, f"restart_below is {self.restart_below}; it must be in [0, 1)")
        require_at_least(self, 16, "perceptual_crop")
        require(
            self.perceptual_pictures is None or self.perceptual_pictures >= 1,
            f"perceptual_pictures is {self.perceptual_pictures}; it must be at least 1",
        )
        require_multiple(self, 4, "discriminator_width")
        require_at_least(self, 1, "discriminator_layers")
        for name in ("lecam_weight", "r1_weight"):
            require(not getattr(self, name) or self.adversarial_weight > 0, f"{name} needs adversarial_weight above 0")
        require_at_least(self, 1, "r1_interval")
        require(not self.only_decoder or not self.entropy_weight, "entropy_weight trains the encoder: not only_decoder")
        require(
            not self.entropy_weight or self.start_from is not None or self.model.quantizer == "nearest",
            f"entropy_weight needs a codebook; the quantizer is {self.model.quantizer}",
        )
        require(not self.only_decoder or self.start_from is not None, "only_decoder needs start_from")
        require(0 <= self.random_codes < 1, f"random_codes is {self.random_codes}; it must be in [0, 1)")
        require(self.only_decoder or self.alpha_widths is None, "alpha_widths needs only_decoder")
        for name in ("perceptual_weight", "adversarial_weight"):
            require(
                self.alpha_widths is None or not getattr(self, name),
                f"alpha_widths trains alpha alone, which has no {name}: set it to 0",
            )
        require(self.only_decoder or not self.random_codes, "random_codes needs only_decoder")
        require(self.only_decoder or self.drawn_by is None, "drawn_by needs only_decoder")
