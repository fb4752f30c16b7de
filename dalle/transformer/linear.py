"""Linear layers for inference on a CPU.

torch multiplies float32 on CPUs with MKL, which reads a weight slowly when there are few rows. oneDNN, which torch
carries too, multiplies by a weight in blocks at the speed of memory; that is what the compiler of torch uses as well.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["InferenceLinear", "for_inference"]

M = TypeVar("M", bound=nn.Module)


class InferenceLinear(nn.Module):
    """x W^T + b, (..., I) -> (..., O), by oneDNN, without gradients. With `pack` it multiplies by a copy of the weight
    in oneDNN's blocks, which is faster by a third; without, by the weight itself."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, pack: bool) -> None:
        super().__init__()
        weight = weight.detach()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if pack else weight
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def _has_onednn(weight: Tensor) -> bool:
    """Whether oneDNN of this build of torch multiplies by such a weight."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def for_inference(module: M, *, pack: bool) -> M:
    """A twin of a module whose linear layers multiply by oneDNN; it shares all parameters that are not packed. Where
    oneDNN has nothing to offer, it is the module itself."""
    if not any(_has_onednn(one.weight) for one in module.modules() if isinstance(one, nn.Linear)):
        return module
    shared = {id(one): one for one in [*module.parameters(), *module.buffers()]}
    twin = copy.deepcopy(module, shared)
    for parent in list(twin.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and _has_onednn(child.weight):
                setattr(parent, name, InferenceLinear(child.weight, child.bias, pack=pack))
    return twin
