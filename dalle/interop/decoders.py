"""Conversion of decoders, shared by the families: which foreign weights were used, and a check that all were.

A family says which foreign weight each of our weights is: a single one or, where ours is one matrix (queries, keys and
values; embeddings of text and codes; heads), several that are concatenated along the first axis.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dalle.checkpoint.weights import LazyTensor, Part
from dalle.decoder.config import DecoderConfig
from dalle.decoder.decoder import Decoder
from dalle.errors import CheckpointError
from dalle.interop.family import check_biases, numbers

__all__ = ["ForeignWeights", "decoder_part", "grid_side"]


class ForeignWeights:
    """Weights under a project's names, with a record of which have been taken. Its methods raise `CheckpointError`,
    with the file's name, for a weight that is missing or has another number of axes."""

    def __init__(self, path: Path, weights: Mapping[str, LazyTensor]) -> None:
        self.path = path
        check_biases(path, weights)
        self._weights = weights
        self._parts: list[tuple[LazyTensor, str]] = []
        """The tensors that were taken, with names and shapes of the weights that they are made from."""
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def shape(self, name: str, num_axes: int = 2) -> tuple[int, ...]:
        """The shape of a weight, without taking it."""
        found = self._weights.get(name)
        if found is None or len(found.shape) != num_axes:
            raise CheckpointError(
                f"{self.path} has no {name} with {num_axes} axes: it is not a checkpoint of this family"
            )
        return found.shape

    def take(self, *names: str, then: Callable[[Tensor], Tensor] | None = None) -> LazyTensor:
        """Take one weight, or several concatenated along the first axis; `then` is applied to each."""
        parts = []
        for name in names:
            if name not in self._weights:
                raise CheckpointError(f"{self.path} has no {name}, which a checkpoint of this family has")
            self._taken.add(name)
            weight = numbers(self.path, name, self._weights[name])
            parts.append(weight if then is None else weight.then(then))
        if len({part.shape[1:] for part in parts}) > 1:
            shapes = ", ".join(str(part.shape) for part in parts)
            raise CheckpointError(f"{self.path}: {', '.join(names)} do not fit together; their shapes are {shapes}")
        taken = parts[0] if len(parts) == 1 else LazyTensor.joined(*parts)
        self._parts.append((taken, " with ".join(f"{name} of shape {self._weights[name].shape}" for name in names)))
        return taken

    def describe(self, taken: LazyTensor) -> str:
        """Names and shapes of the weights that a tensor was made from, for messages."""
        return next((text for one, text in self._parts if one is taken), f"a weight of shape {taken.shape}")

    def check_width(self, width_of: str, *tables: str) -> None:
        """Check that tables, such as embeddings, have rows as long as a weight with one axis. Raises `CheckpointError`
        for the first that has not."""
        (width,) = self.shape(width_of, 1)
        for name in tables:
            if name in self._weights and self.shape(name)[1] != width:
                raise CheckpointError(
                    f"{self.path}: {name} has shape {self.shape(name)}; {width_of} implies (..., {width})"
                )

    def constant(self, name: str) -> Tensor:
        """Load a tensor that the project computes and stores, such as a mask, and mark it as taken."""
        if name not in self._weights:
            raise CheckpointError(f"{self.path} has no {name}, which a checkpoint of this family has")
        self._taken.add(name)
        return self._weights[name].load()

    def linear(self, ours: str, *theirs: str) -> dict[str, LazyTensor]:
        """Take a layer's weight and, if it has one, its bias, under our names; several layers are concatenated."""
        layer = {f"{ours}.weight": self.take(*(f"{name}.weight" for name in theirs))}
        if f"{theirs[0]}.bias" in self._weights:
            layer[f"{ours}.bias"] = self.take(*(f"{name}.bias" for name in theirs))
        return layer

    def ignore(self, pattern: str) -> list[str]:
        """Mark the weights whose full names match the pattern as not needed; returns their names."""
        found = [name for name in self._weights if re.fullmatch(pattern, name)]
        self._taken.update(found)
        return found

    def count(self, pattern: str) -> int:
        """The number of layers: the pattern's group must find the numbers 0, 1, ... in the names without a gap."""
        numbers = {int(match[1]) for name in self._weights if (match := re.match(pattern, name))}
        if numbers != {*range(len(numbers))} or not numbers:
            raise CheckpointError(f"{self.path} lacks layers: it has only numbers {sorted(numbers)[:20]}")
        return len(numbers)

    @property
    def rest(self) -> list[str]:
        """Names of the weights that have not been taken."""
        return sorted({*self._weights} - self._taken)


def grid_side(path: Path, num_codes: int) -> int:
    """Codes along each side of a square picture of `num_codes`. Raises `CheckpointError` if the number is not a
    square."""
    side = math.isqrt(max(num_codes, 0))
    if num_codes < 1 or side**2 != num_codes:
        raise CheckpointError(f"{path} has {num_codes} codes for each picture, which is not a square number")
    return side


def decoder_part(theirs: ForeignWeights, config: DecoderConfig, ours: Mapping[str, LazyTensor]) -> Part:
    """A `Decoder` as a configuration and weights under our names. Raises `CheckpointError` if a weight has another
    shape than the configuration implies, or if a foreign weight was neither taken nor ignored."""
    with torch.device("meta"):
        network = Decoder(config)
    seen: set[int] = set()
    expected = {}
    for name, value in network.state_dict(keep_vars=True).items():
        if id(value) not in seen:  # weights that layers share are stored once
            seen.add(id(value))
            expected[name] = tuple(value.shape)
    for name, shape in expected.items():
        if name not in ours:
            raise CheckpointError(f"{theirs.path} has no weight for {name}, of shape {shape}")
        if ours[name].shape != shape:
            raise CheckpointError(f"{theirs.path} has {theirs.describe(ours[name])}; the others imply {shape}")
    if theirs.rest:
        raise CheckpointError(f"{theirs.path} has {theirs.rest[0]}, which no decoder of this family has a place for")
    return Part(config=config, weights={name: ours[name] for name in expected})
