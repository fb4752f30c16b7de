"""The training loop of both stages: steps, validation, saving, resuming, progress and logging.

A stage is a `Task`, which prepares the batch of a step and takes the step. Every random number of a step is a function
of (seed, step), so a run may be killed at any moment and resumed from its last save (see `run_folder`): on the same
machine, the result is bit for bit that of a run that was never stopped. Several processes may take the steps together
(see `distributed`); the first of them alone validates, logs, saves and exports.
"""

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dalle.config import Config, require, require_at_least
from dalle.device import choose_device, keep_memory
from dalle.errors import DalleError, DataError
from training.distributed import any_rank, current_share, require_equal_shares, wait_for_all
from training.gates import Gate, Verdict
from training.logs import Logs, TrackerName
from training.provenance import stamp_of
from training.run_folder import Parts, claim_folder, locked, restore_state, save_state

__all__ = ["LoopConfig", "Task", "train"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig(Config):
    """Length, schedule, hardware and intervals of a training run; part of the configuration of both stages."""

    steps: int
    """Number of optimisation steps after which the run ends."""
    batch_size: int
    """Pairs of picture and caption in a step, over all processes."""
    seed: int = 0
    """Random seed of the weights and of every step, in [0, 2^31)."""
    warmup_steps: int = 200
    """Steps in which the learning rate rises linearly from 0; after them it falls along a cosine."""
    final_rate: float = 0.05
    """Learning rate of the last step, as a share of the peak learning rate."""
    max_grad_norm: float = 1.0
    """Global norm to which gradients are clipped."""
    average_decay: float = 0.999
    """Decay of the exponential moving average of the weights; the averaged weights are validated and exported."""
    device: str = "auto"
    """Device to train on: `auto` takes CUDA if it is available, else the CPU; or any device name of torch."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward and backward pass; `auto` takes bfloat16 where the hardware computes in it natively."""
    workers: int = 1
    """Processes that prepare batches ahead. 0 prepares them in the training process, which CUDA runs always do, because
    they keep the pictures on the device."""
    log: TrackerName = "tensorboard"
    """Where scalars and pictures are logged beside TensorBoard, which always has them: Trackio, Weights & Biases or
    MLflow, each in its own package. `--log` is short for it."""
    log_steps: int = 20
    """Steps between two entries of training scalars in the logs."""
    look_steps: int = 1000
    """Steps between two validations, which log scalars and pictures; the last step is always validated."""
    save_minutes: float = 5.0
    """Minutes between two saves of the state that a stopped run resumes from."""
    export_minutes: float | None = None
    """Minutes between two exports of the model while it is trained; None: export it only at the end."""
    first_step: int = 0
    """Step at which a new run begins. Above 0, it continues the schedule of an earlier run of which only the exported
    model is left; `start_from` names that model."""

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
    """The interface between a stage and the loop."""

    @property
    def gate(self) -> Gate:
        """The judge of validations; among the modules of `state`, if it remembers anything."""

    def state(self) -> Parts:
        """Modules and optimizers that change from step to step, by name: what is saved and restored."""

    def inputs(self) -> Mapping[str, str | int]:
        """Digests and sizes of the run's inputs, which its configuration does not hold; a run resumes only with the
        same."""

    def batch(self, step: int) -> Mapping[str, Tensor]:
        """This process's share of the batch of a step, as a pure function of the step and the share. Runs in a worker
        process."""

    def train_step(self, step: int, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor | float]:
        """Takes one optimisation step. Returns the scalars of the whole batch to log, including `loss`."""

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the leader has the whole model, which may be divided over the processes. Entered by all of
        them."""

    def validate(self) -> tuple[Mapping[str, float], Mapping[str, Tensor]]:
        """Validation scalars, and grids of pictures (3, H, W) in [-1, 1], by name. Called within `gathered` in the
        leader alone."""

    def export(self, folder: Path, step: int) -> None:
        """Writes the model directory of the stage, as it is after this many steps. Called within `gathered` in the
        leader alone."""


class _Batches(Dataset[Mapping[str, Tensor] | DalleError]):
    """A task's batches by step, for the workers of a `DataLoader`. A caller's mistake is returned and raised in the
    main process: raised in a worker, its message would be the worker's stack trace."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __getitem__(self, step: int) -> Mapping[str, Tensor] | DalleError:
        try:
            return self.task.batch(step)
        except DalleError as error:
            return error


def _start_worker(_: int) -> None:
    # the training step needs the cores, and the main process handles the stop signals and ends the workers itself
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """A list that receives the number of each SIGINT (Ctrl-C) or SIGTERM, both of which ask the run to stop. Outside
    the main thread, which alone gets signals, it stays empty."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    handlers = {s: signal.signal(s, lambda number, _: caught.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def train(task: Task, config: LoopConfig, folder: Path, whole_config: Config) -> bool:
    """Run a task from the step that was last saved in its folder to `config.steps`, then export it to `folder/model`.

    Returns False if SIGTERM stopped the run before the end, and raises KeyboardInterrupt if Ctrl-C (SIGINT) did; its
    state is saved then, and the same call resumes it. A signal to any process stops all of them after the same step.
    The task's gate may keep models in other folders beside `model`, and end the run before `config.steps`.
    Raises `ConfigError` for a batch that the processes cannot share evenly; `DataError` for a folder that holds another
    run or is in use, when the loss is no longer finite, and when the gate finds a collapse.
    """
    share = current_share()
    require_equal_shares(config.batch_size, share)
    with locked(folder) if share.leads else contextlib.nullcontext():
        if share.leads:
            claim_folder(folder, whole_config.to_dict(), task.inputs(), defaults=whole_config.defaults())
        wait_for_all()
        return _train(task, config, folder, whole_config)


def _train(task: Task, config: LoopConfig, folder: Path, whole_config: Config) -> bool:
    keep_memory()
    device = choose_device(config.device)
    leads = current_share().leads
    stamp = stamp_of(config.seed, task.inputs())
    done = start = restore_state(task.state(), folder, stamp) or config.first_step
    last = start if task.gate.ended else config.steps
    loader = DataLoader(
        _Batches(task),
        batch_size=None,
        sampler=range(start, last),
        num_workers=0 if device.type == "cuda" else config.workers,
        worker_init_fn=_start_worker,
    )
    saved = exported = time.monotonic()
    with (
        # scalars logged after the last save are dropped, as these steps are taken and logged again
        Logs(folder, config.log, whole_config.to_dict(), purge_step=start + 1)
        if leads
        else contextlib.nullcontext() as logs,
        _stop_signal() as caught,
        tqdm(total=config.steps, initial=start, desc=folder.name, unit="step", disable=not leads) as bar,
    ):
        for step, batch in zip(range(start, last), loader, strict=True):
            if isinstance(batch, DalleError):
                raise batch
            torch.manual_seed((config.seed << 32) + step)
            on_device = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
            scalars = task.train_step(step, on_device)
            done = step + 1
            is_last = done == config.steps
            bar.update()
            if logs is not None and (done % config.log_steps == 0 or is_last):
                numbers = {key: float(torch.as_tensor(value).detach()) for key, value in scalars.items()}
                bar.set_postfix({"loss": f"{numbers['loss']:.4f}"})
                logs.numbers({f"train/{key}": number for key, number in numbers.items()}, done)
            verdict = Verdict()
            if done % config.look_steps == 0 or is_last:
                with task.gathered():
                    if logs is not None:
                        verdict = _validate(task, logs, done, folder)
            interrupted, terminated, collapsed, is_ended, saves, exports = any_rank(
                signal.SIGINT in caught,
                signal.SIGTERM in caught,
                verdict.collapse is not None,
                bool(task.gate.ended),
                leads and _is_due(saved, config.save_minutes),
                leads and _is_due(exported, config.export_minutes),
            )
            if collapsed:
                if verdict.collapse is None:
                    wait_for_all()  # in vain: the leader ends with the reason
                raise DataError(verdict.collapse or "the leader has ended the run")
            is_last = is_last or is_ended
            stops = interrupted or terminated
            if saves or stops or is_last:
                if logs is not None:
                    logs.flush()  # the steps up to here will not be logged again
                save_state(task.state(), done, folder, stamp)
                saved = time.monotonic()
            if exports:
                _export(task, folder, done)
                exported = time.monotonic()
            if stops and not is_last:
                if leads:
                    tqdm.write(f"stopped after step {done}; the same command resumes the run")
                if interrupted:
                    raise KeyboardInterrupt
                return False
            if is_last:
                break
    _export(task, folder, done)
    return True


def _is_due(last: float, minutes: float | None) -> bool:
    return minutes is not None and time.monotonic() - last > 60 * minutes


def _export(task: Task, folder: Path, step: int) -> None:
    with task.gathered():
        if current_share().leads:
            task.export(folder / "model", step)


def _validate(task: Task, logs: Logs, step: int, folder: Path) -> Verdict:
    numbers, pictures = task.validate()
    logs.numbers({f"val/{key}": number for key, number in numbers.items()}, step)
    for key, picture in pictures.items():
        logs.picture(key, picture, step)
    tqdm.write(f"step {step}: " + ", ".join(f"{key} {number:.4g}" for key, number in numbers.items()))
    verdict = task.gate.judge(step, numbers)
    if verdict.keep is not None:
        task.export(folder / verdict.keep, step)
    if verdict.ends is not None:
        tqdm.write(verdict.ends)
    return verdict
