"""Shards of coloured squares in two styles to evaluate on."""

from pathlib import Path

from PIL import Image

from training.pairs.shard_writer import ShardWriter, encode_webp

__all__ = ["COLOURS", "picture", "write_shards"]

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "black": (0, 0, 0)}


def picture(colour: tuple[int, int, int], style: str, size: int) -> Image.Image:
    """A square of a colour: filled, or a frame."""
    image = Image.new("RGB", (size, size), "white")
    edge = size // 4
    image.paste(colour, (edge, edge, size - edge, size - edge))
    if style == "frame":
        image.paste((255, 255, 255), (edge + 2, edge + 2, size - edge - 2, size - edge - 2))
    return image


def write_shards(folder: Path, size: int = 16) -> Path:
    """Write shards `train`, `val_combo` and `val_misc` of squares in four colours and two styles. Returns `folder`."""
    pairs = [(colour, style) for colour in COLOURS for style in ("filled", "frame")]
    for split, chosen in (("train", pairs[2:]), ("val_combo", pairs[:1]), ("val_misc", pairs[1:2] * 2)):
        with ShardWriter(folder, split, pairs_per_shard=4 if split == "train" else None) as writer:
            for i, (colour, style) in enumerate(chosen):
                metadata = {
                    "captions": [f"{colour} {style}"],
                    "base": colour,
                    "style": style,
                    "name_en": "",
                    "id": f"{colour}/{style}",
                }
                writer.write(f"{split}-{i}", encode_webp(picture(COLOURS[colour], style, size)), metadata)
    return folder
