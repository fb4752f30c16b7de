"""`NetworkTask`: what the tasks of CLIP model, classifier and translator have in common.

One network is trained, the matrices of its encoders by Muon and all its other weights by AdamW; the average of its
weights is validated and exported. Each task adds its data, its loss and its measures.
"""

import contextlib
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dalle.device import choose_device
from training.distributed import current_share
from training.gates import Gate
from training.loop import LoopConfig
from training.optimization import WeightAverage, clip_and_step, muon_and_adamw
from training.run_folder import Parts

__all__ = ["NetworkTask"]

M = TypeVar("M", bound=nn.Module)


class _Rates(Protocol):
    @property
    def loop(self) -> LoopConfig: ...
    @property
    def matrix_rate(self) -> float: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


class NetworkTask(Generic[M]):
    """The common part of a `training.loop.Task` that trains one network to the end, whatever its validations say."""

    model: M
    average: WeightAverage[M]
    matrix_optimizer: torch.optim.Optimizer
    optimizer: torch.optim.Optimizer

    def __init__(self, config: _Rates) -> None:
        self._rates = config
        self.device = choose_device(config.loop.device)
        self.share = current_share()
        self.gate = Gate()

    def train_network(self, model: M, *encoders: nn.Module) -> None:
        """Set the network that is trained, on the device of the run; encoders: its parts whose matrices Muon trains."""
        rates = self._rates
        self.model = model.to(self.device)
        self.average = WeightAverage(self.model, decay=rates.loop.average_decay)
        self.matrix_optimizer, self.optimizer = muon_and_adamw(
            self.model,
            *encoders,
            matrix_rate=rates.matrix_rate,
            learning_rate=rates.learning_rate,
            weight_decay=rates.weight_decay,
        )

    def state(self) -> Parts:
        return {
            "model": self.model,
            "average": self.average,
            "matrix_optimizer": self.matrix_optimizer,
            "optimizer": self.optimizer,
            "gate": self.gate,
        }

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def optimize(self, step: int, loss: Tensor) -> dict[str, float]:
        """Step both optimizers with the gradients of this loss; the weights are averaged by the task, which may change
        them first. Returns the scalars of `clip_and_step`, and raises as it does."""
        return clip_and_step([self.matrix_optimizer, self.optimizer], self._rates.loop, step, loss)
