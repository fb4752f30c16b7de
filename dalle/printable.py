"""Untrusted text made safe for a terminal."""

import re

__all__ = ["printable"]

# C0 and C1 controls except the line feed, line and paragraph separators, and bidirectional marks. Zero-width joiners,
# which combine several emoji into one, are printable.
UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Escape control characters and reordering marks as \\uXXXX, so that untrusted text is safe on a terminal."""
    return UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
