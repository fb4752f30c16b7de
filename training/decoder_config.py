"""`DecoderTrainingConfig`: everything that decides a run of stage 2, checked."""

import dataclasses

from dalle.config import Config, require
from dalle.decoder.config import DecoderConfig
from training.loop import LoopConfig

__all__ = ["DecoderTrainingConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderTrainingConfig(Config):
    """Configuration of a run of stage 2, which trains a decoder. Vocabulary sizes, text length and grid size are those
    of the tokenizers, whatever `model` says."""

    model: DecoderConfig
    loop: LoopConfig
    run: str
    """Run folder: configuration, state, TensorBoard scalars and pictures, `best`, and at the end `model`."""
    name: str = "emoji"
    """Name of the model, which the receipts in its pictures state."""
    image_tokenizer: str = "runs/vq-emoji/model"
    """Model directory of stage 1, whose codes the token shards hold."""
    text_tokenizer: str = "runs/bpe/tokenizer.json"
    """Text tokenizer, as `python -m training.bpe` writes it, whose ids the token shards hold."""
    train_shards: tuple[str, ...] = ("runs/codes/train/*.safetensors",)
    """Token shards to train on: files, folders, glob patterns or URLs."""
    val_shards: tuple[str, ...] = ("runs/codes/val/*.safetensors",)
    """Token shards to validate on: files, folders, glob patterns or URLs."""
    matrix_rate: float = 0.02
    """Peak learning rate of Muon, for the matrices of the blocks."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW, for embeddings, heads, norms and biases."""
    weight_decay: float = 0.1
    """Weight decay of both optimizers; norms and biases have none."""
    text_loss_weight: float = 0.1
    """Weight of the cross-entropy of text ids."""
    image_loss_weight: float = 1.0
    """Weight of the cross-entropy of codes."""
    caption_dropout: float = 0.1
    """Share of rows whose caption is replaced by the null caption, for classifier-free guidance."""
    code_noise: float = 1.0
    """Largest share of a row's input codes that are replaced at random while the targets stay; each row draws its share
    between 0 and this. A small set of pictures is soon memorised from the first codes; noise keeps the caption
    informative to the end of the row."""
    embedding_weight: float = 0.0
    """Weight of an auxiliary loss: a linear layer on the hidden states predicts the codebook vector of the next code,
    1 - cosine. It teaches the decoder which codes are similar (reAR, arXiv 2510.04450). The layer is not exported.
    0: no such loss."""
    z_loss_weight: float = 0.0
    """Weight of the z-loss, the mean square of log Z over the codes, where Z is the sum of the exponentials of a code's
    logits (PaLM, arXiv 2204.02311): it keeps logits from drifting, which half precision does not bear; 1e-4 is usual.
    0: no such loss."""
    patience: int | None = None
    """Validations without a lower `val/image_loss` after which the run ends; None: it takes all its steps."""
    micro_batch_size: int | None = None
    """Rows of a batch that a process computes at once, their gradients accumulated: less memory for the same step.
    None: all of them."""
    recompute: bool = False
    """Recompute the activations of each block in the backward pass instead of keeping them (activation checkpointing):
    much less memory for the same step, which takes about a third longer."""
    compile: bool = False
    """Compile the decoder with `torch.compile`: about a quarter faster on a CPU. Needs a C++ compiler and takes about a
    minute."""
    shard: bool = False
    """Divide weights, gradients, optimizers and averaged weights over the processes that `torchrun` starts (FSDP), for
    decoders that are too large for one device. By default each process has a copy of them (DDP). A run that is resumed
    may change it."""
    whole_gradients: bool = False
    """With `shard` and `micro_batch_size`: add up whole gradients in each process, and divide them once for a batch
    instead of once for each of its parts. A third less communication, for 4 more bytes of each parameter."""
    start_from: str | None = None
    """Model directory whose decoder is trained further; its shape replaces `model`. None: new weights."""

    def __post_init__(self) -> None:
        for name in ("text_loss_weight", "image_loss_weight", "weight_decay", "embedding_weight", "z_loss_weight"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("matrix_rate", "learning_rate"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; it must be above 0")
        require(0 <= self.caption_dropout < 1, f"caption_dropout is {self.caption_dropout}; it must be in [0, 1)")
        require(
            self.micro_batch_size is None or self.micro_batch_size >= 1,
            f"micro_batch_size is {self.micro_batch_size}; it must be at least 1",
        )
        require(self.patience is None or self.patience >= 1, f"patience is {self.patience}; it must be at least 1")
        require(
            self.shard or not self.whole_gradients,
            "whole_gradients is True, and shard is False: without shard, gradients are always whole",
        )
        require(0 <= self.code_noise <= 1, f"code_noise is {self.code_noise}; it must be in [0, 1]")
