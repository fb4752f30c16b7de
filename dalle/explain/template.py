"""The parts of the page of an explanation that are the same for every picture: its HTML, style and script.

A content security policy can allow style and script by their hashes. Nothing large is imported.
"""

import base64
import hashlib
from pathlib import Path

__all__ = ["HTML", "POLICY", "SCRIPT", "SCRIPT_HASH", "STYLE", "STYLE_HASH"]

HTML, STYLE, SCRIPT = (
    Path(__file__).with_name(f"page.{ending}").read_text(encoding="utf-8").rstrip("\n")
    for ending in ("html", "css", "js")
)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


SCRIPT_HASH = _hash(SCRIPT)
"""Source of the script for the directive `script-src`."""
STYLE_HASH = _hash(STYLE)
"""Source of the style for the directive `style-src`."""
POLICY = f"default-src 'none'; img-src data:; script-src {SCRIPT_HASH}; style-src {STYLE_HASH}"
"""Content security policy of the page by itself: its own script and style, and pictures that are in it."""
