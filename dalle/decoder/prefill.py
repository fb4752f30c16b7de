"""Prefill: fill a slot of the cache with all tokens of a row but the last, which is left to the first step.

Each row runs alone, so that the content of a slot does not depend on other requests.
"""

from collections import OrderedDict

import torch
from torch import Tensor

from dalle.decoder.cache import KVCache
from dalle.decoder.decoder import Decoder

__all__ = ["Prefill"]

ROWS_KEPT = 16
BYTES_KEPT = 128 * 1024**2


class Prefill:
    """Fills slots, and keeps the results for the last few rows: pictures of one prompt have the same row, and all
    prompts share the row of the null caption. At most 16 rows and 128 MiB are kept."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder = decoder
        self._cache = cache
        self._kept: OrderedDict[bytes, list[tuple[Tensor, Tensor, Tensor]]] = OrderedDict()
        self.num_bytes = 0
        """Size of the kept results."""

    def fill(self, slot: int, text_ids: Tensor, features: Tensor | None, codes: list[int]) -> int:
        """Fill a slot with the row of text_ids (T,), or of features (T, feature_width), and given codes. Returns the
        row's last token."""
        weight, layout = self._decoder.embedding.weight, self._decoder.layout
        prefix = torch.tensor([codes], dtype=torch.int64)
        whole = layout.row(text_ids[None].cpu(), prefix)
        row, last = whole[:, :-1], int(whole[0, -1])
        length = row.shape[1]
        self._cache.padding[slot, : layout.first_code] = layout.is_padding(whole[0, : layout.first_code])
        if features is not None:
            features = features[None, :length].float().cpu().contiguous()
        key = row.numpy().tobytes() + (b"" if features is None else features.numpy().tobytes())
        view = self._cache.prefill_view(slot)
        if key in self._kept:
            self._kept.move_to_end(key)
            view.paste(self._kept[key])
            return last
        if length:  # a class label alone is the last token
            positions = torch.arange(length, device=weight.device)
            placed = None if features is None else features.to(weight.device, weight.dtype)
            self._decoder(row.to(weight.device), positions, view, placed)
        self._keep(key, view.copy(length))
        return last

    def _keep(self, key: bytes, contents: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        self._kept[key] = contents
        self.num_bytes += _num_bytes(contents)
        while len(self._kept) > ROWS_KEPT or self.num_bytes > BYTES_KEPT:
            _, dropped = self._kept.popitem(last=False)
            self.num_bytes -= _num_bytes(dropped)


def _num_bytes(contents: list[tuple[Tensor, Tensor, Tensor]]) -> int:
    return sum(tensor.nbytes for layer in contents for tensor in layer)
