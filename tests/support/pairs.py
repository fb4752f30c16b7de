"""Tiny shards of coloured squares and their captions, written by the real shard writer."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from training.pairs.shard_writer import ShardWriter, encode_webp

__all__ = ["COLOURS", "pair", "write_pairs"]

COLOURS = ("red", "lime", "blue", "yellow", "white", "black")


def pair(number: int, size: int = 16, *, transparent: bool = False) -> tuple[Image.Image, dict[str, Any]]:
    """A coloured square on a coloured or transparent background, and its metadata."""
    chance = random.Random(number)
    ground, colour = chance.sample(COLOURS, 2)
    side = chance.randrange(size // 4, size // 2 + 1)
    left, top = chance.randrange(size - side + 1), chance.randrange(size - side + 1)
    image = Image.new("RGBA", (size, size)) if transparent else Image.new("RGB", (size, size), ground)
    image.paste(colour, (left, top, left + side, top + side))
    name = f"{colour} square"
    captions = [f"a {name} on {ground}", f"{name}, flat style"]
    return image, {
        "id": str(number),
        "style": "flat",
        "captions": captions,
        "weight": 1.0,
        "name_en": name,
        "keywords_en": [colour, "square", name],
    }


def write_pairs(
    folder: Path,
    name: str,
    num_pairs: int,
    *,
    weights: Sequence[float] = (1.0,),
    per_shard: int | None = None,
    transparent: bool = False,
) -> list[Path]:
    """Write pairs 0, 1, 2, ... with these weights, cyclically. Returns the shards."""
    with ShardWriter(folder, name, pairs_per_shard=per_shard) as writer:
        for number in range(num_pairs):
            image, metadata = pair(number, transparent=transparent)
            metadata["weight"] = weights[number % len(weights)]
            writer.write(f"{number:05d}", encode_webp(image), metadata)
    return sorted(folder.glob(f"{name}*.tar"))
