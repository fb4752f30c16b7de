"""`draw_once`: a trial of a model directory that has just been written, before it takes its place.

All layers of the decoder read a row of codes at once, instead of one code after the other, and the likeliest codes are
decoded. Every weight is read once and one block is in memory at a time, so that the trial of a decoder of a billion
parameters takes seconds, and little memory.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dalle.checkpoint import load_image_tokenizer
from dalle.checkpoint.files import DECODER_FILE
from dalle.checkpoint.model_config import ModelConfig
from dalle.checkpoint.parts import empty_decoder, read_text_tokenizer, stored_names
from dalle.checkpoint.weights import read_safetensors
from dalle.decoder.decoder import Decoder
from dalle.errors import CheckpointError
from dalle.vq.vqgan import ImageTokenizer

__all__ = ["draw_once"]

MAX_SIDE = 16
"""Most codes along each side of the picture that is drawn."""


@torch.inference_mode()
def draw_once(folder: Path) -> None:
    """Draw a picture with a model directory whose files have been checked, decode it, and encode the result.

    Raises `CheckpointError` if a logit, or a number on the way to a pixel, is not finite.
    """
    config = ModelConfig.read(folder)
    tokenizer = load_image_tokenizer(folder)
    side = max(1, min(MAX_SIDE, tokenizer.config.image_size // tokenizer.config.factor))
    shape = (side, side)
    if (decoder := empty_decoder(folder, config)) is not None:
        shape = (min(MAX_SIDE, decoder.layout.grid_height), min(MAX_SIDE, decoder.layout.grid_width))
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(tokenizer.config.codebook_size, (1, *shape), generator=random)
    if decoder is not None:
        text = read_text_tokenizer(folder, config)
        text_ids = decoder.layout.empty_ids if text is None else text.null_ids
        codes = _likeliest(decoder, folder / DECODER_FILE, text_ids, codes)
    for module in tokenizer.modules():  # pixels are clamped, so that the last ones do not show an overflow
        module.register_forward_hook(_check_finite)
    images = tokenizer.decode(codes)
    if not images.isfinite().all():
        raise _overflow()
    if not isinstance(tokenizer, ImageTokenizer) or not tokenizer.config.decode_only:
        tokenizer.encode(images)


def _check_finite(_module: nn.Module, _inputs: Any, output: Any) -> None:
    if isinstance(output, Tensor) and output.is_floating_point() and not torch.stack(output.aminmax()).isfinite().all():
        raise _overflow()


def _overflow() -> CheckpointError:
    return CheckpointError("the image tokenizer computes numbers that are not finite: its weights are damaged")


def _likeliest(decoder: Decoder, path: Path, text_ids: Tensor, codes: Tensor) -> Tensor:
    """The likeliest code (1, h, w) at each of the first positions of a row, given text ids (T,) and the codes (1, h, w)
    before it."""
    _read_when_used(decoder, path)
    layout = decoder.layout
    ids = layout.row(text_ids[None], codes)[:, :-1]
    features = None
    if (width := decoder.config.feature_width) is not None:
        features = torch.zeros(1, layout.text_length, width)
    hidden = decoder(ids, torch.arange(ids.shape[1]), features=features)
    logits = decoder.image_logits(hidden[:, layout.first_code - 1 :])
    if not logits.isfinite().all():
        raise CheckpointError("the decoder's logits are not finite: its weights are damaged")
    return logits.argmax(-1).reshape(codes.shape)


def _read_when_used(decoder: Decoder, path: Path) -> None:
    """Load the weights of a decoder without weights from a file: those of a block while it runs, the others now."""
    weights, stored = read_safetensors(path), stored_names(decoder)

    def load(module: nn.Module, prefix: str, names: list[str]) -> None:
        values = {name.removeprefix(prefix): weights[stored[name]].load().float() for name in names}
        module.load_state_dict(values, strict=False, assign=True)

    def hooks(block: nn.Module, prefix: str) -> tuple[Callable[..., None], Callable[..., None]]:
        names = [name for name in stored if name.startswith(prefix)]

        def before(*_: Any) -> None:
            load(block, prefix, names)

        def after(*_: Any) -> None:
            block.to("meta")

        return before, after

    load(decoder, "", [name for name in stored if not name.startswith("blocks.")])
    for i, block in enumerate(decoder.blocks):
        before, after = hooks(block, f"blocks.{i}.")
        block.register_forward_pre_hook(before)
        block.register_forward_hook(after)
