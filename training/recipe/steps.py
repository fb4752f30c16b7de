"""The number of steps of a stage that fits into its share of the budget, from the measured time of a few steps."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from dalle.errors import DataError
from training.decoder_config import DecoderTrainingConfig
from training.loop import Task
from training.recipe.plan import TITLES, Plan
from training.vq_config import VQTrainingConfig

__all__ = ["StageConfig", "choose_steps", "fitted"]

StageConfig = TypeVar("StageConfig", VQTrainingConfig, DecoderTrainingConfig)

PROBE_STEPS = 5
"""Steps that are timed, after a first one that warms up."""
NUM_VALIDATIONS = 2
"""Validations of a run with a budget: half-way and at the end."""


def choose_steps(
    plan: Plan, stage: str, config: StageConfig, task_class: Callable[[StageConfig], Task], device: torch.device
) -> int:
    """The number of steps that fits into the stage's share of the budget, next to its preparation and its validations.

    Raises `DataError` if not even one step fits; its message names a budget that would be enough.
    """
    assert plan.budget is not None
    start, room = time.monotonic(), plan.share(stage)
    task = task_class(config)
    prepared = time.monotonic()
    first, later = _seconds_of_steps(task, config.loop.steps // 2, device)
    validation_start = time.monotonic()
    task.validate()
    _wait_for(device)
    end = time.monotonic()
    # the run repeats all of this, but finds compiled code in its cache
    overhead = (prepared - start) + first / 2 + NUM_VALIDATIONS * (end - validation_start)
    steps = int((room - (end - start) - overhead) / later)
    if steps < 1:
        needed = (end - start) + overhead + later
        enough = (plan.used + (end - start) + needed / plan.part(stage)) / 60
        raise DataError(
            f"minutes is {plan.budget / 60:g}, which leaves {room:.1f} s for stage {TITLES[stage]!r}; its preparation "
            f"and one step take {needed:.1f} s. Finished stages are kept: run the same command with --minutes "
            f"{enough + 0.1:.1f}"
        )
    return steps


def _seconds_of_steps(task: Task, step: int, device: torch.device) -> tuple[float, float]:
    """Seconds of a first training step, which may compile, and the median of some later ones. The steps are those of
    the middle of a run, where all losses are active."""
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


def fitted(config: StageConfig, steps: int, first_step: int, *, few_validations: bool) -> StageConfig:
    """The configuration with this number of steps, and warm-ups that fit it. few_validations: validate only half-way
    and at the end, as a run with a budget does."""
    loop = dataclasses.replace(
        config.loop,
        steps=steps,
        first_step=first_step,
        warmup_steps=min(config.loop.warmup_steps, steps // 10),
        look_steps=-(-steps // NUM_VALIDATIONS) if few_validations else config.loop.look_steps,
    )
    config = dataclasses.replace(config, loop=loop)
    if isinstance(config, VQTrainingConfig):
        return dataclasses.replace(
            config,
            unquantized_steps=min(config.unquantized_steps, steps // 10),
            adversarial_start=min(config.adversarial_start, steps // 5),
        )
    return config
