"""The training programs end to end: runs that are killed, stopped and resumed give the same result, bit for bit. The
processes are real ones of `python -m training.vq` and `python -m training.decoder`."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, safe_open

import training.decoder
import training.vq
from dalle.checkpoint import load_checkpoint
from tests.support.curves import logged_pictures, logged_scalars
from tests.support.stages import write_stage_2

ROOT = Path(__file__).parents[2]
SECONDS = 300
STEPS = 30
MANY = ["--loop.steps", STEPS, "--loop.batch-size", 4, "--loop.warmup-steps", 4]
OFTEN = ["--loop.log-steps", 1, "--loop.look-steps", 12, "--loop.save-minutes", 0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    write_stage_2(folder)
    return folder


def vq_arguments(data: Path) -> list[str]:
    """All of stage 1 in one run: unquantized steps, codebook, perceptual loss, and a discriminator that starts late."""
    losses = ["--perceptual-weight", 0.1, "--perceptual-crop", 16, "--adversarial-weight", 0.1]
    others = ["--adversarial-start", 9, "--discriminator-width", 8, "--unquantized-steps", 6]
    others += ["--r1-weight", 1, "--r1-interval", 4]
    shape = ["--model.image-size", 16, "--model.patch-size", 2, "--model.widths", 8, 16, "--model.norm-groups", 4]
    shards = ["--train-shards", data / "train-*.tar", "--val-shards", data / "val.tar"]
    return list(map(str, ["tiny", "--run", "run", *MANY, *OFTEN, *losses, *others, *shape, *shards]))


def decoder_arguments(data: Path) -> list[str]:
    tokenizers = ["--image-tokenizer", data / "eyes", "--text-tokenizer", data / "tokenizer.json"]
    codes = data / "codes"
    shards = ["--train-shards", codes / "train/*.safetensors", "--val-shards", codes / "val/*.safetensors"]
    return list(map(str, ["tiny", "--run", "run", *MANY, *OFTEN, *tokenizers, *shards]))


class Process:
    """`python -m training.STAGE` in a folder of its own."""

    def __init__(self, stage: str, arguments: list[str], folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.run = folder / "run"
        self.output = folder / "output.txt"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"training.{stage}", *arguments],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def steps_saved(self) -> int:
        try:
            with safe_open(self.run / "state.safetensors", framework="pt") as file:
                return int(file.metadata()["step"])
        except (FileNotFoundError, SafetensorError):
            return 0

    def after_steps(self, steps: int) -> None:
        """Wait until this many steps are saved, and then for a random moment, so that the signal can come anywhere in a
        step."""
        deadline = time.monotonic() + SECONDS
        while self.steps_saved() < steps:
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.003)
        time.sleep(random.uniform(0, 0.03))

    def send(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


def program(
    stage: Any, arguments: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code and output of a program's `main` in this process."""
    monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        stage.main()
    captured = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, captured.out + captured.err


@pytest.mark.parametrize(
    ("stage", "arguments"), [("vq", vq_arguments), ("decoder", decoder_arguments)], ids=["stage 1", "stage 2"]
)
def test_a_run_killed_and_stopped_ends_like_an_unbroken_one(
    data: Path,
    tmp_path: Path,
    stage: str,
    arguments: Callable[[Path], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    killed = Process(stage, arguments(data), tmp_path / "parts")
    killed.after_steps(random.randrange(1, STEPS // 3))
    assert killed.send(signal.SIGKILL) == -signal.SIGKILL
    done = killed.steps_saved()
    assert 1 <= done < STEPS
    assert not (killed.run / "model").exists()

    if stage == "vq":  # stopping is the loop's affair and tested there for any task: one real Ctrl-C will do
        stopped = Process(stage, arguments(data), tmp_path / "parts")
        stopped.after_steps(done + random.randrange(1, STEPS // 3))
        assert stopped.send(signal.SIGINT) == 130, stopped.output.read_text()
        assert done < stopped.steps_saved() < STEPS
        text = f"stopped after step {stopped.steps_saved()}; the same command resumes the run"
        assert text in stopped.output.read_text()

    resumed = Process(stage, arguments(data), tmp_path / "parts")
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    code, text = program(getattr(training, stage), arguments(data), monkeypatch, capsys)
    assert code == 0, text
    assert resumed.process.wait(SECONDS) == 0, resumed.output.read_text()

    whole = tmp_path / "whole" / "run"
    for name in ("state.safetensors", "config.json"):
        assert (whole / name).read_bytes() == (resumed.run / name).read_bytes(), name
    assert load_checkpoint(whole / "model").digest == load_checkpoint(resumed.run / "model").digest
    scalars = logged_scalars(whole)
    every_step = list(range(1, STEPS + 1))
    steps_of = {name: [step for step, _ in curve] for name, curve in scalars.items()}
    assert steps_of["train/loss"] == every_step
    assert logged_scalars(resumed.run) == scalars
    assert logged_pictures(resumed.run) == logged_pictures(whole)
    if stage == "vq":
        assert steps_of["train/commitment_loss"] == every_step[6:]
        assert steps_of["train/generator_loss"] == every_step[9:]
        assert steps_of["train/r1_loss"] == every_step[::4]
        assert steps_of["train/perceptual_loss"] == steps_of["train/discriminator_loss"] == every_step
    assert steps_of["val/psnr" if stage == "vq" else "val/image_loss"] == [12, 24, STEPS]


@pytest.mark.parametrize(
    ("stage", "fields"),
    [
        (training.vq, ["--run", "--train-shards", "--model.widths", "--loop.steps", "--only-decoder", "--codebook"]),
        (training.decoder, ["--run", "--text-tokenizer", "--model.depth", "--loop.seed", "--caption-dropout"]),
    ],
    ids=["stage 1", "stage 2"],
)
def test_help_names_the_presets_and_their_fields(
    stage: Any, fields: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = program(stage, ["--help"], monkeypatch, capsys)
    assert code == 0 and "emoji" in text and "tiny" in text
    code, text = program(stage, ["tiny", "--help"], monkeypatch, capsys)
    assert code == 0
    assert [field for field in fields if field not in text] == []


def test_a_caller_s_mistake_is_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"run": "another"}')
    arguments = vq_arguments(data)
    for changes, said in (
        (["--loop.steps", 0], "steps is 0; it must be at least 1"),
        (["--model.widths", 8, 9], "width 9 is not a multiple of norm_groups 4"),
        (["--train-shards", "none.tar"], "no shards at none.tar"),
        (["--start-from", "none"], "none is not a folder"),
        ([], "run holds a run with "),
    ):
        code, text = program(training.vq, arguments + changes, monkeypatch, capsys)
        assert code == 2
        assert said in " ".join(text.replace("│", " ").split())
        assert "Traceback" not in text
