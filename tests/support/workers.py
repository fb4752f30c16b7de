"""A stage in several real processes of `torchrun`, as small as possible, and its curves beside those of one process."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, safe_open

from tests.support.curves import logged_scalars

__all__ = [
    "ENVIRONMENT",
    "LAUNCHER",
    "ROOT",
    "SECONDS",
    "STEPS",
    "arguments",
    "assert_same_curves",
    "finish",
    "run",
    "start",
    "steps_saved",
]

ROOT = Path(__file__).parents[2]
SECONDS = 400
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
LAUNCHER = ["-m", "torch.distributed.run", "--standalone"]
STEPS = 10
LOOP = {
    "steps": STEPS,
    "batch-size": 6,
    "warmup-steps": 2,
    "log-steps": 1,
    "look-steps": STEPS,
    "save-minutes": 60,
    "workers": 0,
    "device": "cpu",
    "precision": "float32",
}


def arguments(stage: str, data: Path, run: Path, **loop: Any) -> list[str]:
    """All of a stage in a few steps: in stage 1 all losses and both states of the codebook, in stage 2
    micro-batches."""
    options: list[Any] = ["tiny", "--run", run]
    for name, value in (LOOP | {key.replace("_", "-"): value for key, value in loop.items()}).items():
        options += [f"--loop.{name}", value]
    if stage == "vq":
        options += ["--perceptual-weight", 0.1, "--perceptual-crop", 16, "--perceptual-pictures", 4]
        options += ["--adversarial-weight", 0.1, "--adversarial-start", 5, "--discriminator-width", 8]
        options += ["--lecam-weight", 0.1, "--r1-weight", 1, "--r1-interval", 2, "--entropy-weight", 0.1]
        options += ["--entropy-temperature", 0.1]  # a low one makes much of the last bit of a distance
        options += ["--unquantized-steps", 3, "--restart-below", 0.5]
        options += ["--model.image-size", 16, "--model.patch-size", 2, "--model.widths", 8, 16]
        options += ["--model.norm-groups", 4, "--train-shards", data / "train-*.tar", "--val-shards", data / "val.tar"]
    else:
        options += ["--image-tokenizer", data / "eyes", "--text-tokenizer", data / "tokenizer.json"]
        # Muon rounds to bfloat16, which makes much of the last bit of a gradient: a low rate keeps that small
        options += ["--matrix-rate", 0.002, "--embedding-weight", 0.5, "--micro-batch-size", 2, "--recompute"]
        for name in ("train", "val"):
            options += [f"--{name}-shards", data / "codes" / name / "*.safetensors"]
    return [*map(str, options)]


def start(stage: str, options: list[str], workers: int, **popen: Any) -> subprocess.Popen[str]:
    launcher = [*LAUNCHER, "--nproc-per-node", str(workers), "-m", "--"]
    return subprocess.Popen(
        [sys.executable, *(launcher if workers > 1 else ["-m"]), f"training.{stage}", *options],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **popen,
    )


def run(stage: str, options: list[str], workers: int) -> tuple[int, str]:
    process = start(stage, options, workers)
    said, _ = process.communicate(timeout=SECONDS)
    return process.returncode, said


def finish(stage: str, options: list[str], workers: int) -> None:
    if workers == 1:  # in this process, which has imported everything
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["training", *options])
            with pytest.raises(SystemExit) as caught:
                importlib.import_module(f"training.{stage}").main()
        assert caught.value.code == 0
    else:
        code, said = run(stage, options, workers)
        assert code == 0, said


def steps_saved(folder: Path) -> int:
    try:
        with safe_open(folder / "state.safetensors", framework="pt") as file:
            return int(file.metadata()["step"])
    except (FileNotFoundError, SafetensorError):
        return 0


def assert_same_curves(one: Path, other: Path, steps: int = STEPS) -> None:
    first, second = logged_scalars(one), logged_scalars(other)
    assert set(first) == set(second)
    for name, curve in first.items():
        assert [step for step, _ in second[name]] == [step for step, _ in curve], name
        if "loss" in name:
            values = [value for _, value in curve]
            assert [value for _, value in second[name]] == pytest.approx(values, abs=1e-4), name
    assert [step for step, _ in first["train/loss"]] == [*range(1, steps + 1)]
