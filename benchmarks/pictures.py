"""Timings of whole pictures of the default model, for `benchmarks.decode`: from prompts to pixels and PNGs."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.limits import median_seconds
from dalle import DALLE
from dalle.decoder.engine import Engine
from dalle.images import encode_image
from dalle.model import NUM_SLOTS
from serving.engine.pictures import preview

__all__ = ["picture_rows"]

PROMPT = "a red panda, fluent 3d style emoji"
REPEATS = 5
NUM_PREVIEWS = 3


def _first_preview(model: DALLE) -> float:
    """Seconds until the first of three previews is a PNG, in this process. The service draws it after as many codes."""
    engine = Engine(model.decoder, num_slots=NUM_SLOTS)

    def run() -> None:
        key = engine.add(model.request(PROMPT, model.sampling, seed=1))
        for _ in range(model.num_codes // (2 * NUM_PREVIEWS + 1)):
            engine.step()
        encode_image(preview(model, engine.codes_so_far(key)), format="png")
        engine.cancel(key)

    return median_seconds(run, REPEATS)


def _drawing(model: DALLE, num: int) -> float:
    """Seconds from a prompt to `num` PNGs."""

    def run() -> None:
        for picture in model.generate(PROMPT, n=num, seed=1):
            encode_image(picture.image, format="png", text=picture.receipt.to_text())

    return median_seconds(run, REPEATS)


@torch.inference_mode()
def _pixels(model: DALLE, num: int) -> float:
    """Seconds to decode the codes of `num` pictures to pixels."""
    config = model.decoder.config
    shape = (num, config.grid_height, config.grid_width)
    codes = torch.randint(config.codebook_size, shape, generator=torch.Generator().manual_seed(0))
    return median_seconds(lambda: model.image_tokenizer.decode(codes), REPEATS)


def _cold_start() -> float:
    """Median seconds of `dalle generate` as a process of its own, until its PNG is written and it has ended."""
    times = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            command = (sys.executable, "-m", "dalle.cli", "generate", PROMPT, "--seed", "1", "--out", folder)
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
            assert list(Path(folder).glob("*.png")), "no PNG was written"
    return statistics.median(times)


def picture_rows() -> list[tuple[str, str]]:
    """Measure, and return the rows of a table: what was measured, and the figure."""
    start = time.perf_counter()
    model = DALLE.load()
    loading = time.perf_counter() - start
    one, eight, pixels = _drawing(model, 1), _drawing(model, 8), _pixels(model, 1)
    return [
        ("load the model", f"{loading:.2f} s"),
        ("prompt to PNG, one picture", f"{one:.2f} s"),
        ("prompt to PNG, eight pictures", f"{eight:.2f} s, {8 / eight:.1f} pictures/s"),
        ("first of three previews, as a PNG", f"{_first_preview(model):.2f} s"),
        ("pixels alone, one picture", f"{1e3 * pixels:.0f} ms, {pixels / one:.0%} of the picture's time"),
        ("pixels alone, eight pictures", f"{1e3 * _pixels(model, 8):.0f} ms"),
        ("`dalle generate` from a cold start", f"{_cold_start():.2f} s"),
    ]
