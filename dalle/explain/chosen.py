"""Layers and heads as people type them."""

import re
from collections.abc import Sequence

from dalle.errors import ParameterError

__all__ = ["chosen_of", "read_numbers"]


def read_numbers(name: str, text: str) -> list[int]:
    """The numbers of `3` or `1-4,8`, in the order given. Raises `ParameterError` for other text."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:\s*-\s*([0-9]{1,4}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise ParameterError(f"{name} is {text[:80]!r}; it must be numbers and ranges, as 3 or 1-4,8")
        numbers += range(first, last + 1)
    return numbers


def chosen_of(name: str, numbers: Sequence[int] | None, count: int) -> list[int]:
    """Numbers in 1..count, in order and each once; all of them for None. Raises `ParameterError` for another number.

    name: what is numbered, as in `layer`.
    """
    if numbers is None:
        return [*range(1, count + 1)]
    for number in numbers:
        if not 1 <= number <= count:
            raise ParameterError(f"{name} {number} is not there: the model has the {name}s 1..{count}")
    return sorted(set(numbers))
