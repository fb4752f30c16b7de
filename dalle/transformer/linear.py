"""Linear layers with their weights laid out for inference on a CPU.

torch multiplies float32 on CPUs with MKL, which reads a weight slowly when there are few rows. oneDNN, which torch
carries too, multiplies by a weight in blocks at the speed of memory; that is what the compiler of torch uses as well.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["PackedLinear", "packed"]

M = TypeVar("M", bound=nn.Module)


class PackedLinear(nn.Module):
    """x W^T + b, (..., I) -> (..., O), of a weight that is laid out in blocks for oneDNN. It has no gradients."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN of this build of torch multiplies by such a weight."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def packed(module: M) -> M:
    """A copy of a module for inference, whose linear layers are packed. It shares all other parameters with the module,
    and is a copy of its weights as they are now. On a device without packed layers it is the module itself."""
    if not any(can_pack(one.weight) for one in module.modules() if isinstance(one, nn.Linear)):
        return module
    shared = {id(one): one for one in [*module.parameters(), *module.buffers()]}
    twin = copy.deepcopy(module, shared)
    for parent in list(twin.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and can_pack(child.weight):
                setattr(parent, name, PackedLinear(child.weight, child.bias))
    return twin
