"""The plan of a recipe: its stages, their shares of the budget, and the decisions and times so far."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dalle.errors import DataError

__all__ = ["PLAN_FILE", "SHARES", "TITLES", "Plan"]

PLAN_FILE = "plan.json"
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
"""Shares of the budget. Time that a stage leaves or overdraws is distributed over the stages after it."""


class Plan:
    """The decisions of a run and the times of its stages, kept in a file, so that a resumed run keeps its decisions."""

    def __init__(self, folder: Path, minutes: float | None) -> None:
        self.path = folder / PLAN_FILE
        self.budget = None if minutes is None else 60 * minutes
        self.steps: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        """Seconds that each stage has taken so far."""
        self.done: list[str] = []
        self.choices: dict[str, bool] = {}
        """Decisions that depended on the options of the first start, by name."""
        if self.path.exists():
            try:
                found = json.loads(self.path.read_text(encoding="utf-8"))
                self.steps, self.seconds = dict(found["steps"]), dict(found["seconds"])
                self.done, self.choices = list(found["done"]), dict(found.get("choices", {}))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(f"{self.path} cannot be read: {error}; give another --out folder") from error

    def share(self, stage: str) -> float:
        """Seconds for the stage that starts now: its share of the budget that is left."""
        assert self.budget is not None
        return max(0.0, self.budget - self.used) * self.part(stage)

    @property
    def used(self) -> float:
        """Seconds that all stages have taken so far."""
        return sum(self.seconds.values())

    @staticmethod
    def part(stage: str) -> float:
        """The share of a stage relative to those of itself and all stages after it."""
        to_come = list(SHARES)[list(SHARES).index(stage) :]
        return SHARES[stage] / sum(SHARES[name] for name in to_come)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures the time of the body, and marks the stage as done unless the body raises."""
        start = time.monotonic()
        try:
            yield
            self.done.append(name)
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 1)
            self.save()

    def choice(self, name: str, value: bool) -> bool:
        """The decision of this name: `value` at the first call, and the same again in every later call and resumed
        run."""
        return self.choices.setdefault(name, value)

    def save(self) -> None:
        """Replaces the file, atomically."""
        unfinished = self.path.with_suffix(".part")
        values = {"steps": self.steps, "seconds": self.seconds, "done": self.done, "choices": self.choices}
        unfinished.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(self.path)
