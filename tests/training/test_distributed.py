"""Several processes train what one does: real processes of `torchrun`, which communicate by gloo on the CPU."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, safe_open

from dalle.checkpoint import load_checkpoint
from tests.support.curves import logged_scalars
from tests.support.stages import write_stage_2
from training.run_folder import locked

ROOT = Path(__file__).parents[2]
SECONDS = 240
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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    write_stage_2(folder)
    return folder


def arguments(stage: str, data: Path, run: Path, **loop: Any) -> list[str]:
    """All of a stage in a few steps: in stage 1 all losses and both states of the codebook, in stage 2
    micro-batches."""
    options: list[Any] = ["tiny", "--run", run]
    for name, value in (LOOP | {key.replace("_", "-"): value for key, value in loop.items()}).items():
        options += [f"--loop.{name}", value]
    if stage == "vq":
        options += ["--perceptual-weight", 0.1, "--perceptual-crop", 16, "--perceptual-pictures", 4]
        options += ["--adversarial-weight", 0.1, "--adversarial-start", 5, "--discriminator-width", 8]
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


def assert_same_curves(one: Path, other: Path) -> None:
    first, second = logged_scalars(one), logged_scalars(other)
    assert set(first) == set(second)
    for name, curve in first.items():
        assert [step for step, _ in second[name]] == [step for step, _ in curve], name
        if "loss" in name:
            values = [value for _, value in curve]
            assert [value for _, value in second[name]] == pytest.approx(values, abs=1e-4), name
    assert [step for step, _ in first["train/loss"]] == [*range(1, STEPS + 1)]


def stop_after(stage: str, options: list[str], workers: int, folder: Path, number: signal.Signals) -> str:
    """Run a stage, which saves every step, and send the launcher a signal after its third save."""
    process = start(stage, options, workers, start_new_session=True)
    deadline = time.monotonic() + SECONDS
    while steps_saved(folder) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(number)
    return process.communicate(timeout=SECONDS)[0]


@pytest.mark.parametrize("stage", ["vq", "decoder"])
def test_workers_train_what_one_process_does(data: Path, tmp_path: Path, stage: str) -> None:
    """Two workers give the curves of one, and a run of two that was stopped resumes with one and with three."""
    finish(stage, arguments(stage, data, tmp_path / "one"), 1)
    finish(stage, arguments(stage, data, tmp_path / "two"), 2)
    assert_same_curves(tmp_path / "one", tmp_path / "two")

    stopped = arguments(stage, data, tmp_path / "parts", save_minutes=0)
    said = stop_after(stage, stopped, 2, tmp_path / "parts", signal.SIGTERM)
    done = steps_saved(tmp_path / "parts")
    assert 3 <= done < STEPS, said
    assert said.count(f"stopped after step {done}; the same command resumes the run") == 1, said
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        subprocess.run(["cp", "-r", tmp_path / "parts", folder], check=True)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"run": str(folder)}))
        finish(stage, arguments(stage, data, folder, save_minutes=0), workers)
        assert_same_curves(tmp_path / "one", folder)
        load_checkpoint(folder / "model")


def test_a_batch_that_cannot_be_shared_evenly_is_refused_once(data: Path, tmp_path: Path) -> None:
    code, said = run("vq", arguments("vq", data, tmp_path / "run", batch_size=5), 2)
    assert code != 0
    message = "error: batch_size is 5, which 2 processes cannot share evenly: it must be a multiple of 2"
    assert said.count(message) == 1, said
    assert not (tmp_path / "run").exists()


def test_a_wrong_option_is_refused_once(data: Path, tmp_path: Path) -> None:
    code, said = run("decoder", arguments("decoder", data, tmp_path / "run", steps=0), 2)
    assert code != 0
    assert said.count("steps is 0; it must be at least 1") == 1, said


def test_a_run_in_use_is_refused_by_all_workers(data: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        code, said = run("decoder", arguments("decoder", data, tmp_path / "run"), 2)
    assert code != 0
    assert said.count("another process writes to it") == 1, said


FAILING = """
import sys
from training import decoder
from training.distributed import current_share
class Failing(decoder.DecoderTask):
    def train_step(self, step, batch):
        if step == 3 and current_share().rank == 1:
            raise OSError(28, "No space left on device", "here")
        return super().train_step(step, batch)
decoder.DecoderTask = Failing
decoder.main()
"""


def test_the_failure_of_one_worker_ends_all_with_its_message(data: Path, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    command = [sys.executable, *LAUNCHER, "--nproc-per-node", "2", "--", str(tmp_path / "failing.py")]
    done = subprocess.run(
        [*command, *arguments("decoder", data, tmp_path / "run")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert said.count("error: here: No space left on device") == said.count("error: ") == 1, said
    assert "RuntimeError" not in said and steps_saved(tmp_path / "run") == 0
