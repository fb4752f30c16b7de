"""Batches of sentences and their translations as ids, those of similar length together."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dalle.errors import DataError
from dalle.text.bpe import TextTokenizer
from dalle.translate.languages import clean
from training.distributed import Share

__all__ = ["SentenceBatches"]

TOGETHER = 24
"""Batches whose lines are sorted by length together, so that little is padding, and batches are still varied."""


class SentenceBatches:
    """Training batches as a pure function of the step: every line once in an epoch, in an order of its own."""

    def __init__(
        self,
        lines: Sequence[Mapping[str, Any]],
        tokenizer: TextTokenizer,
        *,
        batch_size: int,
        seed: int,
        source_length: int,
        target_length: int,
    ) -> None:
        """Lines that are too long are left out, and counted in `num_long`. Raises `DataError` if that are all."""
        self.batch_size, self.seed, self.pad_id = batch_size, seed, tokenizer.pad_id
        pairs = [(_ids(tokenizer, line["source"]), _ids(tokenizer, line["target"])) for line in lines]
        kept = [(one, two) for one, two in pairs if len(one) <= source_length and len(two) <= target_length]
        self.num_long = len(pairs) - len(kept)
        if not kept:
            raise DataError(f"all {len(pairs)} lines have more tokens than the network reads: raise the lengths")
        self._sources, self._targets = ([pair[side] for pair in kept] for side in (0, 1))
        self._lengths = np.array([max(len(one), len(two)) for one, two in kept])

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def per_epoch(self) -> int:
        """Number of batches of an epoch; lines of a last one that is not full wait for another epoch."""
        return max(1, len(self) // self.batch_size)

    def batch(self, step: int, share: Share) -> dict[str, Tensor]:
        """A share of the batch of a step: `source_ids` (B, S) and `target_ids` (B, L) int64, with ends, padded on the
        right."""
        epoch, place = divmod(step, self.per_epoch)
        numbers = share.of(self._epoch(epoch)[place])
        return {
            "source_ids": self._padded([self._sources[number] for number in numbers]),
            "target_ids": self._padded([self._targets[number] for number in numbers]),
        }

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _epoch(self, epoch: int) -> np.ndarray:
        """Numbers of the lines of each batch: (per_epoch, batch_size)."""
        chance = np.random.default_rng([self.seed, epoch, 7])
        order = chance.permutation(len(self))
        size = self.batch_size
        if len(order) < size:
            order = np.resize(order, size)
        order = order[: self.per_epoch * size]
        groups = [order[start : start + TOGETHER * size] for start in range(0, len(order), TOGETHER * size)]
        sorted_groups = [group[np.argsort(self._lengths[group], kind="stable")] for group in groups]
        batches = np.concatenate(sorted_groups).reshape(-1, size)
        return batches[chance.permutation(len(batches))]

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        length = max(map(len, rows))
        return torch.tensor([[*row, *[self.pad_id] * (length - len(row))] for row in rows])


def _ids(tokenizer: TextTokenizer, text: str) -> list[int]:
    return [*tokenizer.tokenize(clean(text)), tokenizer.eos_id]
