"""The probe of a dry run: a few real steps, with their time and the memory that they take.

Seconds and bytes of a step are a fixed part and one for each row, so two sizes of a batch give both. A decoder that is
too large to be tried as a whole is measured with one block and with two: the rest of its blocks cost as much each as
the second.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dalle.device import choose_device
from training.decoder_config import DecoderTrainingConfig
from training.loop import Task
from training.vq_config import VQTrainingConfig

__all__ = ["Needs", "StageConfig", "free_bytes", "measure"]

StageConfig = TypeVar("StageConfig", VQTrainingConfig, DecoderTrainingConfig)

LONG_SECONDS = 1.0
"""A step this long is measured well enough: no larger batch is tried."""
MAX_CPU_PARAMETERS = 40_000_000
"""Decoders with more parameters are measured by their blocks on a CPU, where a step would take minutes."""
BYTES_PER_PARAMETER = 20
"""Weight, gradient, average and two values of AdamW, in float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What a step takes. All are linear in the number of blocks of a decoder."""

    parameters: float
    """Parameters of all trained networks."""
    weights: float
    """Bytes of the trained networks."""
    gradients: float
    """Bytes of the gradients."""
    optimizer: float
    """Bytes of the state of the optimizers."""
    average: float
    """Bytes of the averaged weights."""
    fixed_activations: float
    """Bytes kept for the backward pass, whatever the number of rows, such as weights in bfloat16."""
    row_activations: float
    """Bytes kept for the backward pass of each row."""
    fixed_seconds: float
    """Seconds of a step, whatever the number of rows: most of them the optimizer's."""
    row_seconds: float
    """Seconds of each row."""
    tokens: float
    """Tokens of a row: text ids and codes in stage 2, codes in stage 1."""

    def and_more(self, other: "Needs", times: int) -> "Needs":
        """These needs, and `times` the difference to those of `other`, which has one block more."""
        mine, others = dataclasses.asdict(self), dataclasses.asdict(other)
        return Needs(**{key: value + times * max(0.0, others[key] - value) for key, value in mine.items()})


def free_bytes(device: torch.device) -> int:
    """Memory of a device that is free, or in the case of a CPU available without swapping, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def measure(make: Callable[[StageConfig], Task], config: StageConfig, num_parameters: int) -> tuple[Needs, int | None]:
    """What a step of this configuration needs on its device; and the number of blocks if only one and two of them were
    measured, None if all were.

    make: makes the task of a stage, as `VQTask` does. num_parameters: an estimate, which decides what is measured.
    """
    device = choose_device(config.loop.device)
    config = dataclasses.replace(config, compile=False)
    if isinstance(config, VQTrainingConfig):
        return _measured(make(config), config, device), None
    config = dataclasses.replace(config, shard=False, whole_gradients=False)
    recomputes, limit = config.recompute, config.micro_batch_size
    config = dataclasses.replace(config, recompute=False, micro_batch_size=None)
    is_large = num_parameters * BYTES_PER_PARAMETER > free_bytes(device) / 2
    is_slow = device.type == "cpu" and num_parameters > MAX_CPU_PARAMETERS
    if config.start_from is not None or not (recomputes or is_large or is_slow):
        return _measured(make(config), config, device, limit), None
    one, two = (
        _measured(make(dataclasses.replace(config, model=model)), config, device, limit)
        for model in (dataclasses.replace(config.model, depth=depth) for depth in (1, 2))
    )
    all_blocks = one.and_more(two, config.model.depth - 1)
    if recomputes:  # of the other blocks, only the inputs are kept
        inputs = (config.model.depth - 1) * one.tokens * config.model.width * 4
        all_blocks = dataclasses.replace(all_blocks, row_activations=one.row_activations + inputs)
        all_blocks = dataclasses.replace(all_blocks, row_seconds=all_blocks.row_seconds * 4 / 3)
    return all_blocks, config.model.depth


def _measured(
    task: Task, config: VQTrainingConfig | DecoderTrainingConfig, device: torch.device, limit: int | None = None
) -> Needs:
    step = config.loop.steps // 2  # where all losses are active
    most = min(config.loop.batch_size, limit or config.loop.batch_size)
    batch = {name: value.to(device) for name, value in task.batch(step).items()}
    tried: list[tuple[int, float, int]] = []
    rows = 1
    while True:
        tried.append((rows, *_one_size(task, step, batch, rows, device)))
        if len(tried) >= 2 and (tried[-1][1] > LONG_SECONDS or 2 * rows > most):
            break
        rows *= 2
    (few, few_seconds, few_bytes), (many, many_seconds, many_bytes) = tried[-2:]
    row_seconds = max(many_seconds - few_seconds, many_seconds / 10) / (many - few)
    row_bytes = max(0, many_bytes - few_bytes) / (many - few)
    modules: dict[str, nn.Module] = {name: p for name, p in task.state().items() if isinstance(p, nn.Module)}
    trained = [p for name, module in modules.items() if name != "average" for p in module.parameters()]
    trained = [p for p in trained if p.requires_grad]
    return Needs(
        parameters=sum(p.numel() for p in trained),
        weights=sum(_bytes_of(module) for name, module in modules.items() if name != "average"),
        gradients=sum(p.numel() * p.element_size() for p in trained),
        optimizer=sum(
            value.numel() * value.element_size()
            for part in task.state().values()
            if isinstance(part, torch.optim.Optimizer)
            for values in part.state_dict()["state"].values()
            for value in values.values()
        ),
        average=_bytes_of(modules["average"]),
        fixed_activations=max(0.0, many_bytes - many * row_bytes),
        row_activations=row_bytes,
        fixed_seconds=max(0.0, many_seconds - many * row_seconds),
        row_seconds=row_seconds,
        tokens=_tokens_of(config, batch),
    )


def _bytes_of(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())


def _tokens_of(config: VQTrainingConfig | DecoderTrainingConfig, batch: Mapping[str, Tensor]) -> float:
    if isinstance(config, VQTrainingConfig):
        return (batch["images"].shape[-1] // config.model.factor) ** 2
    return batch["text_ids"].shape[1] + batch["codes"][0].numel()


def _one_size(task: Task, step: int, batch: Mapping[str, Tensor], rows: int, device: torch.device) -> tuple[float, int]:
    """Seconds of a step with this many rows, and bytes of all that its forward passes keep."""
    part = {name: value[:rows] if value.ndim else value for name, value in batch.items()}
    weights = {
        value.untyped_storage().data_ptr()
        for module in task.state().values()
        if isinstance(module, nn.Module)
        for value in module.state_dict().values()
    }
    kept: dict[int, int] = {}

    def keep(value: Any) -> Any:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        task.train_step(step, part)
    _wait_for(device)
    start = time.monotonic()
    task.train_step(step, part)
    _wait_for(device)
    return time.monotonic() - start, sum(kept.values())


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
