"""Weights that are stored in int8: a quarter of float32, half of float16.

Each row of a matrix, the weights of one output or one embedding, has a scale of its own: the largest of its values
becomes 127. Rounding changes a row of normal values by less than 1 % of their root mean square. Everything
else, such as biases and norms, is stored in float16. Loading gives float32 again, so nothing that computes knows of it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from dalle.checkpoint.weights import LazyTensor

__all__ = ["SCALES", "from_int8", "to_int8"]

SCALES = ":scales"
"""What the name of a matrix's scales, (rows,) float32, has behind that of the matrix."""


def to_int8(weights: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Weights as they are stored: each matrix in int8 beside its scales, other numbers in float16."""
    stored = {}
    for name, weight in weights.items():
        if len(weight.shape) < 2:
            stored[name] = weight.then(lambda t: t.half())
            continue
        stored[name] = weight.then(lambda t: _divided(t, _scales(t)).round().to(torch.int8))
        stored[name + SCALES] = weight.then(_scales)
    return stored


def from_int8(stored: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The weights of a file: matrices with scales are multiplied by them, everything else is as it is."""
    found = {}
    for name, weight in stored.items():
        if name.endswith(SCALES) and name.removesuffix(SCALES) in stored:
            continue
        found[name] = weight if name + SCALES not in stored else _multiplied(weight, stored[name + SCALES])
    return found


def _scales(weight: Tensor) -> Tensor:
    return weight.float().flatten(1).abs().amax(1).clamp(min=1e-30) / 127


def _divided(weight: Tensor, scales: Tensor) -> Tensor:
    return weight.float() / scales.reshape(-1, *[1] * (weight.ndim - 1))


def _multiplied(weight: LazyTensor, scales: LazyTensor) -> LazyTensor:
    def load() -> Tensor:
        return weight.load().float() * scales.load().reshape(-1, *[1] * (len(weight.shape) - 1))

    return LazyTensor(weight.shape, torch.float32, load)
