"""The report of a dry run: the memory of each device, speed and hours as a table, and one sentence of conclusion."""

import dataclasses
import io
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from dalle.decoder.decoder import Decoder
from dalle.device import choose_device
from dalle.errors import CheckpointError, DataError
from training.dry_run.probe import Needs, StageConfig, free_bytes, measure
from training.dry_run.synthetic import CODEBOOK_SIZE, with_random_data
from training.loop import Task
from training.vq_config import VQTrainingConfig

__all__ = ["dry_run", "memory"]

DEVICES = (1, 2, 8)
GB = 1e9


def dry_run(make: Callable[[StageConfig], Task], config: StageConfig) -> str:
    """The report of what a run of this configuration would need, as a text. Takes a few training steps; writes nothing.

    make: makes the task of the stage. Raises `ConfigError` and `DataError` for mistakes other than data that are not
    there: then random data take their place, and the text says so.
    """
    device = choose_device(config.loop.device)
    notes: list[str] = []
    num_pairs: int | None = None
    with tempfile.TemporaryDirectory() as folder:
        try:
            probe = dataclasses.replace(config, compile=False)
            if not isinstance(config, VQTrainingConfig):
                small = dataclasses.replace(config.model, depth=1)
                probe = dataclasses.replace(probe, model=small, shard=False, whole_gradients=False)
            inputs = make(probe).inputs()
            num_pairs = int(inputs.get("train_pairs", inputs.get("train_rows", 0)))
        except (CheckpointError, DataError) as error:
            notes.append(f"The data are not there yet ({error}): measured on random ones.")
            probed = with_random_data(config, Path(folder))
            assert isinstance(probed, type(config))
            config = probed
        needs, depth = measure(make, config, _num_parameters(config))
    if depth is not None:
        notes.append(f"Measured with 1 and 2 of {depth} blocks, and computed for all of them.")
    if config.compile:
        notes.append("Measured without torch.compile, which the run uses: it will be faster.")
    notes.append(
        "Sharded: weights, gradients, optimizer and average divided over the devices (FSDP, `--shard` of stage 2), "
        "computed. Frozen networks and what the device needs for itself come on top: leave a tenth of its memory free."
    )
    return "\n".join([_table(config, needs, num_pairs), *notes, _conclusion(config, needs, num_pairs, device)])


def _num_parameters(config: VQTrainingConfig | StageConfig) -> int:
    if isinstance(config, VQTrainingConfig):
        return 0
    sizes: dict[str, Any] = {"text_vocab_size": 4096, "text_length": 32, "codebook_size": CODEBOOK_SIZE}
    with torch.device("meta"):
        model: nn.Module = Decoder(dataclasses.replace(config.model, grid_height=16, grid_width=16, **sizes))
    return sum(p.numel() for p in model.parameters())


def _rows_at_once(config: VQTrainingConfig | StageConfig, devices: int) -> int:
    rows = math.ceil(config.loop.batch_size / devices)
    limit = None if isinstance(config, VQTrainingConfig) else config.micro_batch_size
    return min(rows, limit or rows)


def memory(config: StageConfig, needs: Needs, devices: int, *, sharded: bool) -> dict[str, float]:
    """Bytes on each device by what they hold, and `together`."""
    parts = devices if sharded else 1
    has_whole_gradients = not isinstance(config, VQTrainingConfig) and config.whole_gradients
    held = {
        "weights": needs.weights / parts,
        "gradients": needs.gradients / (1 if has_whole_gradients else parts),
        "optimizer": needs.optimizer / parts,
        "average": needs.average / parts,
        "activations": needs.fixed_activations + needs.row_activations * _rows_at_once(config, devices),
    }
    return held | {"together": sum(held.values())}


def _hours(config: VQTrainingConfig | StageConfig, needs: Needs, devices: int) -> float:
    rows = config.loop.batch_size / devices
    return (config.loop.steps - config.loop.first_step) * (needs.fixed_seconds + needs.row_seconds * rows) / 3600


def _rows_per_second(config: VQTrainingConfig | StageConfig, needs: Needs, devices: int) -> float:
    rows = config.loop.batch_size
    return rows / (needs.fixed_seconds + needs.row_seconds * rows / devices)


def _table(config: StageConfig, needs: Needs, num_pairs: int | None) -> str:
    table = Table(box=box.SIMPLE_HEAD, title=f"{needs.parameters / 1e6:,.1f} million parameters; GB on each device")
    titles: tuple[str, ...] = "devices", "", "weights", "gradients", "optimizer", "average", "activations", "together"
    for title in (*titles, "rows/s", "tokens/s", "hours"):
        table.add_column(title, justify="left" if not title else "right")
    for devices in DEVICES:
        for sharded in (False, True) if devices > 1 else (False,):
            held = memory(config, needs, devices, sharded=sharded)
            rate = _rows_per_second(config, needs, devices)
            table.add_row(
                f"{devices}",
                "" if devices == 1 else "sharded" if sharded else "DDP",
                *(f"{value / GB:.2f}" for value in held.values()),
                f"{rate:,.1f}",
                f"{rate * needs.tokens:,.0f}",
                f"{_hours(config, needs, devices):,.1f}",
            )
    text = io.StringIO()
    Console(file=text, width=120, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().strip("\n").splitlines())


def _conclusion(config: StageConfig, needs: Needs, num_pairs: int | None, device: torch.device) -> str:
    loop = config.loop
    wanted, free = memory(config, needs, 1, sharded=False)["together"], free_bytes(device)
    epochs = "" if num_pairs is None else f", {loop.steps * loop.batch_size / max(1, num_pairs):,.1f} times the data,"
    sentence = (
        f"{loop.steps:,} steps of {loop.batch_size} rows{epochs} take {_hours(config, needs, 1):,.1f} hours on one "
    )
    sentence += f"device like this ({device.type}), at equal speed {_hours(config, needs, 8):,.1f} on eight"
    if wanted <= free:
        return f"{sentence}; {wanted / GB:.1f} GB are needed of {free / GB:.1f} GB that are free."
    hint = "a smaller --loop.batch-size"
    if not isinstance(config, VQTrainingConfig):
        hint = "a smaller --micro-batch-size, --recompute, or a smaller model"
    return f"{sentence}; it does not fit: {wanted / GB:.1f} GB are needed, and {free / GB:.1f} GB are free: try {hint}."
