"""What `benchmarks.training` times: the contract of a contender, this project's stages as contenders, and their work.

    seconds = contender.step()

Ours is the real training step: `DecoderTask.train_step` or `VQTask.train_step` of a preset, on random rows or pictures,
with gradient clipping, Muon and AdamW (stage 1: AdamW and the moving averages of the codebook), averaged weights, and
all scalars that a run logs. A batch is prepared before the clock starts, as a run prepares it in a process of its own.

The operations of a row of stage 2, for all contenders alike, are those of this project's decoder:

    6 * (matrices of the blocks * tokens + width * (text ids * text vocabulary + codes * codebook))
    + 12 * depth * heads * head_dim * tokens^2

Each weight of a matrix is multiplied and added once in the forward pass and twice in the backward pass, which makes 6;
attention has two products (queries by keys, weights by values) of tokens^2 * heads * head_dim each, which makes 12, and
causal masks save nothing. Norms, softmax, embeddings and optimizers do not count. Utilisation is the operations divided
by seconds and by the rate of a large matrix product in the same dtype. In stage 1, torch counts the operations of each
contender's own convolutions and products.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from dalle.decoder.config import DecoderConfig
from dalle.device import keep_memory
from dalle.vq.vqgan import ImageTokenizerConfig
from training import decoder_presets, vq_presets
from training.decoder import DecoderTask
from training.decoder_config import DecoderTrainingConfig
from training.dry_run.synthetic import SMALL, TEXT_LENGTH, VOCAB_SIZE, with_random_data
from training.loop import LoopConfig
from training.vq import VQTask
from training.vq_config import VQTrainingConfig

__all__ = ["CASES", "Case", "Contender", "OurDecoder", "OurVQ", "row_work"]


class Contender(Protocol):
    """A network with its optimizer and its training step."""

    note: str
    """Where it differs from the others in sizes or in what it computes; empty if it does not."""
    network: nn.Module

    def step(self) -> float:
        """Take a training step. Returns its seconds, without those that it takes to prepare a batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """The sizes of a comparison, the same for all contenders."""

    batch: int
    """Rows or pictures of a step."""
    at_once: int
    """How many of them are computed at once; gradients are accumulated."""
    decoder: DecoderTrainingConfig | None = None
    """The preset of stage 2; None in stage 1."""
    vq: VQTrainingConfig | None = None
    """The preset of stage 1; None in stage 2."""
    grid_size: int = 16
    """Codes along each side."""
    codebook_size: int = 4096

    @property
    def codes(self) -> ImageTokenizerConfig:
        """The image tokenizer whose codes stage 2 learns."""
        patch = SMALL.image_size // self.grid_size
        return dataclasses.replace(SMALL, codebook_size=self.codebook_size, patch_size=patch)

    @property
    def shape(self) -> DecoderConfig:
        """The decoder of stage 2."""
        assert self.decoder is not None
        return dataclasses.replace(
            self.decoder.model,
            text_vocab_size=VOCAB_SIZE,
            text_length=TEXT_LENGTH,
            codebook_size=self.codebook_size,
            grid_height=self.grid_size,
            grid_width=self.grid_size,
        )

    def loop(self, loop: LoopConfig, precision: str) -> LoopConfig:
        changes: dict[str, Any] = {"precision": precision, "device": "cpu", "workers": 0}
        return dataclasses.replace(loop, batch_size=self.batch, **changes)


SAME_WIDTHS = ImageTokenizerConfig(
    patch_size=4,
    widths=(64, 64),
    num_res_blocks=1,
    num_decoder_blocks=1,
    norm_groups=16,
    encoder_middle_attention=False,
)
CASES: dict[str, Case] = {
    "8x320": Case(batch=64, at_once=16, decoder=decoder_presets.emoji()),
    "12x768": Case(batch=32, at_once=4, decoder=decoder_presets.base(), codebook_size=8192),
    "vq": Case(batch=32, at_once=32, vq=dataclasses.replace(vq_presets.emoji(), model=SAME_WIDTHS)),
}
"""The cases by name: the decoders of the presets `emoji` (256 codes of 4,096, its own batch) and `base` (of 8,192, an
eighth of its batch), and an image tokenizer of 64 channels for 16 x 16 codes."""


def row_work(shape: DecoderConfig) -> float:
    """Operations of a row in a training step; see the module."""
    heads = shape.num_heads + 2 * shape.num_kv_heads
    attention = shape.width * heads * shape.head_dim + shape.num_heads * shape.head_dim * shape.width
    gated = shape.mlp in ("geglu", "swiglu")
    mlp = shape.width * shape.mlp_width * (3 if gated else 2)
    layout = shape.layout
    tokens = layout.length - 1  # the last code is predicted, and not read
    text = (shape.text_length - 1) * shape.text_vocab_size if shape.text_head else 0
    head = shape.width * (text + layout.num_codes * shape.codebook_size)
    products = 12 * shape.depth * shape.num_heads * shape.head_dim * tokens**2
    return 6 * (shape.depth * (attention + mlp) * tokens + head) + products


class _Ours:
    """A task of `training.loop` as a contender."""

    note = ""

    def __init__(self, make: Callable[..., Any], config: Any, *codes: ImageTokenizerConfig) -> None:
        keep_memory()  # as `training.loop` does
        self._folder = tempfile.TemporaryDirectory()  # as long as pictures are read from it
        torch.manual_seed(0)
        self._task = make(with_random_data(config, Path(self._folder.name), *codes))
        self._number = 0
        self.network: nn.Module = self._task.model

    def step(self) -> float:
        batch = self._task.batch(self._number)
        torch.manual_seed(self._number)
        start = time.perf_counter()
        self._task.train_step(self._number, batch)
        seconds = time.perf_counter() - start
        self._number += 1
        return seconds


class OurDecoder(_Ours):
    """Stage 2."""

    def __init__(self, case: Case, precision: str, *, compiled: bool) -> None:
        assert case.decoder is not None
        loop = case.loop(case.decoder.loop, precision)
        config = dataclasses.replace(case.decoder, loop=loop, compile=compiled, micro_batch_size=case.at_once)
        super().__init__(DecoderTask, config, case.codes)


class OurVQ(_Ours):
    """Stage 1, after the codebook has been initialised."""

    def __init__(self, case: Case, precision: str) -> None:
        assert case.vq is not None
        config = dataclasses.replace(case.vq, loop=case.loop(case.vq.loop, precision), unquantized_steps=0)
        super().__init__(VQTask, config)
