"""The items of each batch: shuffled, weighted epochs, as a pure function of (seed, step)."""

import math

import numpy as np

from dalle.errors import DataError

__all__ = ["WeightedEpochs"]

AT_ONCE = 2**20
"""Items whose random numbers are in memory at once."""


class WeightedEpochs:
    """The items of each batch: shuffled epochs in which item i occurs weights[i] times on average.

    A batch is a pure function of (seed, step). An item of weight 1 occurs exactly once in every epoch, one of weight
    0.3 in three of ten epochs, one of weight 2.5 two or three times. Memory holds the weights and the order of one
    epoch: 4 bytes for each of its items, and twice that while it is shuffled.
    """

    def __init__(self, weights: np.ndarray, *, batch_size: int, seed: int) -> None:
        """weights: (M,) float32 or float64. Raises `DataError` if some are negative, or none is positive, or the sum is
        not finite."""
        parts = [weights[start : start + AT_ONCE] for start in range(0, len(weights), AT_ONCE)]
        total = weights.sum(dtype=np.float64)
        if not all((part >= 0).all() for part in parts) or not 0 < total < math.inf:
            raise DataError("sampling weights must be non-negative, with a positive and finite sum")
        self.weights = weights
        self.batch_size = batch_size
        self.seed = seed
        whole = all((part == np.floor(part)).all() for part in parts)
        self._fixed_length = int(total) if whole else None
        """Length of every epoch, if no weight has a fraction."""
        self._ends: list[int] = []
        self._cached: tuple[int, np.ndarray] | None = None

    def _times(self, random: np.random.Generator, start: int) -> np.ndarray:
        """How often each of the items from `start` on occurs: (AT_ONCE or fewer,) int64. To be called for all parts in
        their order, with one generator."""
        weights = self.weights[start : start + AT_ONCE].astype(np.float64)
        return np.floor(weights + random.random(len(weights))).astype(np.int64)

    def _epoch(self, epoch: int) -> np.ndarray:
        if self._cached is None or self._cached[0] != epoch:
            self._cached = None  # two orders at once would take twice the memory
            random = np.random.default_rng([self.seed, epoch])
            kind = np.int32 if len(self.weights) < 2**31 else np.int64
            parts = []
            for start in range(0, len(self.weights), AT_ONCE):
                times = self._times(random, start)
                parts.append(np.repeat(np.arange(start, start + len(times), dtype=kind), times))
            order = np.concatenate(parts)
            del parts
            random.shuffle(order)
            self._cached = (epoch, order)
        return self._cached[1]

    def _length(self, epoch: int) -> int:
        """The length of an epoch, without its order: a run that resumes late passes over many epochs."""
        if self._fixed_length is not None:
            return self._fixed_length
        random = np.random.default_rng([self.seed, epoch])
        return sum(int(self._times(random, start).sum()) for start in range(0, len(self.weights), AT_ONCE))

    def batch(self, step: int) -> np.ndarray:
        """The numbers of the items in the batch of a step, counted from 0: (batch_size,) int64."""
        position, stop = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        epoch = 0 if self._fixed_length is None else position // self._fixed_length
        while position < stop:
            start = self._end(epoch - 1)
            if position < self._end(epoch):
                part = self._epoch(epoch)[position - start : stop - start]
                parts.append(part)
                position += len(part)
            epoch += 1
        return np.concatenate(parts).astype(np.int64)

    def _end(self, epoch: int) -> int:
        """The number of items in all epochs up to this one; epoch: -1 or more."""
        if self._fixed_length is not None:
            return (epoch + 1) * self._fixed_length
        while epoch >= len(self._ends):
            previous = self._ends[-1] if self._ends else 0
            self._ends.append(previous + self._length(len(self._ends)))
        return self._ends[epoch] if epoch >= 0 else 0
