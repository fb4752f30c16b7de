"""What a run logs, and where: TensorBoard always, and beside it Trackio, Weights & Biases or MLflow (`--log NAME`)."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from dalle.errors import DataError

__all__ = ["Logs", "TrackerName"]

TrackerName = Literal["tensorboard", "trackio", "wandb", "mlflow"]
"""Where a run logs; all but `tensorboard` are beside it."""
INSTALLED_BY = {"trackio": "trackio", "wandb": "wandb", "mlflow": "mlflow-skinny"}
PROJECT = "dalle"


class Tracker(Protocol):
    """The hook: what a service beside TensorBoard has to do."""

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Logs scalars by name."""

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Logs a picture (H, W, 3) uint8."""

    def close(self) -> None:
        """Sends what is left, and ends the run."""


class _Dictionaries:
    """Trackio and Weights & Biases, which have the same functions."""

    def __init__(self, module: Any, folder: Path, config: Mapping[str, Any]) -> None:
        self.module = module
        module.init(project=PROJECT, name=folder.name, config=dict(config), resume="allow")

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self.module.log(dict(values), step=step)

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.module.log({name: self.module.Image(pixels)}, step=step)

    def close(self) -> None:
        self.module.finish()


class _MLflow:
    def __init__(self, module: Any, folder: Path, config: Mapping[str, Any]) -> None:
        self.module = module
        module.set_experiment(PROJECT)
        module.start_run(run_name=folder.name)
        module.log_dict(dict(config), "config.json")

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self.module.log_metrics(dict(values), step=step)

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.module.log_image(pixels, key=name.replace(" ", "_"), step=step)

    def close(self) -> None:
        self.module.end_run()


def _tracker(name: TrackerName, folder: Path, config: Mapping[str, Any]) -> Tracker | None:
    if name == "tensorboard":
        return None
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            f"log is {name!r}, whose package is not installed: pip install {INSTALLED_BY[name]} ({error})"
        ) from error
    try:
        return _MLflow(module, folder, config) if name == "mlflow" else _Dictionaries(module, folder, config)
    except Exception as error:  # each of them has errors of its own
        raise DataError(f"log is {name!r}, which cannot be started: {error}") from error


class Logs:
    """The logs of a run. A context manager, which closes them."""

    def __init__(self, folder: Path, name: TrackerName, config: Mapping[str, Any], *, purge_step: int) -> None:
        """purge_step: the first step that will be logged; what TensorBoard has of it and of later ones is dropped.

        Raises `DataError`, with the command to install it, if the package of `name` is missing;
        and if the service cannot be started.
        """
        self.tracker = _tracker(name, folder, config)
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Logs scalars by name, as of after this many steps."""
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)
        if self.tracker is not None:
            self.tracker.numbers(values, step)

    def picture(self, name: str, picture: Tensor, step: int) -> None:
        """Logs a picture (3, H, W) in [-1, 1]."""
        unit = ((picture.clamp(-1, 1) + 1) / 2).cpu()
        self.writer.add_image(name, unit, step)
        if self.tracker is not None:
            self.tracker.picture(name, (unit * 255).round().byte().permute(1, 2, 0).numpy(), step)

    def flush(self) -> None:
        """Writes what is left to disk."""
        self.writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()
        if self.tracker is not None:
            self.tracker.close()
