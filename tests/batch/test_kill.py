"""Batches that are killed: real processes, kill -9 at random moments, and the same bytes in the end.

The processes are forked from one that has imported everything, so that a run takes a second.
"""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.support.batches import PROMPTS, contents, log_of, manifest, prompts_file, run

KILLS = 24
LAYOUTS = ("files", "tar", "codes")


def _run(code: Any, model: Path, prompts: Path, out: Path, options: dict[str, Any]) -> None:
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell has started in the background
    limit = options.pop("file_limit", None)
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    code.value = run(model, prompts, out, **options)


class Runs:
    """Starts batches as processes of their own."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.support.batches", "serving.batch.driver", "torch._refs"])

    def start(self, prompts: Path, out: Path, **options: Any) -> tuple[BaseProcess, Any]:
        code = self.context.Value("i", -1)
        process = self.context.Process(target=_run, args=(code, self.model, prompts, out, options))
        process.start()
        return process, code

    def finish(self, prompts: Path, out: Path, **options: Any) -> int:
        """The exit code."""
        process, code = self.start(prompts, out, **options)
        process.join(120)
        return int(code.value)

    def kill_after(self, num_steps: int, seconds: float, prompts: Path, out: Path, **options: Any) -> bool:
        """Kill a batch a number of seconds after its folder has got `num_steps` more files. Returns whether it was
        still running."""
        process, _ = self.start(prompts, out, **options)
        before = num_files(out)
        while process.is_alive() and num_files(out) < before + num_steps:
            time.sleep(0.001)
        process.join(seconds)
        process.kill()
        process.join(60)
        return process.exitcode == -signal.SIGKILL


def num_files(out: Path) -> int:
    """Number of finished files and of journals."""
    return sum(
        len(list(out.glob(pattern))) for pattern in ("shards/*", "pictures/*/*", "pictures/*.tar", ".work/*.jsonl")
    )


@pytest.fixture(scope="module")
def runs(model_folder: Path) -> Runs:
    return Runs(model_folder)


def all_kinds(folder: Path) -> Path:
    """Prompts with and without seeds, guidance and duplicates, and invalid lines."""
    items: list[dict[str, Any] | str] = [{"prompt": PROMPTS[i % 6], "n": 1 + i % 3} for i in range(24)]
    items[5:5] = ["{", {"prompt": ""}, {"prompt": "a", "seed": 1}, {"prompt": "a", "guidance_scale": 1, "n": 5}]
    items[20:20] = [{"prompt": "a", "seed": 1}, {"prompt": "b", "output_format": "webp"}, {"prompt": "c", "n": 0}]
    return prompts_file(folder, items)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_at_random_moments_it_leaves_the_same_bytes(layout: str, runs: Runs, tmp_path: Path) -> None:
    prompts, whole, out = all_kinds(tmp_path), tmp_path / "whole", tmp_path / "out"
    options = {"plan": {"layout": layout, "shard_size": 4}}
    assert runs.finish(prompts, whole, **options) == 3
    moments, most = random.Random(layout), num_files(whole)
    num_kills = 0
    while num_kills < KILLS // len(LAYOUTS):
        killed = runs.kill_after(moments.randrange(most // 2), moments.uniform(0, 0.1), prompts, out, **options)
        num_kills += killed
        if not killed or moments.random() < 0.25:
            assert runs.finish(prompts, out, **options) == 3
            assert contents(out) == contents(whole)
            shutil.rmtree(out)
    assert runs.finish(prompts, out, **options) == 3
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_drawn_before_a_kill_is_not_drawn_again(layout: str, runs: Runs, tmp_path: Path) -> None:
    """Also when its shard was not committed: its codes were noted."""
    prompts, out = prompts_file(tmp_path, [{"prompt": "a", "n": 200}]), tmp_path / "out"
    options = {"plan": {"layout": layout, "shard_size": 200}}
    process, _ = runs.start(prompts, out, **options)
    journal = out / ".work/000000.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (journal.exists() and journal.stat().st_size > 8_000):
        time.sleep(0.001)
    process.kill()
    process.join(60)
    lines = journal.read_bytes().splitlines()
    num_noted = sum(line.startswith(b"{") and line.endswith(b"}") for line in lines)
    assert 20 < num_noted < 200
    # a kill may cut the last line
    journal.write_bytes(journal.read_bytes() + b'\n{"key": "0')
    before = {path: path.read_bytes() for path in out.glob("pictures/*/*")}
    assert runs.finish(prompts, out, **options) == 0
    (done,) = [line for line in log_of(out) if line["event"] == "shard"]
    assert done["num_drawn"] == 200 - num_noted
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_command_is_killed_and_given_again(model_folder: Path, tmp_path: Path) -> None:
    """The kill goes to the whole process group, as from a terminal."""
    prompts, out = all_kinds(tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "serving.batch", str(prompts), "--out", str(out), "--shard-size", "8"]
    command += ["--model", str(model_folder), "--slots", "4", "--threads", "1", "--contact-sheet", "--gallery"]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2], start_new_session=True)
    until = time.monotonic() + 60
    while time.monotonic() < until and len(list(out.glob("shards/*"))) < 3:
        time.sleep(0.002)
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert not (out / "manifest.jsonl").exists()
    second = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert second.returncode == 3, second.stderr
    assert "line 6 is invalid: the line is not valid JSON" in second.stderr
    assert f"invalid lines: 3, failed pictures: 0; see {out}/refused.jsonl" in second.stdout
    drawn = int(second.stdout.partition(" pictures are in ")[0])
    assert drawn == len([record for record in manifest(out) if record["error"] is None])
    whole = tmp_path / "whole"
    assert run(model_folder, prompts, whole, plan={"shard_size": 8}, contact_sheet=True, gallery=True) == 3
    assert contents(out) == contents(whole)


def test_ctrl_c_keeps_what_is_drawn(runs: Runs, tmp_path: Path) -> None:
    prompts, out = prompts_file(tmp_path, [{"prompt": "a", "n": 1000}]), tmp_path / "out"
    process, code = runs.start(prompts, out)
    until = time.monotonic() + 60
    while time.monotonic() < until and len(list(out.glob("pictures/*/*"))) < 20:
        time.sleep(0.001)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert code.value == 130
    assert log_of(out)[-1]["event"] != "end"


def test_a_full_disk_stops_with_a_reason_and_is_resumed(model_folder: Path, tmp_path: Path) -> None:
    """On a real file system of 200 kB; skipped where it cannot be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs to be allowed to mount")
    prompts = prompts_file(tmp_path, [{"prompt": "a", "n": 120}])
    try:
        command = [sys.executable, "-m", "serving.batch", str(prompts), "--out", str(disk / "out"), "--threads", "1"]
        command += ["--model", str(model_folder), "--slots", "4"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert done.returncode == 4
        assert "warning: about" in done.stderr and "will be written, and" in done.stderr
        assert "No space left on device" in done.stderr
        assert "the same command resumes the batch" in done.stderr
        assert not list((disk / "out").rglob("*.part")), "nothing half-written stays"
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert run(model_folder, prompts, disk / "out", plan={"shard_size": 64}) == 0
        assert run(model_folder, prompts, tmp_path / "whole", plan={"shard_size": 64}) == 0
        assert contents(disk / "out") == contents(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_that_cannot_be_written_stops_with_a_reason(runs: Runs, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk where none can be mounted."""
    prompts, out = prompts_file(tmp_path, [{"prompt": "a", "n": 30}]), tmp_path / "out"
    assert runs.finish(prompts, out, file_limit=700) == 4
    assert not list(out.rglob("*.part"))
    assert runs.finish(prompts, out) == 0
    assert len(manifest(out)) == 30
    computed = {"num_slots": 4, "threads": 1, "step": "eager", "weights": "float32"}
    assert json.loads((out / "batch.json").read_text())["computed"] == computed
