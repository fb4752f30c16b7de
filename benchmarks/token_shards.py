"""Benchmark of token shards larger than memory: `python -m benchmarks.token_shards`.

Ten million rows of 256 codes and 32 captions of 32 tokens, 26 GB, are written as sparse files. Batches are then drawn
as stage 2 draws them: the time to the first batch, the time of each, and the growth of the process's peak memory are
printed. The benchmark fails if this exceeds 20 bytes for each row.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from dalle.text.bpe import TextTokenizer
from dalle.vq.vqgan import ImageTokenizer, ImageTokenizerConfig
from training.pairs.epochs import WeightedEpochs
from training.token_shards import TokenShards, codes_digest

__all__ = ["write_sparse_shard"]

ROWS_PER_SHARD = 16384
BYTES_PER_ROW = 20
"""Limit: 4 for the weight, 8 for the order of an epoch while it is made, and some for the allocator."""
BATCH_SIZE = 64


def write_sparse_shard(path: Path, num_rows: int, stamp: Mapping[str, str]) -> int:
    """Write a token shard of zeros, with weights of 1: 256 codes and 32 captions of 32 tokens for each row. It takes
    hardly more room on a disk than the weights. Returns its size in bytes."""
    shapes = {
        "weights": ("F32", 4, [num_rows]),
        "codes": ("U16", 2, [num_rows, 1, 16, 16]),
        "text_ids": ("U16", 2, [num_rows, 32, 32]),
    }
    header: dict[str, object] = {"__metadata__": dict(stamp)}
    end = 0
    for name, (kind, width, shape) in shapes.items():
        start, end = end, end + width * int(np.prod(shape))
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + np.ones(num_rows, np.float32).tobytes())
        file.truncate(8 + len(text) + end)
    return 8 + len(text) + end


def peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000, help="number of rows (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="number of batches (default: %(default)s)")
    options = parser.parse_args()
    image_tokenizer = ImageTokenizer(ImageTokenizerConfig(widths=(16, 32), num_res_blocks=1, norm_groups=8))
    text_tokenizer = TextTokenizer.train(["a red square"] * 50, vocab_size=280, text_length=32)
    stamp = {"codes_digest": codes_digest(image_tokenizer), "text_digest": text_tokenizer.digest}
    with tempfile.TemporaryDirectory() as folder:
        paths: list[Path] = []
        size = 0
        for start in range(0, options.rows, ROWS_PER_SHARD):
            paths.append(Path(folder) / f"{len(paths):05d}.safetensors")
            size += write_sparse_shard(paths[-1], min(ROWS_PER_SHARD, options.rows - start), stamp)
        before, begin = peak_memory(), time.perf_counter()
        rows = TokenShards.load(paths, image_tokenizer, text_tokenizer)
        epochs = WeightedEpochs(rows.weights.numpy(), batch_size=BATCH_SIZE, seed=0)
        loaded = time.perf_counter() - begin
        epochs.batch(0)
        first = time.perf_counter() - begin
        begin = time.perf_counter()
        random = np.random.default_rng(0)
        for step in range(options.steps):
            numbers = torch.from_numpy(epochs.batch(step))
            captions = torch.from_numpy(random.integers(rows.text_ids.shape[1], size=BATCH_SIZE))
            assert rows.codes[numbers, 0].shape == (BATCH_SIZE, 16, 16)
            assert rows.text_ids[numbers, captions].shape == (BATCH_SIZE, 32)
        each = (time.perf_counter() - begin) / options.steps
        grown = peak_memory() - before
    print(
        f"{options.rows:,} rows, {len(paths)} files, {size / 1e9:.1f} GB: {loaded:.2f} s to open, {first:.2f} s to the "
        f"first batch, {1e3 * each:.2f} ms for each; peak memory grew by {grown / 1e6:.0f} MB"
    )
    if grown > BYTES_PER_ROW * options.rows:
        sys.exit(f"the memory grew by more than {BYTES_PER_ROW} bytes for each row")


if __name__ == "__main__":
    main()
