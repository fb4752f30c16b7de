"""Benchmark of the memory that a conversion takes: `python -m benchmarks.convert`.

A synthetic checkpoint of 1.3 billion parameters is written to a temporary folder and imported by a process of its own,
whose peak memory is compared with the largest file. The checkpoint is a DiscreteVAE of DALLE-pytorch: `dalle import`
takes the same path for every family. The disk needs three times the space of the checkpoint.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from dalle.interop.dalle_pytorch import names_of
from dalle.vq.discrete_vae import DiscreteVAE, DiscreteVAEConfig

__all__: list[str] = []

MAX_SHARE = 1.3
"""Limit on the peak memory, as a share of the largest file."""
NUM_BLOCKS = 8
SQUARES = 2 * NUM_BLOCKS * (9 + 9 + 1) + 5 * 16
"""Number of parameters divided by the square of the width: residual blocks in encoder and decoder, and 4 x 4
convolutions between layers."""
PROGRAM = """
import sys
from dalle.cli import app

try:
    app()
finally:
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print(line.split()[1], file=sys.stderr)
"""
"""A program that runs the command, then prints the peak memory of its process in kilobytes. `getrusage` would include
the parent's memory."""


def write_checkpoint(path: Path, num_parameters: float, scratch: Path) -> int:
    """Write random weights in the layout of vae.pt, and return their number. They are mapped from a file, so that they
    need not fit into memory."""
    width = round((num_parameters / SQUARES) ** 0.5)
    params = {"image_size": 64, "num_layers": 3, "num_tokens": 1024, "codebook_dim": 64}
    params |= {"hidden_dim": width, "num_resnet_blocks": NUM_BLOCKS}
    config = DiscreteVAEConfig(
        image_size=64, num_layers=3, codebook_size=1024, codebook_dim=64, width=width, num_res_blocks=NUM_BLOCKS
    )
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in DiscreteVAE(config).state_dict().items()}
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    numbers = np.memmap(scratch, np.float32, "w+", shape=(total,))
    random = np.random.default_rng(0)
    for start in range(0, total, 1 << 22):
        stop = min(start + (1 << 22), total)
        numbers[start:stop] = random.standard_normal(stop - start, np.float32) / width
    names, at, weights = names_of(config), 0, {}
    for name, shape in shapes.items():
        numel = torch.Size(shape).numel()
        weights[names[name]] = torch.from_numpy(np.memmap(scratch, np.float32, "r+", 4 * at, (numel,)).reshape(shape))
        at += numel
    torch.save({"hparams": params, "weights": weights}, path)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parameters", type=float, default=1.3e9, help="number of parameters of the checkpoint (default: 1.3e9)"
    )
    parser.add_argument("--folder", type=Path, help="folder in which the temporary folder is created")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path, out = Path(folder) / "vae.pt", Path(folder) / "model"
        total = write_checkpoint(path, arguments.parameters, Path(folder) / "scratch")
        (Path(folder) / "scratch").unlink()
        start = time.perf_counter()
        command = [sys.executable, "-c", PROGRAM, "import", str(path), "--out", str(out)]
        done = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - start
        largest = max(file.stat().st_size for file in [path, *out.iterdir()])
    peak = int(done.stderr.split()[-1]) * 1024
    print(f"{total / 1e9:.2f} billion parameters, {largest / 1e9:.2f} GB, converted in {seconds:.0f} s")
    print(f"peak memory {peak / 1e9:.2f} GB: {peak / largest:.2f} of the largest file (at most {MAX_SHARE})")
    sys.exit(peak > MAX_SHARE * largest)


if __name__ == "__main__":
    main()
