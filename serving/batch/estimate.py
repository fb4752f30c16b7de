"""Estimates of a batch's duration, measured on its first pictures, and of its size on the disk."""

import time
from collections.abc import Iterator

import torch
from tqdm import tqdm

from dalle import DALLE
from dalle.checkpoint import ModelFacts
from dalle.images import ImageFormat, encode_image
from dalle.steps import new_engine
from serving.batch.items import Shard
from serving.batch.plan import PlanSettings
from serving.batch.worker import WorkerSettings

__all__ = ["estimate_text", "picture_bytes", "size_text"]

SHARE_OF_PIXELS: dict[ImageFormat, float] = {"png": 0.6, "jpeg": 0.15, "webp": 0.1}
"""Size of a picture's file as a share of its uncompressed pixels; rather too high than too low."""
RECORD_BYTES = 3000
"""Size in bytes of a picture's records, in all manifests together."""


def picture_bytes(facts: ModelFacts, settings: PlanSettings) -> int:
    """An upper estimate of a picture's size in the folder, in bytes, made before any is drawn."""
    height, width = facts.image_size
    channels = len(facts.image_mode)
    pixels = 0 if settings.layout == "codes" else channels * height * width * SHARE_OF_PIXELS[settings.image_format]
    return int(pixels) + RECORD_BYTES + 4 * facts.grid[0] * facts.grid[1]


def size_text(num_bytes: float) -> str:
    """A size for people to read, such as `1.2 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def estimate_text(
    settings: WorkerSettings,
    shards: Iterator[Shard],
    *,
    num_prompts: int,
    num_pictures: int,
    num_left: int,
    num_candidates: int,
    num_rows: int,
) -> str:
    """The report of `--dry-run`: counts, and duration and size, measured by drawing as many of the first pictures as
    there are slots.

    num_left: pictures to be drawn; num_candidates: candidates that they are chosen among, and pictures of items without
    any; num_rows: rows (token sequences) of all these, two for a guided picture.
    """
    counts = f"{num_prompts} prompts, {num_pictures} pictures, {num_left} of them to be drawn"
    if num_candidates > num_left:
        counts += f", by drawing {num_candidates} (see --best-of)"
    if not num_left:
        return counts
    torch.set_num_threads(settings.threads)
    model = DALLE.load(settings.model, device=settings.device)
    engine = new_engine(model, num_slots=settings.num_slots, step=settings.step, weights=settings.weights, parallel=1)
    num_used, requests = 0, []
    pictures = ((item, index) for shard in shards for item in shard.items for index in item.indices)
    for item, index in pictures:
        request = model.request(
            item.prompt,
            item.sampling,
            seed=item.seed,
            index=index,
            negative_prompt=item.negative_prompt,
            translation=item.translated.translation,
        )
        if num_used + request.num_slots > settings.num_slots:
            break
        requests.append((item, request))
        num_used += request.num_slots
    start = time.perf_counter()
    drawn = engine.run([request for _, request in requests])
    # each candidate is decoded and encoded here: decoding it is most of what a judge does
    num_bytes = 0.0
    for (item, request), codes in zip(requests, drawn, strict=True):
        picture = model.picture(request, codes, background=item.background).enlarged(item.enlargement)
        chunks = picture.receipt.to_text() if item.image_format == "png" else None
        size = len(encode_image(picture.image, format=item.image_format, quality=item.quality, text=chunks))
        in_base64 = item.openai is not None and item.openai["response_format"] == "b64_json"
        num_bytes += 0 if settings.layout == "codes" else size * (1 + 4 / 3 * in_base64)
    seconds = (time.perf_counter() - start) * num_rows / num_used
    measured = f"measured by drawing {len(requests)} pictures"
    lines = [
        counts,
        f"about {tqdm.format_interval(seconds)} ({seconds:.0f} s with one worker; {measured})",
        f"about {size_text((num_bytes / len(requests) + RECORD_BYTES) * num_left)}",
    ]
    return "\n".join(lines)
