"""`TranslateConfig`: everything that decides a run of `training.translate`, checked; and its presets by name."""

import dataclasses

from dalle.config import Config, require
from dalle.translate.config import EncoderDecoderConfig
from training.loop import LoopConfig

__all__ = ["PRESETS", "TranslateConfig", "emoji", "tiny"]

MIN_VOCAB_SIZE = 258


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslateConfig(Config):
    """Configuration of a run that trains a translator. Vocabulary and special ids of the network are those of the text
    tokenizer that the run trains first, whatever `model` says."""

    model: EncoderDecoderConfig
    loop: LoopConfig
    run: str
    """Run folder: configuration, state, TensorBoard scalars, and at the end `model`."""
    name: str = "emoji"
    """Name of the translator."""
    data: str = "data/translation"
    """Folder that `python -m training.translation_data` has written."""
    vocab_size: int = 6000
    """Largest size of the byte-level vocabulary, which all languages share; at least 258."""
    matrix_rate: float = 0.02
    """Peak learning rate of Muon, for the matrices of the blocks."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW, for embeddings, norms and biases."""
    weight_decay: float = 0.05
    """Weight decay of both optimizers; norms and biases have none."""
    label_smoothing: float = 0.1
    """Share of the target distribution that is spread over all ids (Szegedy et al. 2016, arXiv 1512.00567)."""
    dropout: float = 0.15
    """Dropout of the embeddings and of every branch at the first step; it falls linearly to `final_dropout`."""
    final_dropout: float = 0.0
    """Dropout at the last step."""
    num_validation: int = 300
    """Lines of each validation split, evenly spaced, that a validation translates with the network alone."""

    def __post_init__(self) -> None:
        for name in ("matrix_rate", "learning_rate"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; it must be above 0")
        require(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}; it must not be negative")
        for name in ("label_smoothing", "dropout", "final_dropout"):
            require(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        require(
            self.vocab_size >= MIN_VOCAB_SIZE, f"vocab_size is {self.vocab_size}; it must be at least {MIN_VOCAB_SIZE}"
        )
        require(self.num_validation >= 1, f"num_validation is {self.num_validation}; it must be at least 1")


def emoji() -> TranslateConfig:
    """The translator of the default model's prompts: 4.3 million parameters, about 25 minutes on one quiet core."""
    return TranslateConfig(
        run="runs/translate-emoji",
        model=_shape(width=192, depth=3, num_heads=4, mlp_width=768, length=64),
        loop=LoopConfig(
            steps=2400, batch_size=128, warmup_steps=100, average_decay=0.997, look_steps=500, save_minutes=3.0
        ),
    )


def tiny() -> TranslateConfig:
    """A test that everything runs, in a minute on one core; it learns little."""
    return TranslateConfig(
        run="runs/translate-tiny",
        model=_shape(width=32, depth=1, num_heads=2, mlp_width=64, length=48),
        vocab_size=600,
        num_validation=20,
        loop=LoopConfig(steps=60, batch_size=32, warmup_steps=10, look_steps=60, log_steps=5),
    )


def _shape(*, width: int, depth: int, num_heads: int, mlp_width: int, length: int) -> EncoderDecoderConfig:
    """The shape of a network, with placeholders for what training takes from the text tokenizer."""
    return EncoderDecoderConfig(
        vocab_size=2,
        pad_id=0,
        start_id=0,
        end_id=1,
        source_length=length,
        target_length=length,
        width=width,
        encoder_depth=depth,
        decoder_depth=depth,
        num_heads=num_heads,
        mlp_width=mlp_width,
    )


PRESETS = {"emoji": emoji, "tiny": tiny}
