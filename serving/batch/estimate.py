"""What a batch will take, before it is drawn: seconds, measured on its first pictures, and bytes."""

import time
from collections.abc import Iterator

import torch
from tqdm import tqdm

from dalle import DALLE
from dalle.checkpoint import ModelFacts
from dalle.decoder.engine import Engine
from dalle.images import ImageFormat, encode_image
from dalle.model import NUM_SLOTS
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
    channels = len(facts.image_mode)
    pixels = 0 if settings.layout == "codes" else channels * height * width * SHARE_OF_PIXELS[settings.image_format]
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
    counts = f"{num_prompts} prompts, {num_pictures} pictures, {num_left} of them to be drawn"
    if not num_left:
        return counts
    torch.set_num_threads(settings.threads)
    model = DALLE.load(settings.model, device=settings.device)
    engine = Engine(model.decoder, num_slots=settings.num_slots)
    num_used, requests = 0, []
    pictures = ((one, one.first_index + i) for shard in shards for one in shard.rows for i in range(one.n))
    for row, index in pictures:
        params = row.sampling
        taken = 2 if params.guided else 1
        if num_used + taken > settings.num_slots:
            break
        request = model.request(row.prompt, params, seed=row.seed, index=index, negative_prompt=row.negative_prompt)
        requests.append((row, request))
        num_used += taken
    start = time.perf_counter()
    drawn = engine.run([request for _, request in requests])
    num_bytes = 0.0
    for (row, request), codes in zip(requests, drawn, strict=True):
        picture = model.picture(request, codes, background=row.background)
        chunks = picture.receipt.to_text() if row.image_format == "png" else None
        size = len(encode_image(picture.image, format=row.image_format, quality=row.quality, text=chunks))
        in_base64 = row.openai is not None and row.openai["response_format"] == "b64_json"
        num_bytes += 0 if settings.layout == "codes" else size * (1 + 4 / 3 * in_base64)
    seconds = (time.perf_counter() - start) * num_rows / num_used
    measured = f"{len(requests)} pictures were drawn to measure"
    lines = [
        counts,
        f"about {tqdm.format_interval(seconds)} ({seconds:.0f} s with one worker; {measured})",
        f"about {size_text((num_bytes / len(requests) + RECORD_BYTES) * num_left)}",
    ]
    return "\n".join(lines)
