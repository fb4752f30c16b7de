"""The optimization of both stages: learning rate schedule, AdamW, gradient clipping, averaged weights, and activations
that are computed again."""

import copy
import math
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from dalle.errors import DataError
from training.loop import LoopConfig
from training.sharded import whole

__all__ = ["WeightAverage", "adamw", "clip_and_step", "learning_rate_scale", "recompute_activations"]

M = TypeVar("M", bound=nn.Module)


def learning_rate_scale(config: LoopConfig, step: int) -> float:
    """Factor of the peak learning rate at a step, in [0, 1]: a linear warm-up, then a cosine down to `final_rate`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def adamw(
    parameters: Sequence[nn.Parameter], *, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW with weight decay for matrices and convolutions, and none for norms and biases; fused on CUDA."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    for group in groups:
        group["peak_rate"] = learning_rate
    fused = True if all(p.device.type == "cuda" for p in parameters) else None
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)


class WeightAverage(nn.Module, Generic[M]):
    """Exponential moving average of a module's parameters; its buffers are copied. The decay after n updates is
    min(decay, (1 + n) / (10 + n)), as in TensorFlow's ExponentialMovingAverage, so that the first weights are soon
    forgotten."""

    module: M
    """The averaged copy, without gradients, in evaluation mode."""
    updates: Tensor

    def __init__(self, module: M, *, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, module: M) -> None:
        count = int(self.updates)
        decay = min(self.decay, (1 + count) / (10 + count))
        averages: list[Tensor] = list(self.module.parameters())
        currents = [p.detach() for p in module.parameters()]
        torch._foreach_lerp_(averages, currents, 1 - decay)
        for average, current in zip(self.module.buffers(), module.buffers(), strict=True):
            average.copy_(current)
        self.updates += 1


def recompute_activations(blocks: nn.ModuleList) -> None:
    """Make these blocks keep only their inputs for the backward pass, which computes the rest again (activation
    checkpointing, Chen et al. 2016, arXiv 1604.06174). Names of parameters and results stay the same."""
    for number, block in enumerate(blocks):
        blocks[number] = checkpoint_wrapper(block)


def clip_and_step(
    optimizers: list[torch.optim.Optimizer], config: LoopConfig, step: int, loss: Tensor
) -> dict[str, float]:
    """Clip the gradients of these optimizers' parameters to the global norm, set the learning rates, step, and zero the
    gradients. Returns `gradient_norm` (before clipping) and `rate_scale`.

    A parameter group's `peak_rate` is its learning rate at the top of the schedule. Raises `DataError` if the loss or
    the gradient is not finite: nothing is updated then, and the last saved state stays as it is.
    """
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    norm = whole(nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None))
    nn.utils.clip_grads_with_norm_(parameters, config.max_grad_norm, norm)
    if not (torch.isfinite(norm) and torch.isfinite(loss)):
        raise DataError(
            f"step {step}: loss {float(loss):.4g}, gradient norm {float(norm):.4g}: not finite. "
            "The last saved state is kept; a lower learning_rate or max_grad_norm may help"
        )
    scale = learning_rate_scale(config, step)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_rate"] * scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"gradient_norm": float(norm), "rate_scale": scale}
