"""The loop with a small task of its own: schedule, averages, clipping, validation, and batches from workers."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dalle.errors import ConfigError, DataError
from tests.support.curves import logged_pictures, logged_scalars
from tests.support.tasks import Interrupted, Line, assert_same_run, config, run, steps_done
from training.hardware import autocast
from training.loop import LoopConfig
from training.optimization import WeightAverage, clip_and_step, learning_rate_scale


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1; it must be in"),
        ({"seed": 2**31}, "seed is 2147483648; it must be in"),
        ({"warmup_steps": -1}, "warmup_steps is -1; it must not be negative"),
        ({"workers": -1}, "workers is -1; it must not be negative"),
        ({"save_minutes": -0.5}, "save_minutes is -0.5; it must not be negative"),
        ({"final_rate": 1.1}, "final_rate is 1.1; it must be in"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0; it must be above 0"),
        ({"average_decay": 1.0}, "average_decay is 1.0; it must be in"),
        ({"log_steps": 0}, "log_steps is 0; it must be at least 1"),
        ({"look_steps": 0}, "look_steps is 0; it must be at least 1"),
        ({"export_minutes": -1.0}, "export_minutes is -1.0; it must not be negative"),
        ({"first_step": -1}, "first_step is -1; it must be in 0..11"),
        ({"first_step": 12}, "first_step is 12; it must be in 0..11"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    assert str(caught.value).startswith(message)


def test_schedule_by_numbers() -> None:
    loop = config(steps=24, warmup_steps=4, final_rate=0.1)
    scales = [learning_rate_scale(loop, step) for step in range(26)]
    assert scales[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert scales[14] == pytest.approx(0.55)  # half-way down
    assert scales[9] == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)  # a quarter of the way
    assert scales[24] == scales[25] == pytest.approx(0.1)
    assert scales[4:25] == sorted(scales[4:25], reverse=True)
    assert learning_rate_scale(config(warmup_steps=0), 0) == 1.0
    assert learning_rate_scale(config(steps=2, warmup_steps=10), 1) == 0.2, "a run may end while it is warming up"


def test_weight_average_by_numbers() -> None:
    module = nn.BatchNorm1d(1)
    average = WeightAverage(module, decay=0.25)
    assert not average.module.training and not any(p.requires_grad for p in average.parameters())
    expected = 1.0
    for update in range(6):
        with torch.no_grad():
            module.weight.fill_(10.0 * update)
            module.running_mean.fill_(float(update))  # type: ignore[union-attr]
        average.update(module)
        decay = min(0.25, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * 10 * update
        assert average.module.weight.item() == pytest.approx(expected)
        assert average.module.running_mean.item() == update, "buffers are copied"  # type: ignore[union-attr]
    assert average.updates.item() == 6


def test_clip_is_over_all_parameters_and_the_rate_is_the_schedule_s() -> None:
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    optimizers: list[torch.optim.Optimizer] = [torch.optim.SGD([p], lr=9.0) for p in (first, second)]
    for optimizer, rate in zip(optimizers, (1.0, 0.5), strict=True):
        optimizer.param_groups[0]["peak_rate"] = rate
    loop = config(warmup_steps=4, max_grad_norm=1.3)
    loss = (first * torch.tensor([3.0, 4.0])).sum() + 12 * second.sum()  # gradient (3, 4 | 12), of length 13
    loss.backward()
    scalars = clip_and_step(optimizers, loop, 1, loss.detach())
    assert scalars == {"gradient_norm": pytest.approx(13.0), "rate_scale": 0.5}
    assert first.tolist() == pytest.approx([-0.5 * 0.3, -0.5 * 0.4], rel=1e-4)
    assert second.tolist() == pytest.approx([-0.25 * 1.2], rel=1e-4)
    assert first.grad is None and second.grad is None

    (0.1 * first.sum() + 0 * second.sum()).backward()
    before = first.detach().clone()
    clip_and_step(optimizers, loop, 3, torch.tensor(0.0))
    assert (before - first).tolist() == pytest.approx([0.1, 0.1]), "a small gradient is left as it is"


@pytest.mark.parametrize(("loss", "gradient"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, -math.inf)])
def test_nothing_is_updated_if_loss_or_gradient_is_not_finite(loss: float, gradient: float) -> None:
    task = Line(config())
    task.train_step(0, task.batch(0))

    def values() -> list[Tensor]:
        states = [value for o in (task.muon, task.adam) for state in o.state.values() for value in state.values()]
        return [value.clone() for value in (*task.model.state_dict().values(), *states)]

    before = values()
    for parameter in task.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    task.model[2].bias.grad = torch.tensor([gradient])
    with pytest.raises(DataError, match=f"step 7: loss {loss:.4g}, gradient norm .*: not finite"):
        clip_and_step([task.muon, task.adam], task.loop, 7, torch.tensor(loss))
    assert all(map(torch.equal, before, values()))


def test_precision_is_that_of_the_forward_pass() -> None:
    device, a = torch.device("cpu"), torch.ones(2, 2)
    with autocast(device, "bfloat16"):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(device, "float32"):
        assert (a @ a).dtype == torch.float32
    with autocast(device, "auto"):
        assert (a @ a).dtype == (torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32)


def test_a_run_logs_validates_saves_and_exports(tmp_path: Path) -> None:
    loop, folder = config(), tmp_path / "deep" / "run"
    task = Line(loop)
    assert run(folder, loop, task)
    assert task.taken == list(range(12))
    names = sorted(path.name for path in folder.iterdir())
    assert names == [".lock", "config.json", "inputs.json", "model", "state.safetensors", "tensorboard"]
    assert LoopConfig.from_dict(json.loads((folder / "config.json").read_text())) == loop
    scalars = logged_scalars(folder)
    assert set(scalars) == {"train/loss", "train/gradient_norm", "train/rate_scale", "val/length"}
    for name in ("train/loss", "train/gradient_norm", "train/rate_scale"):
        assert [step for step, _ in scalars[name]] == [2, 4, 6, 8, 10, 12]
    rates = [learning_rate_scale(loop, step - 1) for step in (2, 4, 6, 8, 10, 12)]
    assert [rate for _, rate in scalars["train/rate_scale"]] == pytest.approx(rates)
    assert [step for step, _ in scalars["val/length"]] == [5, 10, 12], "and at the end"
    assert [step for step, _ in logged_pictures(folder)["weights"]] == [5, 10, 12]
    assert steps_done(folder) == 12
    exported = load_file(folder / "model" / "w.safetensors")
    assert all(torch.equal(exported[key], value) for key, value in task.average.module.state_dict().items())


def test_a_finished_run_is_exported_again_and_nothing_else(tmp_path: Path) -> None:
    loop = config()
    run(tmp_path, loop)
    before, state = logged_scalars(tmp_path), (tmp_path / "state.safetensors").read_bytes()
    exported = (tmp_path / "model" / "w.safetensors").read_bytes()
    (tmp_path / "model" / "w.safetensors").unlink()
    again = Line(loop)
    assert run(tmp_path, loop, again)
    assert again.taken == []
    assert logged_scalars(tmp_path) == before, "the last step's scalars are still there"
    assert (tmp_path / "state.safetensors").read_bytes() == state
    assert (tmp_path / "model" / "w.safetensors").read_bytes() == exported


class Diverging(Line):
    def batch(self, step: int) -> dict[str, Tensor]:
        batch = super().batch(step)
        return batch | {"heights": batch["heights"] * (math.nan if step == 6 else 1)}


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_save(tmp_path: Path) -> None:
    loop = config(save_minutes=0.0)
    for _ in range(2):  # trying again ends the same way, and harms nothing
        with pytest.raises(DataError, match=r"step 6: loss nan, .* The last saved state is kept"):
            run(tmp_path, loop, Diverging(loop))
        assert steps_done(tmp_path) == 6
    assert [step for step, _ in logged_scalars(tmp_path)["train/loss"]] == [2, 4, 6]


class Unreadable(Line):
    def batch(self, step: int) -> dict[str, Tensor]:
        if step == 3:
            raise DataError("picture 7 cannot be read")
        return super().batch(step)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_caller_s_mistake_in_a_worker_keeps_its_type_and_message(tmp_path: Path, workers: int) -> None:
    loop = config(workers=workers)
    task = Unreadable(loop)
    with pytest.raises(DataError) as caught:
        run(tmp_path, loop, task)
    assert str(caught.value) == "picture 7 cannot be read"
    assert task.taken == [0, 1, 2], "the batches before it were used"


def test_batches_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    for workers in (0, 1):
        run(tmp_path / str(workers), config(workers=workers))
    weights = {(tmp_path / str(workers) / "model" / "w.safetensors").read_bytes() for workers in (0, 1)}
    assert len(weights) == 1


class Watched(Line):
    """Records the numbers of steps at which it was exported."""

    exported: list[int]

    def export(self, folder: Path, step: int) -> None:
        super().export(folder, step)
        self.exported = [*getattr(self, "exported", []), step]
        current = load_file(folder / "w.safetensors")
        assert all(torch.equal(current[key], value) for key, value in self.average.module.state_dict().items())


def test_the_model_is_written_every_so_many_minutes(tmp_path: Path) -> None:
    always, never, seldom = (config(export_minutes=minutes) for minutes in (0.0, None, 60.0))
    tasks = [Watched(loop) for loop in (always, never, seldom)]
    for number, task in enumerate(tasks):
        assert run(tmp_path / str(number), task.loop, task)
    assert [task.exported for task in tasks] == [[*range(1, 13), 12], [12], [12]]
    states = {(tmp_path / str(number) / "state.safetensors").read_bytes() for number in range(3)}
    assert len(states) == 1, "exporting changes nothing"


def test_a_run_may_begin_at_a_later_step(tmp_path: Path) -> None:
    """The run continues the schedule and batches of the run whose weights it has, and can be resumed."""
    loop = config(first_step=5, log_steps=1, save_minutes=0.0)
    task = Interrupted(loop, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert not run(tmp_path / "parts", loop, task)
    assert task.taken == [5, 6, 7, 8] and steps_done(tmp_path / "parts") == 9
    again = Line(loop)
    assert run(tmp_path / "parts", loop, again)
    assert again.taken == [9, 10, 11]

    whole = Line(loop)
    assert run(tmp_path / "whole", loop, whole)
    assert whole.taken == list(range(5, 12))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    rates = logged_scalars(tmp_path / "whole")["train/rate_scale"]
    assert [step for step, _ in rates] == list(range(6, 13))
    assert [rate for _, rate in rates] == pytest.approx([learning_rate_scale(loop, step) for step in range(5, 12)])
    by_hand = Line(loop)
    for step in range(5, 12):
        torch.manual_seed((loop.seed << 32) + step)
        by_hand.train_step(step, by_hand.batch(step))
    assert all(map(torch.equal, by_hand.model.state_dict().values(), whole.model.state_dict().values()))
