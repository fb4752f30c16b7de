"""Checks of built shards: a contact sheet, and a comparison with shards of the same pairs that were built elsewhere."""

import dataclasses
import random
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image
from tqdm import tqdm

from dalle.errors import DataError
from dalle.images import contact_sheet
from training.pairs.shards import PairShards, find_shards

__all__ = ["StyleComparison", "compare", "comparison_table", "write_contact_sheet"]

SHEET_COLUMNS, SHEET_ROWS = 24, 16


def write_contact_sheet(folder: Path, path: Path) -> None:
    """Write a PNG of 24 x 16 pictures that are sampled from a folder's shards with a fixed seed."""
    pairs = PairShards(find_shards([folder]))
    numbers = random.Random(0).sample(range(len(pairs)), min(len(pairs), SHEET_COLUMNS * SHEET_ROWS))
    pictures = [Image.fromarray(rearrange(pairs.picture(number).numpy(), "c h w -> h w c")) for number in numbers]
    contact_sheet(pictures, columns=SHEET_COLUMNS).save(path)


@dataclasses.dataclass(kw_only=True)
class StyleComparison:
    """Comparison of the pairs of one style with the reference."""

    pairs: int = 0
    """Number of pairs in the reference."""
    found: int = 0
    """Number of these that were built, in a shard of the same name."""
    equal_metadata: int = 0
    """Number of found pairs whose JSON metadata is equal."""
    equal_pixels: int = 0
    """Number of found pairs whose pixels are all equal."""
    sum_difference: float = 0.0
    """Sum over found pairs of the mean absolute difference of a channel, in 0..255."""
    max_difference: int = 0
    """Largest absolute difference of a channel of a pixel, in 0..255."""

    @property
    def mean_difference(self) -> float:
        """Mean absolute difference of a channel of a pixel over all found pairs, in 0..255."""
        return self.sum_difference / self.found if self.found else 0.0


def compare(folder: Path, reference: Path) -> dict[str, StyleComparison]:
    """Compare the pairs of two folders of shards, matched by id and name of the shard. Returns a comparison for each
    style, and one of all pairs as `all`."""
    styles: dict[str, StyleComparison] = defaultdict(StyleComparison)
    for path in tqdm(find_shards([reference]), desc="compare", unit="shard"):
        theirs = PairShards([path])
        ours = PairShards([folder / path.name]) if (folder / path.name).exists() else None
        numbers = {ours.metadata(number)["id"]: number for number in range(len(ours))} if ours else {}
        for number in range(len(theirs)):
            metadata = theirs.metadata(number)
            results = (styles[metadata["style"]], styles["all"])
            for result in results:
                result.pairs += 1
            if ours is None or metadata["id"] not in numbers:
                continue
            ours_number = numbers[metadata["id"]]
            pictures = [theirs.picture(number).numpy(), ours.picture(ours_number).numpy()]
            if pictures[0].shape != pictures[1].shape:
                raise DataError(
                    f"{path}: {metadata['id']} is {pictures[0].shape}; in {folder} it is {pictures[1].shape}"
                )
            difference = np.abs(pictures[0].astype(np.int16) - pictures[1].astype(np.int16))
            for result in results:
                result.found += 1
                result.equal_metadata += ours.metadata(ours_number) == metadata
                result.equal_pixels += not difference.any()
                result.sum_difference += float(difference.mean())
                result.max_difference = max(result.max_difference, int(difference.max()))
    return dict(styles)


def comparison_table(styles: Mapping[str, StyleComparison]) -> str:
    """The comparison as a text table: for each style, numbers of pairs, and differences of channels in 0..255."""
    lines = [f"{'style':16} {'pairs':>6} {'found':>6} {'=JSON':>6} {'=pixels':>7} {'mean diff':>9} {'max':>4}"]
    for style in sorted(styles, key=lambda style: (style == "all", style)):
        result = styles[style]
        lines.append(
            f"{style:16} {result.pairs:6} {result.found:6} {result.equal_metadata:6} {result.equal_pixels:7} "
            f"{result.mean_difference:9.4f} {result.max_difference:4}"
        )
    return "\n".join(lines)
