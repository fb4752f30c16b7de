"""How a recipe shares out a budget of time: a plan that is kept in a file, and steps that are timed to find out how
many fit.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from dalle.errors import DataError
from training.decoder import DecoderTrainingConfig
from training.loop import Task
from training.vq import VQTrainingConfig

__all__ = ["PLAN_FILE", "SHARES", "TITLES", "C", "Plan", "fitted", "probe"]

PLAN_FILE = "plan.json"
PROBE_STEPS = 5
"""Steps that are timed to find out how many fit, after one that warms up."""
C = TypeVar("C", VQTrainingConfig, DecoderTrainingConfig)

TITLES = {
    "text": "text tokenizer",
    "image_tokenizer": "image tokenizer",
    "codes": "token shards",
    "decoder": "decoder",
    "sharper": "sharper pixels",
    "model": "model directory",
    "figures": "figures and sheet",
}
SHARES = {"text": 0.01, "image_tokenizer": 0.27, "codes": 0.05, "decoder": 0.45, "sharper": 0.15, "figures": 0.07}
"""Of the budget. What a stage does not use, or takes too much, is shared by those after it."""


class Plan:
    """What was decided and used, stage by stage: kept in a file, so that a resumed run decides nothing anew."""

    def __init__(self, folder: Path, minutes: float | None) -> None:
        self.path = folder / PLAN_FILE
        self.budget = None if minutes is None else 60 * minutes
        self.steps: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        """Used so far by each stage that has begun."""
        self.done: list[str] = []
        self.choices: dict[str, bool] = {}
        """What was chosen by the budget of the first start."""
        if self.path.exists():
            try:
                found = json.loads(self.path.read_text(encoding="utf-8"))
                self.steps, self.seconds = dict(found["steps"]), dict(found["seconds"])
                self.done, self.choices = list(found["done"]), dict(found.get("choices", {}))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(f"{self.path} cannot be read: {error}; give another --out folder") from error

    def share(self, stage: str) -> float:
        """Seconds for a stage whose turn it is: its part of what is left of the budget."""
        assert self.budget is not None
        return max(0.0, self.budget - self.used) * self.part(stage)

    @property
    def used(self) -> float:
        """Seconds of all stages so far."""
        return sum(self.seconds.values())

    @staticmethod
    def part(stage: str) -> float:
        """A stage's share of what is shared by it and those after it."""
        to_come = list(SHARES)[list(SHARES).index(stage) :]
        return SHARES[stage] / sum(SHARES[name] for name in to_come)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times the body, and notes that the stage is done unless it raises."""
        start = time.monotonic()
        try:
            yield
            self.done.append(name)
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 1)
            self.save()

    def choice(self, name: str, value: bool) -> bool:
        """The value chosen under this name when it was first asked for: another budget later changes nothing."""
        return self.choices.setdefault(name, value)

    def save(self) -> None:
        """Write the file anew, whole or not at all."""
        unfinished = self.path.with_suffix(".part")
        values = {"steps": self.steps, "seconds": self.seconds, "done": self.done, "choices": self.choices}
        unfinished.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(self.path)


def probe(task: Task, step: int, device: torch.device) -> tuple[float, float]:
    """Seconds of a first training step, which may compile, and the median of some later ones, taken in the middle of a
    run, where all losses are there."""
    seconds = []
    for number in range(step, step + 1 + PROBE_STEPS):
        start = time.monotonic()
        task.train_step(number, {key: value.to(device) for key, value in task.batch(number).items()})
        _wait_for(device)
        seconds.append(time.monotonic() - start)
    return seconds[0], statistics.median(seconds[1:])


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fitted(config: C, steps: int, first_step: int, *, few_looks: bool) -> C:
    """A configuration whose warm-ups and looks fit the number of steps; few looks are four."""
    loop = dataclasses.replace(
        config.loop,
        steps=steps,
        first_step=first_step,
        warmup_steps=min(config.loop.warmup_steps, steps // 10),
        look_steps=max(1, steps // 4) if few_looks else config.loop.look_steps,
    )
    config = dataclasses.replace(config, loop=loop)
    if isinstance(config, VQTrainingConfig):
        return dataclasses.replace(
            config,
            unquantized_steps=min(config.unquantized_steps, steps // 10),
            adversarial_start=min(config.adversarial_start, steps // 5),
        )
    return config
