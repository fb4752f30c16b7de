"""Code perturbation: codes that are replaced on purpose while the decoder half of an image tokenizer is trained
further.

Stage 2 draws some codes that do not fit their neighbours. A decoder half that has seen only codes of real pictures
paints artefacts there. So it is trained further on codes of which some are replaced, at random or by a sample of the
stage 2 model, while the target picture stays the same (RobusTok, Qiu et al. 2025, arXiv 2503.08354).
"""

import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dalle.checkpoint import load_checkpoint
from dalle.errors import DataError
from dalle.vq.vqgan import ImageTokenizer
from training.captions.draw import draw_caption
from training.distributed import WHOLE, Share
from training.token_shards import codes_digest

__all__ = ["CodePerturbation"]

MAX_DRAWN_CODES = 0.5
"""Largest share of a picture's codes that the stage 2 model draws anew; each picture has its own share below it."""
DRAWN_TEMPERATURE = 0.7
"""Temperature at which the stage 2 model draws them."""


class CodePerturbation:
    """Replaces some codes of a batch; with no replacement configured, the codes stay as they are."""

    def __init__(
        self,
        random_codes: float,
        drawn_by: str | None,
        image_tokenizer: ImageTokenizer,
        device: torch.device,
        share: Share = WHOLE,
    ) -> None:
        """random_codes: share of codes that are replaced by random ones. drawn_by: model directory whose decoder draws
        some codes anew; None for no such codes. share: the rows of a batch whose codes are given.

        Raises `DataError` for a model directory without a decoder, or with other codes than the image tokenizer's.
        """
        self.random_codes = random_codes
        self.share = share
        self.codebook_size = image_tokenizer.config.codebook_size
        self.checkpoint = None if drawn_by is None else load_checkpoint(drawn_by)
        if self.checkpoint is None:
            return
        if self.checkpoint.decoder is None or self.checkpoint.text_tokenizer is None:
            raise DataError(f"{drawn_by} has no decoder to draw codes")
        if codes_digest(self.checkpoint.image_tokenizer) != codes_digest(image_tokenizer):
            raise DataError(f"{drawn_by} draws other codes than those of the image tokenizer that is trained")
        self.checkpoint.decoder.to(device).requires_grad_(False).eval()

    @property
    def need_captions(self) -> bool:
        """Whether a stage 2 model draws codes anew, which needs the captions of the pictures."""
        return self.checkpoint is not None

    def captions(self, metadata: Sequence[Mapping[str, Any]], seed: Sequence[int]) -> dict[str, Tensor]:
        """`text_ids` (B, T) of one caption of each pair, as an entry of a batch; empty if no captions are needed."""
        if self.checkpoint is None or self.checkpoint.text_tokenizer is None:
            return {}
        chance = random.Random("/".join(map(str, seed)))
        captions = [draw_caption(dict(one), chance) for one in metadata]
        with warnings.catch_warnings(action="ignore"):  # a truncated caption is good enough here
            return {"text_ids": self.checkpoint.text_tokenizer.encode_batch(captions, truncate=True)}

    @torch.no_grad()
    def __call__(self, codes: Tensor, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Codes (B, H, W) -> (B, H, W). The stage 2 model redraws up to half of the codes of each picture in the first
        half of the batch; then codes of all pictures are replaced at random."""

        share, num_rows = self.share, self.share.whole(len(codes))

        def chances(num_rows: int, *shape: int) -> Tensor:
            return share.of(torch.rand(num_rows, *shape, generator=generator)).to(codes.device)

        if self.checkpoint is not None and self.checkpoint.decoder is not None:
            half, shape = num_rows // 2, codes.shape[1:]
            true = codes[: share.among_first(half)]
            logits = self.checkpoint.decoder.teacher_forced(batch["text_ids"][: len(true)], true)[1]
            weights = (logits.flatten(0, 1).float() / DRAWN_TEMPERATURE).softmax(-1)
            noise = weights.new_empty(half, shape.numel(), weights.shape[-1]).exponential_()
            drawn = (weights / share.of(noise).flatten(0, 1)).argmax(-1).view(true.shape)
            part = MAX_DRAWN_CODES * chances(half, 1, 1)
            codes = torch.cat([torch.where(chances(half, *shape) < part, drawn, true), codes[len(true) :]])
        if self.random_codes:
            others = torch.randint(self.codebook_size, (num_rows, *codes.shape[1:]), generator=generator)
            replaced = chances(num_rows, *codes.shape[1:]) < self.random_codes
            codes = torch.where(replaced, share.of(others).to(codes.device), codes)
        return codes
