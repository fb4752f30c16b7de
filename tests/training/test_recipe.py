"""The recipe end to end: from pictures to a model within a budget, stopped, resumed, and started from a model."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from dalle import DALLE
from dalle.checkpoint import load_checkpoint, load_image_tokenizer, save_checkpoint
from dalle.errors import DataError
from tests.support.curves import logged_scalars
from tests.support.recipes import (
    STAGES,
    digests_of,
    enough,
    files_of,
    longer_recipe,
    options,
    plan_of,
    program,
    small_recipe,
    within,
)
from training.decoder import DecoderTask
from training.loop import LoopConfig
from training.optimization import learning_rate_scale
from training.recipe import RECIPES, run_recipe, status
from training.recipe.plan import SHARES, TITLES, Plan
from training.vq import VQTask

ROOT = Path(__file__).parents[2]
SECONDS = 600


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "small", small_recipe)


class Process:
    """`python -m training.recipe tiny` in a process of its own."""

    def __init__(self, pictures: Path, out: Path, minutes: float) -> None:
        self.start = time.monotonic()
        self.output = out.with_suffix(".txt")
        arguments = ["tiny", "--pictures", pictures, "--minutes", minutes, "--out", out, "--device", "cpu"]
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "training.recipe", *map(str, arguments)],
                cwd=out.parent,
                env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> int:
        return self.process.wait(SECONDS)

    def stopped_in(self, run: Path) -> int:
        """Wait until a stage trains in its run folder, and send the stop signal."""
        while not list(run.glob("tensorboard/events*")) and self.process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.5)
        self.process.send_signal(signal.SIGTERM)
        return self.wait()


def test_a_model_in_half_a_minute_stopped_and_resumed(pictures: Path, tmp_path: Path) -> None:
    out, minutes = tmp_path / "out", 0.5
    seconds, plan_when_stopped = 0.0, None
    for _ in range(12):  # of a machine that is too busy, the program asks for a greater budget
        process = Process(pictures, out, minutes)
        code = process.wait() if plan_when_stopped else process.stopped_in(out / "decoder")
        seconds += time.monotonic() - process.start
        text = process.output.read_text()
        assert "Traceback" not in text
        if code == 0:
            break
        if code == 4:
            assert "the same command resumes the run" in text
            plan_when_stopped = plan_of(out)
            assert plan_when_stopped["done"] == ["text", "image_tokenizer", "codes"]
            assert not (out / "decoder" / "model").exists()
        else:
            assert code == 2, text
            minutes = enough(text)
    assert code == 0 and plan_when_stopped is not None, text

    plan = plan_of(out)
    assert plan["done"] == STAGES and set(plan["seconds"]) == set(STAGES)
    assert sum(plan["seconds"].values()) < seconds
    for stage in ("image_tokenizer", "decoder"):
        assert plan["steps"][stage] == plan_when_stopped["steps"][stage], "what was decided stays"
    for stage, steps in plan["steps"].items():
        assert json.loads((out / stage / "config.json").read_text())["loop"]["steps"] == steps
        last, _ = logged_scalars(out / stage)["train/loss"][-1]
        assert last == steps
        assert f"{TITLES[stage]}, {steps} steps of 8" in text
    assert load_checkpoint(out / "model").about["decoder_steps"] == str(plan["steps"]["decoder"])

    (picture,) = DALLE.load(out / "model").generate("a red disc", seed=0)
    assert picture.image.mode == "RGBA" and picture.image.size == (128, 128)
    assert {path.name for path in (out / "report").iterdir()} == {"table.md", "numbers.json", "sheet.png"}
    assert set(json.loads((out / "report" / "numbers.json").read_text())["generation"]) == {"val", "train"}
    with Image.open(out / "report" / "sheet.png") as sheet:
        assert min(sheet.size) > 128

    before = files_of(out)
    assert run_recipe(options(pictures, out, preset="tiny", minutes=minutes))
    assert files_of(out) == before, "the same command again changes nothing"


def test_the_same_recipe_again_takes_no_steps(
    pictures: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(made)
    arguments = ["small", "--pictures", pictures, "--out", made, "--device", "cpu"]
    code, out, _ = program(arguments, monkeypatch, capsys)
    assert code == 0 and " steps of " not in out
    assert files_of(made) == before
    assert plan_of(made)["steps"] == {"image_tokenizer": 8, "decoder": 8, "sharper": 6}, "the preset's"


def test_a_recipe_stopped_in_every_stage_ends_like_an_unbroken_one(
    pictures: Path,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stops = {("image_tokenizer", 4), ("decoder", 5), ("sharper", 3)}

    def interrupt(task_class: type[VQTask] | type[DecoderTask]) -> None:
        train_step = task_class.train_step

        def interrupted(task: Any, step: int, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor | float]:
            here = (Path(task.config.run).name, step)
            if here in stops:
                stops.remove(here)
                os.kill(os.getpid(), signal.SIGTERM)
            return train_step(task, step, batch)

        monkeypatch.setattr(task_class, "train_step", interrupted)

    interrupt(VQTask)
    interrupt(DecoderTask)
    arguments = ["small", "--pictures", pictures, "--out", tmp_path / "out", "--device", "cpu"]
    for step in (5, 6, 4):
        code, out, err = program(arguments, monkeypatch, capsys)
        assert code == 4
        assert f"stopped after step {step}; the same command resumes the run" in out + err
    code, _, _ = program(arguments, monkeypatch, capsys)
    assert code == 0 and not stops
    assert digests_of(tmp_path / "out") == digests_of(made)
    for name in ("steps", "done"):
        assert plan_of(tmp_path / "out")[name] == plan_of(made)[name]


def test_exports_and_paths_may_differ_when_a_run_resumes(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run_recipe(options(pictures, out))
    plan = json.loads((out / "plan.json").read_text())
    plan["done"].remove("decoder")
    (out / "plan.json").write_text(json.dumps(plan))
    monkeypatch.chdir(pictures.parent)
    before = load_checkpoint(out / "model").digest
    assert run_recipe(options(Path(pictures.name), out, export_minutes=5.0, minutes=100.0))
    assert load_checkpoint(out / "model").digest == before
    assert run_recipe(options(pictures, out, name="other"))
    assert load_checkpoint(out / "model").digest == before, "what is finished keeps its name"


def test_what_the_first_start_chose_stays_chosen(tmp_path: Path) -> None:
    plan = Plan(tmp_path, 1.0)
    assert plan.choice("compile", False) is False
    plan.save()
    assert Plan(tmp_path, 600.0).choice("compile", True) is False


def test_shares_by_numbers(tmp_path: Path) -> None:
    assert sum(SHARES.values()) == pytest.approx(1) and list(SHARES) == STAGES
    plan = Plan(tmp_path, 10)
    assert plan.share("text") == pytest.approx(6)
    plan.seconds = {"text": 60.0, "image_tokenizer": 300.0}
    left = 600 - 360
    assert plan.share("codes") == pytest.approx(left * 0.05 / (0.05 + 0.45 + 0.15 + 0.07))
    assert plan.share("figures") == left, "the last one has all that is left"
    plan.seconds["codes"] = 1000.0
    assert plan.share("decoder") == 0


def test_how_far_a_run_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run of a recipe"):
        status(tmp_path)
    plan = Plan(tmp_path, None)
    with plan.stage("text"):
        pass
    plan.steps["image_tokenizer"] = 40
    plan.save()
    lines = status(tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == [title.split()[0] for title in TITLES.values()]
    assert lines[0].endswith("done, 0.0 minutes")
    assert lines[1].endswith("step 0 of 40 at the last save")
    assert all(line.endswith("not started") for line in lines[2:])


def test_going_on_from_an_image_tokenizer(pictures: Path, made: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "small", lambda: longer_recipe(12))
        assert run_recipe(options(pictures, tmp_path / "out", start_from=made / "image_tokenizer" / "model"))
    loop = LoopConfig.from_dict(json.loads((tmp_path / "out/image_tokenizer/config.json").read_text())["loop"])
    assert (loop.first_step, loop.steps) == (8, 12)
    rates = logged_scalars(tmp_path / "out" / "image_tokenizer")["train/rate_scale"]
    assert [step for step, _ in rates] == [9, 10, 11, 12]
    assert [rate for _, rate in rates] == pytest.approx([learning_rate_scale(loop, step) for step in range(8, 12)])
    assert [step for step, _ in logged_scalars(tmp_path / "out" / "decoder")["train/loss"]] == list(range(1, 13))


def test_going_on_from_a_whole_model(pictures: Path, made: Path, tmp_path: Path) -> None:
    """Its image tokenizer and text tokenizer are kept; its decoder continues at the step that the model states."""
    out, start = tmp_path / "out", made / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "small", lambda: longer_recipe(12))
        assert run_recipe(options(pictures, out, start_from=start))
    plan = plan_of(out)
    assert plan["steps"] == {"decoder": 12, "sharper": 6} and plan["done"] == STAGES
    loop = LoopConfig.from_dict(json.loads((out / "decoder" / "config.json").read_text())["loop"])
    rates = logged_scalars(out / "decoder")["train/rate_scale"]
    assert [step for step, _ in rates] == [9, 10, 11, 12]
    assert [rate for _, rate in rates] == pytest.approx([learning_rate_scale(loop, step) for step in range(8, 12)])
    before, after = load_checkpoint(start), load_checkpoint(out / "model")
    assert before.text_tokenizer is not None and after.text_tokenizer is not None
    assert before.text_tokenizer.digest == after.text_tokenizer.digest
    kept = load_image_tokenizer(out / "image_tokenizer" / "model").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in before.image_tokenizer.state_dict().items())
    assert after.about["decoder_steps"] == "12"


def test_a_budget_is_for_the_steps_that_are_new(pictures: Path, made: Path, tmp_path: Path) -> None:
    """The budget counts only new steps, even if the model to start from has had more steps than would fit."""
    out, many = tmp_path / "out", 150_000
    whole = load_checkpoint(made / "decoder" / "model")
    save_checkpoint(
        tmp_path / "start",
        name=whole.name,
        image_tokenizer=whole.image_tokenizer,
        text_tokenizer=whole.text_tokenizer,
        decoder=whole.decoder,
        about={"decoder_steps": str(many)},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "small", lambda: longer_recipe(2 * many))
        within(0.1, options(pictures, out, start_from=tmp_path / "start"))
    steps = plan_of(out)["steps"]["decoder"]
    assert many < steps < 1.5 * many
    losses = logged_scalars(out / "decoder")["train/loss"]
    assert (losses[0][0], losses[-1][0]) == (many + 1, steps)
