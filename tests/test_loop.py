"""The loop, with a small task of its own: schedule, averages, saving, stopping, and going on as if nothing had been."""

import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from curves import logged_pictures, logged_scalars
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dalle.errors import ConfigError, DataError
from training.loop import LoopConfig, WeightAverage, autocast, clip_and_step, learning_rate_scale, train
from training.run_folder import claim_folder, locked


def config(**changes: Any) -> LoopConfig:
    values: dict[str, Any] = {"steps": 12, "batch_size": 4, "warmup_steps": 3, "log_steps": 2, "look_steps": 5}
    return LoopConfig(**(values | {"workers": 0, "device": "cpu", "precision": "float32"} | changes))


class Line:
    """Learns a plane from noisy points: a task whose batches, noise and state are all that matters here."""

    def __init__(self, loop: LoopConfig) -> None:
        self.loop = loop
        torch.manual_seed(loop.seed)
        self.model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.average = WeightAverage(self.model, decay=0.9)
        matrices = [p for p in self.model.parameters() if p.ndim == 2]
        others = [p for p in self.model.parameters() if p.ndim != 2]
        self.muon = torch.optim.Muon(matrices, lr=0.02)
        self.adam = torch.optim.AdamW(others, lr=0.01)
        for optimizer, rate in ((self.muon, 0.02), (self.adam, 0.01)):
            optimizer.param_groups[0]["peak_rate"] = rate
        self.taken: list[int] = []

    def state(self) -> Mapping[str, nn.Module | torch.optim.Optimizer]:
        return {"model": self.model, "average": self.average, "muon": self.muon, "adam": self.adam}

    def inputs(self) -> dict[str, str | int]:
        return {"plane": "2x - y + 0.5"}

    def batch(self, step: int) -> dict[str, Tensor]:
        points = torch.randn(self.loop.batch_size, 2, generator=torch.Generator().manual_seed(step))
        return {"points": points, "heights": points @ torch.tensor([[2.0], [-1.0]]) + 0.5}

    def train_step(self, step: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        self.taken.append(step)
        noise = 0.1 * torch.randn_like(batch["heights"])  # from the generator that the loop seeds for each step
        loss = (self.model(batch["points"]) - batch["heights"] - noise).square().mean()
        loss.backward()
        scalars = clip_and_step([self.muon, self.adam], self.loop, step, loss.detach())
        self.average.update(self.model)
        return {"loss": loss} | scalars

    def look(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        weight = self.average.module.get_parameter("0.weight")
        return {"length": float(weight.norm())}, {"weights": weight.detach().flatten().expand(3, 4, -1)}

    def export(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        weights = {key: value.clone() for key, value in self.average.module.state_dict().items()}
        save_file(weights, folder / "w.safetensors")


def run(folder: Path, loop: LoopConfig, task: Line | None = None) -> bool:
    while list(folder.glob(f"tensorboard/events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(
            0.01
        )  # TensorBoard reads the files of a run in the order of their names, which begin with the second
    return train(task or Line(loop), loop, folder, loop.to_dict())


def steps_done(folder: Path) -> int:
    with safe_open(folder / "state.safetensors", framework="pt") as file:
        return int(file.metadata()["step"])


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


def test_a_run_logs_looks_saves_and_exports(tmp_path: Path) -> None:
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


class Interrupted(Line):
    """Something happens in the middle of a step."""

    def __init__(self, loop: LoopConfig, at: int, what: Any) -> None:
        super().__init__(loop)
        self.at, self.what = at, what

    def train_step(self, step: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        if step == self.at:
            self.what()
        return super().train_step(step, batch)


def assert_same_run(one: Path, other: Path) -> None:
    assert (one / "state.safetensors").read_bytes() == (other / "state.safetensors").read_bytes()
    assert (one / "model" / "w.safetensors").read_bytes() == (other / "model" / "w.safetensors").read_bytes()
    assert logged_scalars(one) == logged_scalars(other)
    assert logged_pictures(one) == logged_pictures(other)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "polite kill"])
@pytest.mark.parametrize(("at", "workers"), [(0, 0), (4, 1), (10, 0)])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, number: signal.Signals, at: int, workers: int
) -> None:
    loop = config(workers=workers)
    run(tmp_path / "whole", loop)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stopped = Interrupted(loop, at, lambda: os.kill(os.getpid(), number))
    assert not run(tmp_path / "parts", loop, stopped)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert stopped.taken[-1] == at, "the step is finished"
    assert steps_done(tmp_path / "parts") == at + 1, "and saved"
    assert not (tmp_path / "parts" / "model").exists()
    rest = Line(loop)
    assert run(tmp_path / "parts", loop, rest)
    assert rest.taken == list(range(at + 1, 12))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_stopping_in_the_last_step_is_finishing(tmp_path: Path) -> None:
    assert run(tmp_path, config(), Interrupted(config(), 11, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert (tmp_path / "model").is_dir()


@pytest.mark.parametrize("at", [0, 5, 11])
@pytest.mark.parametrize("save_minutes", [0.0, 60.0], ids=["saved each step", "saved at the end"])
def test_a_run_that_broke_down_goes_on_from_its_last_save(tmp_path: Path, at: int, save_minutes: float) -> None:
    loop = config(save_minutes=save_minutes)

    def break_down() -> None:
        raise RuntimeError("a crash of some kind")

    run(tmp_path / "whole", loop)
    with pytest.raises(RuntimeError, match="a crash"):
        run(tmp_path / "parts", loop, Interrupted(loop, at, break_down))
    rest = Line(loop)
    assert run(tmp_path / "parts", loop, rest)
    assert rest.taken == list(range(at if save_minutes == 0 else 0, 12))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("at", [1, 3, 8])
def test_a_killed_run_has_logged_what_it_will_not_log_again(tmp_path: Path, at: int) -> None:
    loop = config(save_minutes=0.0)
    run(tmp_path / "whole", loop)
    killed = Interrupted(loop, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
    child = multiprocessing.get_context("fork").Process(target=run, args=(tmp_path / "parts", loop, killed))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert run(tmp_path / "parts", loop)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


class Diverging(Line):
    def batch(self, step: int) -> dict[str, Tensor]:
        batch = super().batch(step)
        return batch | {"heights": batch["heights"] * (math.nan if step == 6 else 1)}


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_save(tmp_path: Path) -> None:
    loop = config(save_minutes=0.0)
    for _ in range(2):  # trying again ends the same way, and harms nothing
        with pytest.raises(DataError, match=r"step 6: loss nan, .* The last checkpoint is kept"):
            run(tmp_path, loop, Diverging(loop))
        assert steps_done(tmp_path) == 6
    assert [step for step, _ in logged_scalars(tmp_path)["train/loss"]] == [2, 4, 6]


class Unreadable(Line):
    def batch(self, step: int) -> dict[str, Tensor]:
        if step == 3:
            raise DataError("picture 7 cannot be read")
        return super().batch(step)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_caller_s_mistake_in_a_worker_is_told_plainly(tmp_path: Path, workers: int) -> None:
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


def test_a_damaged_configuration_is_refused(tmp_path: Path) -> None:
    claim_folder(tmp_path, {"steps": 1}, {"pairs": 2})
    claim_folder(tmp_path, {"steps": 1}, {"pairs": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "inputs.json"]
    (tmp_path / "config.json").write_text('{"steps": ')
    with pytest.raises(DataError, match=r"config\.json cannot be read"):
        claim_folder(tmp_path, {"steps": 1}, {"pairs": 2})


def test_a_run_of_another_configuration_is_refused(tmp_path: Path) -> None:
    loop = config(save_minutes=0.0)
    run(tmp_path, loop)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(DataError) as caught:
        run(tmp_path, config(save_minutes=0.0, seed=3))
    assert str(caught.value) == (
        f"{tmp_path} holds a run with seed = 0, not 3: resume it with its own, or give another --run folder"
    )
    with pytest.raises(DataError, match=r"holds a run with new = None, not 1"):
        train(Line(loop), loop, tmp_path, loop.to_dict() | {"new": 1})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_damaged_state_is_a_caller_s_matter(tmp_path: Path) -> None:
    loop = config()
    run(tmp_path, loop)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"state\.safetensors cannot be read: .*; remove it to begin the run again"):
        run(tmp_path, loop)
    state.unlink()
    assert run(tmp_path, loop)


def test_a_half_written_state_is_never_read(tmp_path: Path) -> None:
    """The process may die while it saves: the state of before is still there, under its name."""
    loop = config(save_minutes=0.0)
    run(tmp_path / "whole", loop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", loop, Interrupted(loop, 8, _interrupt))
    (tmp_path / "parts" / "state.safetensors.part").write_bytes(b"half of a state")
    assert run(tmp_path / "parts", loop)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def _interrupt() -> None:
    raise KeyboardInterrupt


def _hold(folder: Path, pipe: Connection) -> None:
    with locked(folder):
        pipe.send("locked")
        pipe.recv()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    here, there = multiprocessing.Pipe()
    other = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path, there))
    other.start()
    assert here.recv() == "locked"
    with pytest.raises(DataError, match="another process trains in it"):
        run(tmp_path, config())
    other.kill()
    other.join(60)
    assert run(tmp_path, config()), "the lock ends with the process, however that ends"


def test_a_run_resumes_on_its_own_inputs_only(tmp_path: Path) -> None:
    class Elsewhere(Line):
        def inputs(self) -> dict[str, str | int]:
            return {"plane": "x + y"}

    run(tmp_path, config())
    with pytest.raises(DataError, match=r"holds a run with plane = '2x - y \+ 0\.5', not 'x \+ y'"):
        run(tmp_path, config(), Elsewhere(config()))
