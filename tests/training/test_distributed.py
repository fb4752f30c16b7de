"""Several processes train what one does: real processes of `torchrun`, which communicate by gloo on the CPU."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dalle.checkpoint import load_checkpoint
from tests.support.stages import write_stage_2
from tests.support.workers import (
    ENVIRONMENT,
    LAUNCHER,
    SECONDS,
    STEPS,
    arguments,
    assert_same_curves,
    finish,
    run,
    start,
    steps_saved,
)
from training.run_folder import locked


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    write_stage_2(folder)
    return folder


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


def test_workers_train_a_codebook_by_gradient(data: Path, tmp_path: Path) -> None:
    """In the first steps, the loss does not depend on the codebook, whose gradient they wait for later."""
    for workers in (1, 2):
        options = [*arguments("vq", data, tmp_path / str(workers)), "--codebook", "gradient"]
        options += [option for name in ("adversarial", "lecam", "r1") for option in (f"--{name}-weight", "0")]
        finish("vq", options, workers)
    assert_same_curves(tmp_path / "1", tmp_path / "2")


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
