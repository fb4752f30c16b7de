"""Layers and heads as people type them."""

import re

from dalle.errors import ParameterError

__all__ = ["read_numbers"]


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
