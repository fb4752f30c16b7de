"""What a validation says about a run: whether its model is worth keeping, and whether the run should go on.

Stage 1 stops when its codebook collapses, and keeps the last healthy model. Stage 2 keeps its best model, and may stop
when validation no longer improves. What a gate remembers is in buffers, and is saved and resumed with the run.
"""

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dalle.config import Config, require, require_at_least

__all__ = ["BestModel", "CodebookHealth", "Gate", "HealthConfig", "Verdict"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A gate's judgement of a validation."""

    keep: str | None = None
    """Folder in the run folder into which the model is exported as it is now; None: it is not."""
    ends: str | None = None
    """Why the run ends here as if it had finished; None: it does not."""
    collapse: str | None = None
    """What is wrong with the model, so that the run stops as failed; None: nothing is."""


class Gate(nn.Module):
    """A gate that lets every run go on and keeps nothing; those of the stages derive from it."""

    ended: Tensor
    """Whether the run has ended before its last step, a bool of shape ()."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ended", torch.zeros((), dtype=torch.bool))

    def judge(self, step: int, numbers: Mapping[str, float]) -> Verdict:
        """The verdict on the validation scalars after this many steps, and a note of what later verdicts need."""
        return Verdict()


@dataclasses.dataclass(frozen=True, kw_only=True)
class HealthConfig(Config):
    """When the codebook of stage 1 counts as collapsed."""

    usage_floor: float = 0.02
    """Smallest share of the codes that the validation pictures could use at most which they must use; 0: no floor. They
    could use all codes, or as many as they have patches that are not blank."""
    perplexity_floor: float = 0.2
    """Smallest perplexity, as a share of the best one of the run; 0: no floor."""
    grace_steps: int = 500
    """Steps from the first use of the codebook in which a collapse does not stop the run."""

    def __post_init__(self) -> None:
        for name in ("usage_floor", "perplexity_floor"):
            require(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        require_at_least(self, 0, "grace_steps")


class CodebookHealth(Gate):
    """Stops stage 1 when its codebook collapses, and keeps the last healthy model in `healthy`.

    It judges `used_codes`, `possible_codes` and `perplexity` of a validation.
    """

    FOLDER = "healthy"

    best: Tensor
    """The highest perplexity of a validation so far, and its step: (2,) float64."""
    healthy_step: Tensor
    """Steps of the last healthy model; 0 if there is none."""

    def __init__(self, config: HealthConfig, *, first_step: int, run: str) -> None:
        """first_step: step from which the codebook is in use. run: the run folder, for the message."""
        super().__init__()
        self.config = config
        self.first_step = first_step
        self.run = run
        self.register_buffer("best", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("healthy_step", torch.zeros((), dtype=torch.int64))

    def judge(self, step: int, numbers: Mapping[str, float]) -> Verdict:
        if step <= self.first_step:
            return Verdict()
        wrong = self._wrong(numbers)
        if wrong is None:
            if numbers["perplexity"] > self.best[0]:
                self.best.copy_(torch.tensor([numbers["perplexity"], step], dtype=torch.float64))
            self.healthy_step.fill_(step)
            return Verdict(keep=self.FOLDER)
        if step < self.first_step + self.config.grace_steps:
            return Verdict()
        healthy = f"the last healthy model, of step {int(self.healthy_step)}, is in {self.run}/{self.FOLDER}"
        return Verdict(
            collapse=f"step {step}: the codebook has collapsed, as {wrong}; "
            f"{healthy if self.healthy_step > 0 else 'no healthy model was seen before'}. Start another run with "
            "a lower learning_rate, more unquantized_steps, a higher restart_below, or entropy_weight 0.1"
        )

    def _wrong(self, numbers: Mapping[str, float]) -> str | None:
        used, possible, perplexity = (numbers[name] for name in ("used_codes", "possible_codes", "perplexity"))
        best, best_step = self.best.tolist()
        if used < self.config.usage_floor * possible:
            return (
                f"the validation pictures use {used:.0f} of the {possible:.0f} codes that they could use "
                f"({100 * used / possible:.2g} %; usage_floor is {100 * self.config.usage_floor:g} %)"
            )
        if perplexity < self.config.perplexity_floor * best:
            return (
                f"its perplexity is {perplexity:.4g}, after {best:.4g} at step {best_step:.0f} "
                f"({100 * perplexity / best:.2g} % of it; perplexity_floor is {100 * self.config.perplexity_floor:g} %)"
            )
        return None


class BestModel(Gate):
    """Keeps the model with the lowest `image_loss` of stage 2 in `best`, and ends a run that has stopped improving."""

    FOLDER = "best"

    best: Tensor
    """The lowest loss of a validation so far, and its step: (2,) float64."""
    misses: Tensor
    """Validations since then."""

    def __init__(self, patience: int | None, *, run: str) -> None:
        """patience: validations without a lower loss after which the run ends; None: it never does. run: the run
        folder, for the message."""
        super().__init__()
        self.patience = patience
        self.run = run
        self.register_buffer("best", torch.tensor([math.inf, 0], dtype=torch.float64))
        self.register_buffer("misses", torch.zeros((), dtype=torch.int64))

    def judge(self, step: int, numbers: Mapping[str, float]) -> Verdict:
        if numbers["image_loss"] < self.best[0]:
            self.best.copy_(torch.tensor([numbers["image_loss"], step], dtype=torch.float64))
            self.misses.zero_()
            return Verdict(keep=self.FOLDER)
        self.misses += 1
        if self.patience is None or self.misses < self.patience:
            return Verdict()
        self.ended.fill_(True)
        loss, best_step = self.best.tolist()
        return Verdict(
            ends=f"ended after step {step}: in {int(self.misses)} validations, val/image_loss has not fallen below "
            f"{loss:.4g}, that of step {best_step:.0f}; the model of that step is in {self.run}/{self.FOLDER}"
        )
