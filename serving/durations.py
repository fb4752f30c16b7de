"""Durations in settings: `90s`, `10m`, `1h30m`, a number of seconds, or `off`."""

import re
from typing import Annotated

from pydantic import BeforeValidator

__all__ = ["Duration", "seconds_of"]

PARTS = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", re.ASCII)
UNITS = (3600, 60, 1)


def seconds_of(value: object) -> object:
    """Seconds of a duration as a setting writes it; 0 for `off`. Other types than text, numbers and False are returned
    as they are. Raises `ValueError` for a text of another form."""
    if value is False:  # what YAML makes of off
        return 0.0
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if text == "off":
        return 0.0
    found = PARTS.fullmatch(text)
    if found is None or not any(found.groups()):
        raise ValueError(f"the duration is {value!r}; it must be like 90s, 10m or 1h30m, or off")
    return sum(float(part or 0) * unit for part, unit in zip(found.groups(), UNITS, strict=True))


Duration = Annotated[float, BeforeValidator(seconds_of)]
"""Seconds; in settings also a text such as `10m`, or `off`, which is 0."""
