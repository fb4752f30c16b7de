"""Benchmark of offline batches: speed relative to the bare engine, and growth of memory.

`python -m benchmarks.batch` draws 1,000 prompts as a batch and with the bare engine, pixels and PNGs included, and
prints pictures per second, their ratio, and the start-up time of the batch. The speed of a machine varies, so the two
take turns: the batch is stopped (SIGSTOP) every 15 seconds, and the engine draws a slice of the prompts meanwhile.
`--memory 100000` runs a batch of 100,000 prompts with a model of tiny random weights, and prints its memory.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import psutil
import torch
import typer

from dalle import DALLE
from dalle.checkpoint import save_checkpoint
from dalle.checkpoint.store import DEFAULT_MODEL
from dalle.decoder.config import DecoderConfig
from dalle.decoder.decoder import Decoder
from dalle.images import encode_image
from dalle.text.bpe import TextTokenizer
from dalle.vq.vqgan import ImageTokenizer, ImageTokenizerConfig

__all__ = ["main"]

THINGS = (
    "red panda",
    "green heart",
    "slice of pizza",
    "owl",
    "blue fish",
    "yellow car",
    "tree",
    "house",
    "star",
    "cup",
)
STYLES = ("fluent 3d", "twemoji", "noto", "line icon", "clip art")
TURN_SECONDS = 15.0
SLICE = 96
"""Number of prompts that the bare engine draws in a turn."""
SAMPLE_SECONDS = 1.0


def write_prompts(path: Path, number: int) -> None:
    """Write a file of prompts, with as many different texts as the words allow."""
    with open(path, "w", encoding="utf-8") as file:
        for i in range(number):
            prompt = f"a {THINGS[i % len(THINGS)]}, {STYLES[i // len(THINGS) % len(STYLES)]} style emoji"
            file.write(json.dumps({"prompt": prompt, "seed": i}) + "\n")


class BareEngine:
    """Draws the same prompts with `DALLE.generate` in this process, and measures its speed."""

    def __init__(self, model: str, prompts: Path) -> None:
        items = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
        self._prompts = [item["prompt"] for item in items]
        self._dalle = DALLE.load(model)
        self._slices = itertools.count()
        self.num_pictures = 0
        self.seconds = 0.0

    def draw_slice(self) -> None:
        """Draw the next slice of the prompts."""
        first = next(self._slices) * SLICE % len(self._prompts)
        start = time.perf_counter()
        for picture in self._dalle.generate(self._prompts[first : first + SLICE], seed=0):
            encode_image(picture.image, format="png", text=picture.receipt.to_text())
            self.num_pictures += 1
        self.seconds += time.perf_counter() - start


def time_batch(model: str, prompts: Path, out: Path, bare: BareEngine) -> tuple[float, float]:
    """Run a batch; the bare engine draws while the batch is stopped.

    Returns seconds until drawing begins, and pictures per second from then until the process ends, stops left out.
    """
    start, stopped = time.time(), 0.0
    command = [sys.executable, "-m", "serving.batch", str(prompts), "--out", str(out), "--model", model]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TURN_SECONDS)
            break
        process.send_signal(signal.SIGSTOP)
        moment = time.time()
        bare.draw_slice()
        stopped += time.time() - moment
        process.send_signal(signal.SIGCONT)
    end = time.time()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    times = sorted(moment for line in log if line["event"] == "shard" for moment in line["times"].values())
    # the first pictures fill all slots and finish together, one wave after drawing began, long before the first stop
    early = [moment for moment in times if moment < start + TURN_SECONDS]
    wave = next(moment for moment in early if moment > early[0] + 0.5 * (early[-1] - early[0]) / len(early)) - early[0]
    began = early[0] - wave
    return began - start, len(times) / (end - began - stopped)


def tiny_model(folder: Path) -> Path:
    """A model of random weights whose step takes a millisecond: 4 x 4 codes, 16 x 16 pixels."""
    torch.manual_seed(0)
    text = TextTokenizer.train([f"a {thing}" for thing in THINGS], vocab_size=300, text_length=40, lowercase=True)
    image = ImageTokenizer(
        ImageTokenizerConfig(
            image_size=16,
            patch_size=4,
            widths=(8,),
            num_res_blocks=1,
            norm_groups=4,
            codebook_size=32,
            codebook_dim=4,
        )
    )
    decoder = DecoderConfig(
        text_vocab_size=text.vocab_size,
        text_length=40,
        codebook_size=32,
        grid_height=4,
        grid_width=4,
        width=16,
        depth=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mlp_width=16,
    )
    save_checkpoint(folder, name="tiny", image_tokenizer=image, text_tokenizer=text, decoder=Decoder(decoder), about={})
    return folder


def print_memory(number: int, scratch: Path) -> None:
    """Run a batch of tiny pictures, and print its resident memory at every tenth of it."""
    prompts, out = scratch / "many.jsonl", scratch / "many"
    write_prompts(prompts, number)
    command = [sys.executable, "-m", "serving.batch", str(prompts), "--out", str(out), "--slots", "64"]
    process = subprocess.Popen([*command, "--model", str(tiny_model(scratch / "tiny")), "--threads", "1"])
    watched = psutil.Process(process.pid)
    num_shards, printed = -(-number // 64), 0
    print("| pictures done | resident memory |\n|---|---|")
    peak = 0
    while process.poll() is None:
        time.sleep(SAMPLE_SECONDS)
        try:
            resident = watched.memory_info().rss
        except psutil.Error:
            break
        peak = max(peak, resident)
        done = len(os.listdir(out / "shards")) if (out / "shards").exists() else 0
        if done * 10 // num_shards > printed:
            printed = done * 10 // num_shards
            print(f"| {min(number, done * 64)} | {resident / 1e6:.0f} MB |", flush=True)
    print(f"| all, merged: peak | {peak / 1e6:.0f} MB |")


def main(
    prompts: Annotated[int, typer.Option(help="Number of prompts of the comparison of speed; 0 skips it.")] = 1000,
    memory_prompts: Annotated[
        int, typer.Option("--memory", help="Number of prompts of the measurement of memory; 0 skips it.")
    ] = 0,
    model: Annotated[str, typer.Option(help="Name or directory of the model.")] = DEFAULT_MODEL,
) -> None:
    """Measure the speed and the memory of offline batches, and print tables."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if prompts:
            write_prompts(scratch / "prompts.jsonl", prompts)
            bare = BareEngine(model, scratch / "prompts.jsonl")
            starting, rate = time_batch(model, scratch / "prompts.jsonl", scratch / "out", bare)
            alone = bare.num_pictures / bare.seconds
            print("| | pictures | pictures/s | to bare | start, s |\n|---|---|---|---|---|")
            print(f"| bare engine | {bare.num_pictures} | {alone:.2f} | 1 | |")
            print(f"| batch | {prompts} | {rate:.2f} | {rate / alone:.3f} | {starting:.1f} |")
        if memory_prompts:
            print_memory(memory_prompts, scratch)


if __name__ == "__main__":
    typer.run(main)
