"""A small task for the loop, its configuration, interruptions, and comparisons of run folders."""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support.curves import logged_pictures, logged_scalars
from training.gates import Gate
from training.loop import LoopConfig, train
from training.optimization import WeightAverage, clip_and_step

__all__ = ["Interrupted", "Line", "assert_same_run", "config", "run", "steps_done"]


def config(**changes: Any) -> LoopConfig:
    values: dict[str, Any] = {"steps": 12, "batch_size": 4, "warmup_steps": 3, "log_steps": 2, "look_steps": 5}
    return LoopConfig(**(values | {"workers": 0, "device": "cpu", "precision": "float32"} | changes))


class Line:
    """A task that learns a plane from noisy points, with batches, noise and state like those of the stages."""

    def __init__(self, loop: LoopConfig) -> None:
        self.loop = loop
        self.gate = Gate()
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

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def validate(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        weight = self.average.module.get_parameter("0.weight")
        return {"length": float(weight.norm())}, {"weights": weight.detach().flatten().expand(3, 4, -1)}

    def export(self, folder: Path, step: int) -> None:
        folder.mkdir(exist_ok=True)
        weights = {key: value.clone() for key, value in self.average.module.state_dict().items()}
        save_file(weights, folder / "w.safetensors")


class Interrupted(Line):
    """A task that calls a function in the middle of a step."""

    def __init__(self, loop: LoopConfig, at: int, what: Callable[[], None]) -> None:
        super().__init__(loop)
        self.at, self.what = at, what

    def train_step(self, step: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        if step == self.at:
            self.what()
        return super().train_step(step, batch)


def run(folder: Path, loop: LoopConfig, task: Line | None = None) -> bool:
    # TensorBoard reads the files of a run in the order of their names, which begin with the second
    while list(folder.glob(f"tensorboard/events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.01)
    return train(task or Line(loop), loop, folder, loop)


def steps_done(folder: Path) -> int:
    with safe_open(folder / "state.safetensors", framework="pt") as file:
        return int(file.metadata()["step"])


def assert_same_run(one: Path, other: Path) -> None:
    assert (one / "state.safetensors").read_bytes() == (other / "state.safetensors").read_bytes()
    assert (one / "model" / "w.safetensors").read_bytes() == (other / "model" / "w.safetensors").read_bytes()
    assert logged_scalars(one) == logged_scalars(other)
    assert logged_pictures(one) == logged_pictures(other)
