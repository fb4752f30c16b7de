"""Small pictures, and their files."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from dalle.receipt import Receipt


def random_picture(height: int = 5, width: int = 7) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def receipt_of(data: str) -> Receipt:
    """The receipt of a PNG in base64."""
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return Receipt.from_text(image.text)  # type: ignore[attr-defined]
