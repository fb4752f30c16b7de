"""Mistakes in codes, made on purpose: what the decoder half of an image tokenizer learns to forgive.

Codes that stage 2 draws are not those of any picture: some of them do not fit their neighbours. A decoder half that has
seen only codes of real pictures paints such a place as whatever it may be. So it is trained further on codes of which
some are replaced, at random or by what stage 2 draws in their place, while the picture to be painted stays (RobusTok,
Qiu et al. 2025, arXiv 2503.08354).
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
from training.codes import codes_digest

__all__ = ["Mistakes"]

MAX_DRAWN_CODES = 0.5
DRAWN_TEMPERATURE = 0.7


class Mistakes:
    """Codes in, codes with mistakes out; as they are if there are none to make."""

    def __init__(
        self, random_codes: float, drawn_by: str | None, image_tokenizer: ImageTokenizer, device: torch.device
    ) -> None:
        """random_codes: share of codes replaced by any other. drawn_by: model directory that draws some anew.

        Raises `DataError` for a directory without a decoder, or with other codes than the image tokenizer's.
        """
        self.random_codes = random_codes
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
        """Whether codes are drawn anew, which needs the captions of their pictures."""
        return self.checkpoint is not None

    def captions(self, metadata: Sequence[Mapping[str, Any]], seed: Sequence[int]) -> dict[str, Tensor]:
        """`text_ids` (B, T) of a caption of each pair, as a part of a batch; nothing where none are needed."""
        if self.checkpoint is None or self.checkpoint.text_tokenizer is None:
            return {}
        chance = random.Random("/".join(map(str, seed)))
        captions = [draw_caption(dict(one), chance) for one in metadata]
        with warnings.catch_warnings(action="ignore"):  # a cut caption still says enough to draw mistakes by
            return {"text_ids": self.checkpoint.text_tokenizer.encode_batch(captions, truncate=True)}

    @torch.no_grad()
    def __call__(self, codes: Tensor, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """(B, H, W) -> (B, H, W). In the first half of the batch up to half of the codes of each picture are drawn
        anew; then codes are replaced at random in all pictures."""

        def chances(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator).to(codes.device)

        if self.checkpoint is not None and self.checkpoint.decoder is not None:
            true = codes[: len(codes) // 2]
            logits = self.checkpoint.decoder.teacher_forced(batch["text_ids"][: len(true)], true)[1]
            weights = (logits.flatten(0, 1).float() / DRAWN_TEMPERATURE).softmax(-1)
            drawn = (weights / torch.empty_like(weights).exponential_()).argmax(-1).view(true.shape)
            share = MAX_DRAWN_CODES * chances(len(true), 1, 1)
            codes = torch.cat([torch.where(chances(*true.shape) < share, drawn, true), codes[len(true) :]])
        if self.random_codes:
            others = torch.randint(self.codebook_size, codes.shape, generator=generator).to(codes.device)
            codes = torch.where(chances(*codes.shape) < self.random_codes, others, codes)
        return codes
