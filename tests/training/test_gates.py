"""Gates: a collapsed codebook stops stage 1 and leaves the last healthy model; stage 2 keeps its best one."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dalle.checkpoint import load_image_tokenizer
from dalle.errors import ConfigError, DataError
from dalle.vq.vqgan import ImageTokenizer
from tests.support.curves import logged_scalars
from tests.support.stages import vq_training, write_stage_1
from tests.support.tasks import Line, config, run, steps_done
from tests.support.workers import ENVIRONMENT, LAUNCHER, SECONDS, arguments
from training.gates import BestModel, CodebookHealth, HealthConfig
from training.loop import LoopConfig, train
from training.run_folder import restore_state, save_state
from training.validation import validate_tokenizer
from training.vq import VQTask


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gates")
    write_stage_1(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"usage_floor": 1.0}, "usage_floor is 1.0; it must be in [0, 1)"),
        ({"perplexity_floor": -0.1}, "perplexity_floor is -0.1; it must be in [0, 1)"),
        ({"grace_steps": -1}, "grace_steps is -1; it must be at least 0"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HealthConfig(**changes)
    assert str(caught.value) == message


def numbers(used: int, perplexity: float, possible: int = 1000) -> dict[str, float]:
    return {"used_codes": used, "possible_codes": possible, "perplexity": perplexity}


def test_health_by_numbers() -> None:
    def gate(**changes: Any) -> CodebookHealth:
        return CodebookHealth(HealthConfig(**changes), first_step=300, run="runs/x")

    one = gate(grace_steps=200)
    assert one.judge(300, numbers(1, 1)).keep is None, "the codebook is not in use yet"
    assert one.judge(400, numbers(19, 5)).collapse is None, "within the grace period"
    assert one.judge(400, numbers(20, 5)).keep == "healthy", "the floor itself is enough"
    assert one.judge(500, numbers(900, 400)).keep == "healthy"
    assert one.judge(600, numbers(900, 80)).keep == "healthy", "the floor itself is enough"
    said = one.judge(700, numbers(900, 79.9)).collapse
    assert said == (
        "step 700: the codebook has collapsed, as its perplexity is 79.9, after 400 at step 500 (20 % of it; "
        "perplexity_floor is 20 %); the last healthy model, of step 600, is in runs/x/healthy. Start another run with "
        "a lower learning_rate, more unquantized_steps, a higher restart_below, or entropy_weight 0.1"
    )
    said = gate().judge(800, numbers(19, 5)).collapse
    assert said is not None and said.startswith(
        "step 800: the codebook has collapsed, as the validation pictures use 19 of the 1000 codes that they could use "
        "(1.9 %; usage_floor is 2 %); no healthy model was seen before. Start"
    )
    assert gate(usage_floor=0.0).judge(800, numbers(1, 1)).keep == "healthy"
    again = gate(grace_steps=200)
    again.load_state_dict(one.state_dict())
    assert again.judge(700, numbers(900, 79.9)) == one.judge(700, numbers(900, 79.9)), "a resumed run remembers"


def test_the_best_model_and_patience_by_numbers() -> None:
    gate, patient = BestModel(2, run="runs/x"), BestModel(None, run="runs/x")
    losses = [3.0, 2.0, 2.0, 1.5, 1.6, 1.5]
    kept, ends = [], []
    for number, loss in enumerate(losses):
        verdict = gate.judge(10 * number, {"image_loss": loss})
        assert patient.judge(10 * number, {"image_loss": loss}).ends is None
        kept.append(verdict.keep)
        ends.append(verdict.ends)
    assert kept == ["best", "best", None, "best", None, None]
    assert ends == [None] * 5 + [
        "ended after step 50: in 2 validations, val/image_loss has not fallen below 1.5, that of step 30; the model of "
        "that step is in runs/x/best"
    ]
    assert gate.ended and not patient.ended


class Rising(Line):
    """A task whose validation is best after ten steps."""

    def __init__(self, loop: LoopConfig) -> None:
        super().__init__(loop)
        self.gate = BestModel(2, run="run")

    def state(self) -> Mapping[str, nn.Module | torch.optim.Optimizer]:
        return {**super().state(), "gate": self.gate}

    def validate(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        return {"image_loss": abs(10.0 - len(self.taken))}, {}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_ends_early_with_its_model_and_its_best_one(tmp_path: Path, workers: int) -> None:
    loop = config(steps=100, look_steps=5, workers=workers)
    task = Rising(loop)
    assert run(tmp_path, loop, task)
    assert len(task.taken) == 20 == steps_done(tmp_path)
    best, model = (load_file(tmp_path / name / "w.safetensors") for name in ("best", "model"))
    assert not torch.equal(best["0.weight"], model["0.weight"])
    assert all(torch.equal(model[name], value) for name, value in task.average.module.state_dict().items())
    again = Rising(loop)
    assert run(tmp_path, loop, again) and again.taken == [], "it has ended, and stays so"


def test_few_pictures_could_use_few_codes(data: Path) -> None:
    """A floor is a share of what the validation pictures could use, not of the codebook."""
    task = VQTask(vq_training(data))
    measured, _ = validate_tokenizer(task.average.module, task.val_pairs, task.device)
    codes = task.average.module.encode(task.val_pairs.images(range(len(task.val_pairs))))
    assert measured["possible_codes"] == min(32, codes.numel()) == 32
    assert measured["used_codes"] == len(codes.unique()) == round(32 * measured["usage"])
    assert measured["dead_codes"] == pytest.approx(1 - len(codes.unique()) / 32)
    assert {"psnr", "ssim", "perceptual"} <= set(measured)
    model = ImageTokenizer(vq_training(data).model.__class__(**vars(task.model.config) | {"blank_code": 3}))
    measured, _ = validate_tokenizer(model, task.val_pairs, task.device)
    blank = int(model.blank_patches(task.val_pairs.images(range(len(task.val_pairs)))).sum())
    assert measured["possible_codes"] == min(32, codes.numel() - blank + 1)


class Collapsing(VQTask):
    """From a step on, the encoder's output no longer depends on the picture, so that all patches have one code."""

    AT = 7

    def train_step(self, step: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        scalars = super().train_step(step, batch)
        if step >= self.AT:
            for model in (self.model, self.average.module):
                last = [module for module in model.encoder.modules() if isinstance(module, torch.nn.Conv2d)][-1]
                torch.nn.init.zeros_(last.weight)
        return scalars


COLLAPSE = HealthConfig(perplexity_floor=0.5, usage_floor=0.1, grace_steps=2)


def test_a_collapse_stops_the_run_and_leaves_the_last_healthy_model(data: Path, tmp_path: Path) -> None:
    loop = {"steps": 12, "look_steps": 2, "save_minutes": 0.0}
    training = vq_training(data, loop=loop, run=str(tmp_path / "run"), health=COLLAPSE)
    for _ in range(2):  # the same command ends the same way
        with pytest.raises(DataError, match=r"step 8: the codebook has collapsed, as .* 1 of the 32 codes") as caught:
            train(Collapsing(training), training.loop, tmp_path / "run", training)
        assert f"of step 6, is in {tmp_path}/run/healthy" in str(caught.value)
    curves = logged_scalars(tmp_path / "run")
    assert curves["val/used_codes"][-1] == (8, 1.0)
    assert not (tmp_path / "run" / "model").exists()
    healthy = load_image_tokenizer(tmp_path / "run" / "healthy")
    about = json.loads((tmp_path / "run" / "healthy" / "config.json").read_text())["about"]
    assert about["image_tokenizer_steps"] == "6"
    pairs = VQTask(training).val_pairs
    assert isinstance(healthy, ImageTokenizer)
    measured, _ = validate_tokenizer(healthy, pairs, torch.device("cpu"))
    assert measured["perplexity"] == pytest.approx(dict(curves["val/perplexity"])[6], rel=1e-5)
    again = VQTask(vq_training(data, start_from=str(tmp_path / "run" / "healthy")))
    again.train_step(0, again.batch(0))


def test_a_run_of_an_earlier_version_that_had_no_gate_goes_on(data: Path, tmp_path: Path) -> None:
    task = VQTask(vq_training(data))
    save_state({name: part for name, part in task.state().items() if name != "gate"}, 5, tmp_path)
    assert restore_state(task.state(), tmp_path) == 5


PROGRAM = """
from tests.training.test_gates import Collapsing
from training import vq
vq.VQTask = Collapsing
vq.main()
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_collapse_is_told_once_by_all_workers(data: Path, tmp_path: Path, workers: int) -> None:
    (tmp_path / "collapsing.py").write_text(PROGRAM)
    launcher = [*LAUNCHER, "--nproc-per-node", "2", "--"] if workers > 1 else []
    options = arguments("vq", data, tmp_path / "run", look_steps=2)
    options += ["--health.usage-floor", "0.1", "--health.perplexity-floor", "0.5", "--health.grace-steps", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(tmp_path / "collapsing.py"), *options],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    said = done.stdout + done.stderr
    assert done.returncode == (2 if workers == 1 else 1), said
    assert said.count("error: step 8: the codebook has collapsed") == said.count("error: ") == 1, said
    assert (tmp_path / "run" / "healthy").is_dir() and not (tmp_path / "run" / "model").exists()
