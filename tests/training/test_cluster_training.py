"""A stage on a real Ray of this machine: workers are killed and stopped, and the run ends like an unbroken one."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dalle.checkpoint import load_checkpoint
from tests.support.stages import write_stage_2
from tests.support.workers import ROOT, SECONDS, arguments, assert_same_curves, finish, steps_saved

MANY_STEPS = 40
"""Steps of a run that is to be stopped before its end."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    write_stage_2(folder)
    return folder


@pytest.fixture
def ray_folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield folder  # short: the names of Ray's sockets have at most 107 bytes


def start(options: list[str], ray_folder: str) -> subprocess.Popen[str]:
    environment = {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": ray_folder}
    return subprocess.Popen(
        [sys.executable, "-m", "training.cluster", *options],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def train_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of Ray Train's workers, whose command line Ray sets to the name of their actor."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def listening(process: subprocess.Popen[str]) -> dict[str, set[str]]:
    """The addresses at which the processes of a program listen, and the command lines of these processes."""
    found: dict[str, set[str]] = {}
    for child in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            for connection in child.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.setdefault(connection.laddr.ip.removeprefix("::ffff:"), set()).add(
                        " ".join(child.cmdline())[:80]
                    )
    return found


def test_a_run_that_is_killed_and_stopped_ends_like_an_unbroken_one(
    data: Path, tmp_path: Path, ray_folder: str
) -> None:
    """A worker is killed, and all are started again; Ctrl-C then stops them, and one process resumes the run."""
    folder = tmp_path / "cluster"
    options = arguments("decoder", data, folder, save_minutes=0, steps=MANY_STEPS)
    process = start(["decoder", "--workers", "2", *options], ray_folder)

    def wait_for(steps: int) -> None:
        deadline = time.monotonic() + SECONDS
        while steps_saved(folder) < steps:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.01)

    wait_for(3)  # the workers have joined
    assert {*listening(process)} == {"127.0.0.1"}, listening(process)
    workers = train_workers(process)
    assert len(workers) >= 2, "two workers train"
    os.kill(workers[-1].pid, signal.SIGKILL)
    done = steps_saved(folder)
    wait_for(done + 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130 and "Traceback" not in said.partition("stopping: the workers save")[2], said
    stopped = steps_saved(folder)
    assert done + 2 <= stopped < MANY_STEPS, said
    assert said.count(f"stopped after step {stopped}; the same command resumes the run") == 1, said
    assert len(list((folder / "tensorboard").iterdir())) == 2, "the workers were started again"
    finish("decoder", options, 1)
    finish("decoder", arguments("decoder", data, tmp_path / "one", steps=MANY_STEPS), 1)
    assert_same_curves(tmp_path / "one", folder, MANY_STEPS)
    load_checkpoint(folder / "model")


def test_mistakes_are_one_line(data: Path, tmp_path: Path, ray_folder: str) -> None:
    for changes, message in (
        (["--workers", "4"], "batch_size is 6, which 4 processes cannot share evenly: it must be a multiple of 4"),
        (["--workers", "0"], "workers is 0; it must be at least 1"),
        (["--workers", "2", "--retries", "-1"], "retries is -1; it must not be negative"),
    ):
        process = start(["vq", *changes, *arguments("vq", data, tmp_path / "run")], ray_folder)
        said, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 2 and message in said and "Traceback" not in said, said
    process = start(["text", "tiny"], ray_folder)
    assert "error: there is no stage 'text'; stages are vq and decoder" in process.communicate(timeout=SECONDS)[0]


def test_a_mistake_that_a_worker_finds_is_not_tried_again(data: Path, tmp_path: Path, ray_folder: str) -> None:
    options = arguments("decoder", data, tmp_path / "run")
    process = start(["decoder", "--workers", "1", *options, "--text-tokenizer", str(tmp_path / "none")], ray_folder)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 2, said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert str(tmp_path / "none") in line
