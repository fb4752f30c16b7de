"""`DecoderTrainingConfig`: everything that decides a run of stage 2, checked."""

import dataclasses

from dalle.config import Config, require
from dalle.decoder.decoder import DecoderConfig
from training.loop import LoopConfig

__all__ = ["DecoderTrainingConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderTrainingConfig(Config):
    """Everything that decides a stage 2 run. Vocabularies, text length and grid come from the tokenizers."""

    model: DecoderConfig
    loop: LoopConfig
    run: str
    """Run folder: configuration, state, TensorBoard scalars and pictures, and at the end `model`."""
    name: str = "emoji"
    """Of the model, as the receipts of its pictures say it."""
    image_tokenizer: str = "runs/vq-emoji/model"
    text_tokenizer: str = "runs/bpe/tokenizer.json"
    train_shards: tuple[str, ...] = ("runs/codes/train/*.safetensors",)
    val_shards: tuple[str, ...] = ("runs/codes/val/*.safetensors",)
    matrix_rate: float = 0.02
    """Peak learning rate of Muon, for the matrices of the blocks."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW, for embeddings, heads, norms and biases."""
    weight_decay: float = 0.1
    text_loss_weight: float = 0.1
    image_loss_weight: float = 1.0
    caption_dropout: float = 0.1
    """Share of rows that see the null caption."""
    code_noise: float = 1.0
    """Input codes are replaced at random while the targets stay: each row has its own share, from none to this. A small
    set of pictures is soon known by heart from its first codes; noise makes the caption worth reading to the end."""
    embedding_weight: float = 0.0
    """Weight of a second task: a linear layer on the hidden states predicts the codebook row of each next code, by
    cosine. It tells the model which codes look alike (reAR, arXiv 2510.04450). The layer is not exported."""
    micro_batch_size: int | None = None
    """Rows of a batch that go through the model at once, their gradients added up: less memory for the same step.
    None: all of them."""
    compile: bool = False
    """Let `torch.compile` fuse the model: a quarter quicker on a CPU. Needs a C++ compiler, and takes a minute."""
    start_from: str | None = None
    """Model directory whose decoder training starts from; its shape replaces `model`."""

    def __post_init__(self) -> None:
        for name in ("text_loss_weight", "image_loss_weight", "weight_decay", "embedding_weight"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("matrix_rate", "learning_rate"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; it must be above 0")
        require(0 <= self.caption_dropout < 1, f"caption_dropout is {self.caption_dropout}; it must be in [0, 1)")
        require(
            self.micro_batch_size is None or self.micro_batch_size >= 1,
            f"micro_batch_size is {self.micro_batch_size}; it must be at least 1",
        )
        require(0 <= self.code_noise <= 1, f"code_noise is {self.code_noise}; it must be in [0, 1]")
