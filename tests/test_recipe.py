"""The recipe as people run it: pictures in, a model within a budget out; stopped, gone on with, begun from a model."""

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from curves import logged_scalars
from PIL import Image, ImageDraw
from torch import Tensor

import training.recipe
from dalle import DALLE
from dalle.checkpoint import load_checkpoint, load_image_tokenizer, save_checkpoint
from dalle.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from dalle.errors import DataError
from training.budget import SHARES, TITLES, Plan
from training.decoder import DecoderTask
from training.folder import FolderOptions, build
from training.loop import LoopConfig, learning_rate_scale
from training.recipe import PRESETS, Recipe, RecipeOptions, run_recipe, status
from training.vq import VQTask

ROOT = Path(__file__).parent.parent
SECONDS = 600
STAGES = [stage for stage in TITLES if stage != "model"]
"""Those that are in a plan: the model is put together every time."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 squares and discs on nothing, with a caption or two each."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(64):
        chance = random.Random(number)
        colour, shape = chance.choice(("red", "lime", "blue", "yellow")), chance.choice(("square", "disc"))
        left, top = chance.randrange(16), chance.randrange(16)
        picture = Image.new("RGBA", (32, 32))
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if shape == "disc" else draw.rectangle)((left, top, left + 15, top + 15), fill=colour)
        picture.save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"a {colour} {shape}\n{shape}, {colour}")
    return folder


def small_recipe() -> Recipe:
    """The recipe `tiny` with pictures of 32 pixels and a few steps."""
    tiny = PRESETS["tiny"]()
    model = dataclasses.replace(tiny.image_tokenizer.model, image_size=32, patch_size=4, widths=(8, 16), norm_groups=4)
    loop = LoopConfig(steps=8, batch_size=4, warmup_steps=2, log_steps=1, look_steps=8, workers=0)
    return dataclasses.replace(
        tiny,
        image_tokenizer=dataclasses.replace(tiny.image_tokenizer, model=model, loop=loop, unquantized_steps=2),
        decoder=dataclasses.replace(tiny.decoder, loop=loop),
        sharper=dataclasses.replace(tiny.sharper, loop=dataclasses.replace(loop, steps=6), adversarial_start=2),
        num_figures=2,
    )


def longer_recipe(steps: int) -> Recipe:
    """The small recipe with more steps of both tokenizers' stages."""
    small = small_recipe()
    return dataclasses.replace(
        small,
        image_tokenizer=dataclasses.replace(
            small.image_tokenizer, loop=dataclasses.replace(small.image_tokenizer.loop, steps=steps)
        ),
        decoder=dataclasses.replace(small.decoder, loop=dataclasses.replace(small.decoder.loop, steps=steps)),
    )


@pytest.fixture(autouse=True)
def _presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "small", small_recipe)


def options(pictures: Path | None, out: Path, /, **changes: Any) -> RecipeOptions:
    values: dict[str, Any] = {"preset": "small", "pictures": pictures, "out": out, "device": "cpu"}
    return RecipeOptions(**(values | changes))


@pytest.fixture(scope="module")
def made(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the small recipe makes, unbroken."""
    out = tmp_path_factory.mktemp("recipe") / "made"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "small", small_recipe)
        assert run_recipe(options(pictures, out))
    return out


def plan_of(out: Path) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((out / "plan.json").read_text())
    return plan


def files_of(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def digests_of(out: Path) -> dict[str, str]:
    return {path.parent.name: load_checkpoint(path).digest for path in out.glob("*/model")} | {
        "model": load_checkpoint(out / "model").digest
    }


def program(
    arguments: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the program's `main` in this process."""
    monkeypatch.setattr(sys, "argv", ["training.recipe", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        training.recipe.main()
    captured = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, captured.out, captured.err


def enough(text: str) -> float:
    """The budget that the program says is enough, as it said it last."""
    minutes = re.findall(r"the same command with --minutes (\d+\.\d) goes on", text)
    assert minutes, text
    return float(minutes[-1])


def within(minutes: float, made_of: RecipeOptions) -> float:
    """Cook within a budget; on a busy machine, within as much more as the program says. Returns the budget."""
    for _ in range(12):
        try:
            assert run_recipe(dataclasses.replace(made_of, minutes=minutes))
        except DataError as error:
            minutes = enough(str(error))
        else:
            return minutes
    raise AssertionError(f"{minutes} minutes are not enough")


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
        """Wait until a stage trains in its run folder, and ask it to stop."""
        while not list(run.glob("tensorboard/events*")) and self.process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.5)
        self.process.send_signal(signal.SIGTERM)
        return self.wait()


def test_a_model_in_half_a_minute_stopped_on_the_way(pictures: Path, tmp_path: Path) -> None:
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
        if code == 3:
            assert "the same command goes on from there" in text
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
    pictures: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
        assert code == 3
        assert f"stopped after step {step}; the same command goes on from there" in out + err
    code, _, _ = program(arguments, monkeypatch, capsys)
    assert code == 0 and not stops
    assert digests_of(tmp_path / "out") == digests_of(made)
    for name in ("steps", "done"):
        assert plan_of(tmp_path / "out")[name] == plan_of(made)[name]


def test_another_recipe_in_the_same_folder_is_refused(pictures: Path, made: Path, tmp_path: Path) -> None:
    before = files_of(made)
    for changes, said in (
        ({"preset": "tiny"}, "preset = 'small', not 'tiny'"),
        ({"pictures": tmp_path}, f"pictures = '{pictures}', not '{tmp_path}'"),
        ({"pictures": None, "shards": tmp_path}, f"pictures = '{pictures}', not '{tmp_path}'"),
        ({"seed": 1}, "seed = 0, not 1"),
        ({"start_from": made / "model"}, "start_from = None, not "),
    ):
        with pytest.raises(DataError) as caught:
            run_recipe(options(pictures, made, **changes))
        assert str(caught.value).startswith(f"{made} holds a run with {said}")
    assert files_of(made) == before


def test_a_budget_too_small_for_a_step_says_what_is_enough(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["small", "--pictures", pictures, "--out", out, "--device", "cpu", "--minutes"]
    code, _, err = program([*arguments, "0.0001"], monkeypatch, capsys)
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: minutes is 0.0001, which leaves 0.0 s for stage 'image tokenizer'; its preparations")
    assert err.endswith(line + "\n")
    assert plan_of(out)["done"] == ["text"]
    budget = within(enough(line), options(pictures, out))
    plan = plan_of(out)
    assert plan["done"] == STAGES and min(plan["steps"].values()) >= 1
    assert budget < 5


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


def test_a_budget_that_is_used_up_already_counts(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"steps": {}, "seconds": {"text": 600.0}, "done": []}')
    with pytest.raises(DataError) as caught:
        run_recipe(options(pictures, tmp_path, minutes=5))
    assert 10 < enough(str(caught.value)) < 12


def test_a_plan_that_cannot_be_read_is_refused(pictures: Path, tmp_path: Path) -> None:
    for content in ("{", "[]", "{}", '{"steps": 1, "seconds": {}, "done": []}'):
        (tmp_path / "plan.json").write_text(content)
        with pytest.raises(DataError, match=r"plan\.json cannot be read: .*; give another --out folder"):
            run_recipe(options(pictures, tmp_path))


def test_going_on_from_an_image_tokenizer(pictures: Path, made: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "small", lambda: longer_recipe(12))
        assert run_recipe(options(pictures, tmp_path / "out", start_from=made / "image_tokenizer" / "model"))
    loop = LoopConfig.from_dict(json.loads((tmp_path / "out/image_tokenizer/config.json").read_text())["loop"])
    assert (loop.first_step, loop.steps) == (8, 12)
    rates = logged_scalars(tmp_path / "out" / "image_tokenizer")["train/rate_scale"]
    assert [step for step, _ in rates] == [9, 10, 11, 12]
    assert [rate for _, rate in rates] == pytest.approx([learning_rate_scale(loop, step) for step in range(8, 12)])
    assert [step for step, _ in logged_scalars(tmp_path / "out" / "decoder")["train/loss"]] == list(range(1, 13))


def test_going_on_from_a_whole_model(pictures: Path, made: Path, tmp_path: Path) -> None:
    """Its image tokenizer and text tokenizer stay as they are; its decoder goes on at the step that it says."""
    out, start = tmp_path / "out", made / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "small", lambda: longer_recipe(12))
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
    """Also where the model that is gone on from has had more steps than the budget has room for."""
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
        patch.setitem(PRESETS, "small", lambda: longer_recipe(2 * many))
        within(0.1, options(pictures, out, start_from=tmp_path / "start"))
    steps = plan_of(out)["steps"]["decoder"]
    assert many < steps < 1.5 * many
    losses = logged_scalars(out / "decoder")["train/loss"]
    assert (losses[0][0], losses[-1][0]) == (many + 1, steps)


@pytest.fixture(scope="module")
def opaque(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 20 opaque pictures of 32 pixels, of which none is set aside for validation."""
    folder = tmp_path_factory.mktemp("opaque")
    for number in range(20):
        Image.new("RGB", (32, 32), (12 * number, 100, 200)).save(folder / f"{number}.jpg")
        (folder / f"{number}.txt").write_text("a colour")
    build(FolderOptions(source=folder, out=folder / "shards", size=32, val_fraction=0))
    return folder / "shards"


def test_shards_of_opaque_pictures_make_a_model_of_three_channels(opaque: Path, tmp_path: Path) -> None:
    assert run_recipe(options(None, tmp_path / "out", shards=opaque, name="colours"))
    model = DALLE.load(tmp_path / "out" / "model")
    (picture,) = model.generate("a colour", seed=0)
    assert model.name == "colours" and picture.image.mode == "RGB"
    assert not (tmp_path / "out" / "shards").exists()


def test_what_a_late_stage_would_refuse_is_refused_at_once(opaque: Path, made: Path, tmp_path: Path) -> None:
    def refusal(out: str, **changes: Any) -> str:
        with pytest.raises(DataError) as caught:
            run_recipe(options(None, tmp_path / out, shards=opaque, **changes))
        assert not (tmp_path / out / "plan.json").exists(), "no stage has begun"
        return str(caught.value)

    assert refusal("1", start_from=made / "model") == (
        f"no picture of {opaque} is transparent anywhere, and {made}/model has an alpha channel: begin without it"
    )
    assert refusal("2", preset="tiny") == (
        f"the pictures of {opaque} have 32 x 32 pixels; the model's have 128 x 128: build the shards anew"
    )
    other = DiscreteVAE(DiscreteVAEConfig(image_size=32, num_layers=1, width=4, codebook_size=8, codebook_dim=4))
    save_checkpoint(tmp_path / "dvae", name="dvae", image_tokenizer=other)
    assert "dvae is no VQGAN with encoder and decoder of one resolution" in refusal("3", start_from=tmp_path / "dvae")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["small", "--pictures", pictures, "--out", tmp_path / "out", "--device", "cuda"]
    code, _, err = program(arguments, monkeypatch, capsys)
    assert code == 2 and err.startswith("error: device is 'cuda', which cannot be used here: ") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["large"], "there is no preset 'large'; there are emoji, tiny, small"),
        (["tiny", "--minutes", "0"], "minutes is 0.0; it must be above 0"),
        (["tiny", "--minutes", "-1"], "minutes is -1.0; it must be above 0"),
        (["tiny", "--minutes", "nan"], "minutes is nan; it must be above 0"),
        (["tiny", "--minutes", "inf"], "minutes is inf; it must be above 0 and at most 527040"),
        (["tiny", "--minutes", "1e307"], "minutes is 1e+307; it must be above 0 and at most 527040"),
        (["tiny", "--pictures", "a", "--shards", "b"], "pictures and shards are two sources; give one"),
        (["tiny", "--pictures", "none"], "none does not exist"),
        (["tiny", "--shards", "none"], "none does not exist"),
        (["tiny", "--start-from", "none"], "none is no folder"),
    ],
)
def test_a_caller_s_mistake_is_told_in_words(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = program([*arguments, "--out", "out", "--device", "cpu"], monkeypatch, capsys)
    assert code == 2
    assert said in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists(), "nothing is claimed for it"


def test_how_far_a_run_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no run of a recipe that has begun"):
        status(tmp_path)
    plan = Plan(tmp_path, None)
    with plan.stage("text"):
        pass
    plan.steps["image_tokenizer"] = 40
    plan.save()
    lines = status(tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == [title.split()[0] for title in TITLES.values()]
    assert lines[0].endswith("done, 0.0 minutes")
    assert lines[1].endswith("step 0 of 40 when it was last saved")
    assert all(line.endswith("to come") for line in lines[2:])


def test_what_the_first_start_chose_stays_chosen(tmp_path: Path) -> None:
    plan = Plan(tmp_path, 1.0)
    assert plan.choice("compile", False) is False
    plan.save()
    assert Plan(tmp_path, 600.0).choice("compile", True) is False


def test_long_captions_are_cut_and_counted(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "pictures"
    source.mkdir()
    for picture in sorted(pictures.glob("*.png"))[:12]:
        (source / picture.name).write_bytes(picture.read_bytes())
        (source / picture.with_suffix(".txt").name).write_text("a red square")
    (source / "00.txt").write_text(" ".join(f"xq{number}zv" for number in range(60)))
    assert run_recipe(options(source, tmp_path / "out"))
    assert "1 pairs have no caption of at most 31 tokens; cut: 'xq0zv xq1zv" in capsys.readouterr().out


def test_exports_and_paths_may_be_said_otherwise_when_a_run_goes_on(
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
