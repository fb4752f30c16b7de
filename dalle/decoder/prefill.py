"""Prefill: fill a slot of the cache with all tokens of a row but the last, which is left to the first step.

Each row runs alone, so that the content of a slot does not depend on other requests.
"""

from collections import OrderedDict

import torch
from torch import Tensor

from dalle.decoder.cache import KVCache
from dalle.decoder.decoder import Decoder

__all__ = ["Prefill"]

PREFILLS_KEPT = 16


class Prefill:
    """Fills slots, and keeps the results for the last few rows: pictures of one prompt have the same row, and all
    prompts share the row of the null caption."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder = decoder
        self._cache = cache
        self._kept: OrderedDict[bytes, tuple[Tensor, Tensor, Tensor]] = OrderedDict()

    def fill(self, slot: int, text_ids: Tensor, features: Tensor | None, codes: list[int]) -> None:
        """Fill a slot with the row of text_ids (T,), or of features (T, feature_width), and given codes."""
        weight = self._decoder.embedding.weight
        prefix = torch.tensor([codes], dtype=torch.int64)
        row = self._decoder.layout.row(text_ids[None].cpu(), prefix)[:, :-1]
        length = row.shape[1]
        if features is not None:
            features = features[None, :length].float().cpu().contiguous()
        key = row.numpy().tobytes() + (b"" if features is None else features.numpy().tobytes())
        if key in self._kept:
            self._kept.move_to_end(key)
            self._cache.fill_slot(slot, self._kept[key])
            return
        self._cache.padding[slot] = False
        if length:  # a class label alone is the last token
            positions = torch.arange(length, device=weight.device)[None]
            view = self._cache.view(torch.tensor([slot], device=weight.device), positions)
            placed = None if features is None else features.to(weight.device, weight.dtype)
            self._decoder(row.to(weight.device), positions, view, placed)
        self._kept[key] = self._cache.copy_slot(slot, length)
        if len(self._kept) > PREFILLS_KEPT:
            self._kept.popitem(last=False)
