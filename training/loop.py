"""The loop that both stages run in: device, precision, schedule, saving, resuming, progress, logging.

A stage is a `Task`: it makes the batch of a step and takes the step. Every random number of a step is a function of
(seed, step), so a run may be killed at any moment and resumed from its last save (see `run_folder`); it then goes on,
on the same machine, as if nothing had happened, bit for bit.
"""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dalle.config import Config, require, require_at_least
from dalle.device import choose_device
from dalle.errors import DalleError
from training.hardware import keep_memory
from training.run_folder import Parts, claim_folder, locked, restore_state, save_state

__all__ = ["LoopConfig", "Task", "train"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig(Config):
    """How long, on what, and how often to look. Part of every stage's configuration."""

    steps: int
    batch_size: int
    seed: int = 0
    warmup_steps: int = 200
    """Steps in which the learning rate rises from 0; then it falls along a cosine."""
    final_rate: float = 0.05
    """Where the cosine ends, as a share of the peak learning rate."""
    max_grad_norm: float = 1.0
    average_decay: float = 0.999
    """Of the moving average of the weights, which is what is exported."""
    device: str = "auto"
    """`auto` takes CUDA if there is one, else the CPU; or any device name of torch."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward and backward pass; `auto` takes bfloat16 where the hardware computes in it natively."""
    workers: int = 1
    """Processes that prepare batches ahead; 0 prepares them in line, as is always done on CUDA, where pictures are kept
    on the device."""
    log_steps: int = 20
    look_steps: int = 1000
    """Validate and draw pictures every so many steps, and at the end."""
    save_minutes: float = 5.0
    export_minutes: float | None = None
    """Write the artefact every so many minutes, with the weights of that time; None: only at the end."""
    first_step: int = 0
    """Step at which a new run begins. Above 0 it goes on with the schedule of a run whose exported weights it starts
    from, and whose state is gone."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "steps", "batch_size")
        require(0 <= self.seed < 2**31, f"seed is {self.seed}; it must be in [0, 2^31)")
        for name in ("warmup_steps", "workers", "save_minutes"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must not be negative")
        require(0 <= self.final_rate <= 1, f"final_rate is {self.final_rate}; it must be in [0, 1]")
        require(self.max_grad_norm > 0, f"max_grad_norm is {self.max_grad_norm}; it must be above 0")
        require(0 <= self.average_decay < 1, f"average_decay is {self.average_decay}; it must be in [0, 1)")
        require_at_least(self, 1, "log_steps", "look_steps")
        require(
            self.export_minutes is None or self.export_minutes >= 0,
            f"export_minutes is {self.export_minutes}; it must not be negative",
        )
        require(
            0 <= self.first_step < self.steps, f"first_step is {self.first_step}; it must be in 0..{self.steps - 1}"
        )


class Task(Protocol):
    """What a stage gives to the loop."""

    def state(self) -> Parts:
        """Everything that changes from step to step, by name."""

    def inputs(self) -> Mapping[str, str | int]:
        """What the run stands on and its configuration does not say: digests and sizes. It resumes on nothing else."""

    def batch(self, step: int) -> Mapping[str, Tensor]:
        """The batch of a step, as a pure function of it. Runs in a worker process."""

    def train_step(self, step: int, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor | float]:
        """One optimisation step. Returns the scalars to log, `loss` among them."""

    def look(self) -> tuple[Mapping[str, float], Mapping[str, Tensor]]:
        """Validation scalars, and picture grids (3, H, W) in [-1, 1]."""

    def export(self, folder: Path, step: int) -> None:
        """Write the artefact of the stage, as it is after this many steps."""


class _Batches(Dataset[Mapping[str, Tensor] | DalleError]):
    """A task's batches by step, for the workers of a `DataLoader`. A caller's mistake is handed over, to be raised in
    the main process: raised in a worker, its message would be the worker's stack trace."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __getitem__(self, step: int) -> Mapping[str, Tensor] | DalleError:
        try:
            return self.task.batch(step)
        except DalleError as error:
            return error


def _start_worker(_: int) -> None:
    # the cores belong to the training step, and a wish to stop to the main process, which ends the workers itself
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """A list that receives the signal number when somebody asks the run to stop (Ctrl-C, or a polite kill)."""
    caught: list[int] = []
    handlers = {s: signal.signal(s, lambda number, _: caught.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def train(task: Task, config: LoopConfig, folder: Path, whole_config: dict[str, Any]) -> bool:
    """Run a task from where its folder left off to `config.steps`, then export it to `folder/model`.

    Returns False if it was asked to stop before the end: it has saved its state by then, and the same command goes on.
    Raises `DataError` for a folder of another run or one in use, or when the loss is no longer finite.
    """
    with locked(folder):
        claim_folder(folder, whole_config, task.inputs())
        return _train(task, config, folder)


def _train(task: Task, config: LoopConfig, folder: Path) -> bool:
    keep_memory()
    device = choose_device(config.device)
    start = restore_state(task.state(), folder) or config.first_step
    loader = DataLoader(
        _Batches(task),
        batch_size=None,
        sampler=range(start, config.steps),
        num_workers=0 if device.type == "cuda" else config.workers,
        worker_init_fn=_start_worker,
    )
    saved = exported = time.monotonic()
    with (
        # scalars logged after the last save are dropped: they will be logged again
        SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1) as writer,
        _stop_signal() as stop,
        tqdm(total=config.steps, initial=start, desc=folder.name, unit="step") as bar,
    ):
        for step, batch in zip(range(start, config.steps), loader, strict=True):
            if isinstance(batch, DalleError):
                raise batch
            torch.manual_seed((config.seed << 32) + step)
            on_device = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
            scalars = task.train_step(step, on_device)
            done = step + 1
            bar.update()
            if done % config.log_steps == 0 or done == config.steps:
                numbers = {key: float(torch.as_tensor(value).detach()) for key, value in scalars.items()}
                bar.set_postfix({"loss": f"{numbers['loss']:.4f}"})
                for key, number in numbers.items():
                    writer.add_scalar(f"train/{key}", number, done)
            if done % config.look_steps == 0 or done == config.steps:
                _look(task, writer, done)
            if stop or done == config.steps or time.monotonic() - saved > 60 * config.save_minutes:
                writer.flush()  # what was logged up to here will not be logged again
                save_state(task.state(), done, folder)
                saved = time.monotonic()
            if config.export_minutes is not None and time.monotonic() - exported > 60 * config.export_minutes:
                task.export(folder / "model", done)
                exported = time.monotonic()
            if stop and done < config.steps:
                tqdm.write(f"stopped after step {done}; the same command goes on from there")
                return False
    task.export(folder / "model", config.steps)
    return True


def _look(task: Task, writer: SummaryWriter, step: int) -> None:
    numbers, pictures = task.look()
    for key, number in numbers.items():
        writer.add_scalar(f"val/{key}", number, step)
    for key, picture in pictures.items():
        writer.add_image(key, ((picture.clamp(-1, 1) + 1) / 2).cpu(), step)
    tqdm.write(f"step {step}: " + ", ".join(f"{key} {number:.4g}" for key, number in numbers.items()))
