"""What a batch will take, before it is drawn: seconds, measured on its first pictures, and bytes."""

import time
from collections.abc import Iterator
from itertools import islice

import torch

from dalle import DALLE
from dalle.checkpoint import ModelFacts
from dalle.engine import Engine
from dalle.images import ImageFormat, encode_image
from dalle.model import NUM_SLOTS
from dalle.sampling import SamplingParams
from serving.batch.plan import PlanSettings, Shard
from serving.batch.worker import WorkerSettings

__all__ = ["DEFAULT_SLOTS", "picture_bytes", "size_text", "text"]

DEFAULT_SLOTS = NUM_SLOTS
SHARE_OF_PIXELS: dict[ImageFormat, float] = {"png": 0.6, "jpeg": 0.15, "webp": 0.1}
"""Bytes of a file for each byte of its pixels, on the high side."""
RECORD_BYTES = 3000
"""Of a picture in the manifests, all of them together."""


def picture_bytes(facts: ModelFacts, settings: PlanSettings) -> int:
    """What a picture may need in the folder, on the high side, before any is drawn."""
    height, width = facts.image_size
    pixels = 0 if settings.layout == "codes" else 3 * height * width * SHARE_OF_PIXELS[settings.image_format]
    return int(pixels) + RECORD_BYTES + 4 * facts.grid[0] * facts.grid[1]


def size_text(num_bytes: float) -> str:
    """For a person: `1.2 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def text(
    settings: WorkerSettings,
    shards: Iterator[Shard],
    *,
    num_prompts: int,
    num_pictures: int,
    num_left: int,
    num_rows: int,
) -> str:
    """Counts, and what is measured by drawing as many of the first pictures as there are slots."""
    lines = [f"{num_prompts} prompts, {num_pictures} pictures, {num_left} of them to be drawn"]
    rows = list(islice((row for shard in shards for row in shard.rows), settings.num_slots))
    if not num_left or not rows:
        return lines[0]
    torch.set_num_threads(settings.threads)
    model = DALLE.load(settings.model, device=settings.device)
    engine = Engine(model.decoder, num_slots=settings.num_slots)
    num_slots, requests = settings.num_slots, []
    for row in rows:
        params = SamplingParams.from_dict(row.parameters)
        num_slots -= 2 if params.guided else 1
        if num_slots >= 0:
            request = model.request(row.prompt, params, seed=row.seed, negative_prompt=row.negative_prompt)
            requests.append((row, request))
    start = time.perf_counter()
    drawn = engine.run([request for _, request in requests])
    files = []
    for (row, request), codes in zip(requests, drawn, strict=True):
        picture = model.picture(row.prompt, row.negative_prompt, request, codes)
        chunks = picture.receipt.to_text() if row.image_format == "png" else None
        files.append(len(encode_image(picture.image, format=row.image_format, quality=row.quality, text=chunks)))
    seconds = (time.perf_counter() - start) * num_rows / (settings.num_slots - max(num_slots, 0))
    each = (0 if settings.layout == "codes" else sum(files) / len(files)) + RECORD_BYTES
    lines.append(f"about {seconds:.0f} s with one worker ({len(files)} pictures were drawn to measure)")
    lines.append(f"about {size_text(each * num_left)}")
    return "\n".join(lines)
