"""Benchmark of picture-caption shards larger than memory: `python -m benchmarks.pair_shards`.

A shard of 10,000 tiny pictures is written, and a million pairs are made of it by links. They are opened as stage 1
opens them, for the first time and again, and batches are read in a worker process. Printed are times of the CPU, the
growth of the process's peak memory, and the memory that is the worker's own. The benchmark fails if the first exceeds
100 bytes for each pair, or the second 50 MB.
"""

import argparse
import io
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from benchmarks.token_shards import peak_memory
from training.pairs.epochs import WeightedEpochs
from training.pairs.shard_writer import ShardWriter
from training.pairs.shards import PairShards

__all__ = ["private_memory", "read_in_worker", "write_linked_shards"]

PAIRS_PER_SHARD = 10_000
BATCH_SIZE = 64
BYTES_PER_PAIR = 100
"""Limit of the process that trains: 40 of the index, 8 of the order of an epoch while it is made, and some for the
allocator. The index is in mapped files, whose memory the system takes back when it needs it."""
WORKER_BYTES = 50_000_000
"""Limit of a worker process, whatever the number of pairs."""


def write_linked_shards(folder: Path, num_pairs: int) -> list[Path]:
    """Write a shard of pairs, and make links to it under other names until there are `num_pairs`. Returns the
    shards."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "WEBP", lossless=True)
    with ShardWriter(folder, "first") as writer:
        for number in range(min(PAIRS_PER_SHARD, num_pairs)):
            metadata = {"id": str(number), "captions": ["a red square"], "weight": 1.0 if number % 2 else 0.5}
            writer.write(f"{number:09d}", buffer.getvalue(), metadata)
    paths = [folder / "first.tar"]
    while len(paths) < num_pairs / PAIRS_PER_SHARD:
        paths.append(folder / f"train-{len(paths):05d}.tar")
        os.link(paths[0], paths[-1])
    return paths


def private_memory() -> int:
    """Memory that this process alone has written, in bytes. Pages of mapped files, which the system may take back, do
    not count."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def read_in_worker(pairs: PairShards, epochs: WeightedEpochs, steps: int) -> tuple[float, int]:
    """Read batches in a process of its own. Returns the CPU seconds of each, and the memory that the worker has
    written, in bytes."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        begin = time.process_time()
        for step in range(steps):
            assert pairs.images(epochs.batch(step)).shape == (BATCH_SIZE, 3, 16, 16)
        sender.send(((time.process_time() - begin) / steps, private_memory()))

    worker = context.Process(target=work)
    worker.start()
    sender.close()
    result = receiver.recv()
    worker.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=1_000_000, help="number of pairs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="number of batches (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DALLE_CACHE"] = str(Path(folder, "cache"))
        paths = write_linked_shards(Path(folder), options.pairs)
        before, begin = peak_memory(), time.process_time()
        PairShards(paths)
        built = time.process_time() - begin
        begin = time.process_time()
        pairs = PairShards(paths)
        opened = time.process_time() - begin
        epochs = WeightedEpochs(pairs.weights, batch_size=BATCH_SIZE, seed=0)
        epochs.batch(0)
        each, alone = read_in_worker(pairs, epochs, options.steps)
        grown = peak_memory() - before
    print(
        f"{len(pairs):,} pairs, {len(paths)} shards: {built:.1f} s of CPU to open them for the first time, "
        f"{opened:.3f} s again; peak memory grew by {grown / 1e6:.0f} MB; a worker takes {1e3 * each:.1f} ms for "
        f"a batch and {alone / 1e6:.0f} MB of its own"
    )
    if grown > BYTES_PER_PAIR * len(pairs) or alone > WORKER_BYTES:
        sys.exit(f"the memory is above {BYTES_PER_PAIR} bytes for each pair, or above {WORKER_BYTES} bytes in a worker")


if __name__ == "__main__":
    main()
