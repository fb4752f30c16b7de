"""Settings that do not fit the data of a run: said before it starts, with what to set."""

from collections.abc import Iterator

from training.decoder_config import DecoderTrainingConfig
from training.loop import LoopConfig
from training.vq_config import VQTrainingConfig

__all__ = ["misfits_of_decoder", "misfits_of_loop", "misfits_of_vq"]


def _misfits(loop: LoopConfig, num_pairs: int) -> Iterator[str]:
    if loop.batch_size > num_pairs:
        yield (
            f"batch_size is {loop.batch_size}, but there are only {num_pairs} pairs, so that a pair is more than once "
            f"in a batch: set --loop.batch-size {max(1, num_pairs // 4)}"
        )
    steps = loop.steps - loop.first_step
    if loop.warmup_steps >= steps:
        yield (
            f"warmup_steps is {loop.warmup_steps}, but there are only {steps} steps, so that the learning rate never "
            f"comes to its peak: set --loop.warmup-steps {steps // 10}"
        )


def misfits_of_loop(loop: LoopConfig, num_pairs: int) -> list[str]:
    """A sentence for each setting of a loop that does not fit so many pairs."""
    return [*_misfits(loop, num_pairs)]


def misfits_of_vq(config: VQTrainingConfig, num_pairs: int) -> list[str]:
    """A sentence for each setting of stage 1 that does not fit so many pictures."""
    found = [*_misfits(config.loop, num_pairs)]
    steps = config.loop.steps - config.loop.first_step
    if config.start_from is not None:
        return found
    if config.unquantized_steps >= steps:
        found.append(
            f"unquantized_steps is {config.unquantized_steps}, but there are only {steps} steps, so the codebook is "
            f"never trained: set --unquantized-steps {steps // 10}"
        )
    patches = num_pairs * (config.model.image_size // config.model.factor) ** 2
    if config.model.codebook_size > patches:
        found.append(
            f"codebook_size is {config.model.codebook_size}, but all pictures together have only {patches} patches, so "
            f"that most codes will never be used: set --model.codebook-size {max(2, patches // 4)}"
        )
    return found


def misfits_of_decoder(config: DecoderTrainingConfig, num_rows: int, *, guidance: bool = True) -> list[str]:
    """A sentence for each setting of stage 2 that does not fit so many rows, or the decoder. guidance: whether the
    decoder is trained for guidance."""
    found = [*_misfits(config.loop, num_rows)]
    if config.caption_dropout and not guidance:
        found.append(
            f"caption_dropout is {config.caption_dropout}, but {config.start_from} was trained without it and draws "
            "without guidance, so that no caption is dropped"
        )
    return found
