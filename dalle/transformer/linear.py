"""Linear layers on a CPU, for inference and for training.

torch multiplies float32 on CPUs with MKL, which reads a weight slowly when there are few rows, and has no AVX-512 on
processors of AMD. oneDNN, which torch carries too, multiplies by a weight in blocks at the speed of memory; that is
what the compiler of torch uses as well. A weight that is rounded to bfloat16 or int8 has a half or a quarter of the
bytes.
"""

import copy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.defaults import Weights

__all__ = [
    "InferenceLinear",
    "Linear",
    "RoundedLinear",
    "Weights",
    "for_inference",
    "inference_linear",
    "linear",
    "why_not_rounded",
]

M = TypeVar("M", bound=nn.Module)


class _TrainedProduct(torch.autograd.Function):
    """x W^T, (..., I) -> (..., O), in float32 on a CPU. oneDNN multiplies by the weight, in both directions; MKL is
    faster for the weight's gradient, which sums over all rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor]:
        (x, weight), (gradient,) = ctx.saved_tensors, gradients
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = torch.ops.mkldnn._linear_pointwise(gradient, weight.t(), None, "none", [], "")
        return of_x, gradient.flatten(0, -2).t() @ x.flatten(0, -2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b, (..., I) -> (..., O), with gradients. In float32 on a CPU, oneDNN makes training faster by a tenth."""
    is_trained = torch.is_grad_enabled() and weight.requires_grad and not torch.compiler.is_compiling()
    is_float32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if is_trained and is_float32 and _has_onednn(weight):
        product: Tensor = _TrainedProduct.apply(x, weight)  # type: ignore[no-untyped-call]
        return product if bias is None else product + bias
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """A linear layer that is multiplied as `linear` does."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class InferenceLinear(nn.Module):
    """x W^T + b, (..., I) -> (..., O), by oneDNN, without gradients. With `pack` it multiplies by a copy of the weight
    in oneDNN's blocks, which is faster by a third; without, by the weight itself."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, pack: bool) -> None:
        super().__init__()
        weight = weight.detach()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if pack else weight
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # the compiler packs weights itself
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class _Int8Product(nn.Module):
    """x W^T, (..., I) -> (..., O) bfloat16, of bfloat16 inputs and a weight (O, I) that is rounded to -127..127 times a
    scale for each output channel. I is a multiple of 32, O of 4: torch's kernel reads beyond others."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        weight = weight.detach().float()
        self.scales = (weight.abs().amax(dim=1) / 127).clamp_min(1e-30).bfloat16()
        self.weight = (weight / self.scales[:, None]).round().clamp(-127, 127).to(torch.int8)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        return torch._weight_int8pack_mm(flat, self.weight, self.scales).view(*x.shape[:-1], -1)


class RoundedLinear(nn.Module):
    """x W^T + b, (..., I) -> (..., O) float32, with a weight rounded to bfloat16 or int8: a step reads half or a
    quarter of the memory. The product has bfloat16 inputs and results, and float32 sums; the bias is float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, pack: bool, weights: Weights) -> None:
        super().__init__()
        is_int8 = weights == "int8" and weight.shape[1] % 32 == 0 and weight.shape[0] % 4 == 0
        self.product = _Int8Product(weight) if is_int8 else InferenceLinear(weight.bfloat16(), None, pack=pack)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.product(x.bfloat16()).float()
        return product if self.bias is None else product + self.bias


def why_not_rounded(weight: Tensor) -> str | None:
    """Why weights such as this one are not rounded; None if they can be."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        dtype = str(weight.dtype).removeprefix("torch.")
        return f"the model is on {weight.device.type} in {dtype}; weights are rounded on CPUs, from float32"
    if not _has_onednn(weight.bfloat16()):
        return "this processor does not multiply in bfloat16 (AVX-512)"
    return None


def _has_onednn(weight: Tensor) -> bool:
    """Whether oneDNN of this build of torch multiplies by such a weight."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def inference_linear(weight: Tensor, bias: Tensor | None, *, pack: bool, weights: Weights) -> nn.Module:
    """A linear layer with these parameters for inference on a CPU."""
    if weights == "float32":
        return InferenceLinear(weight, bias, pack=pack)
    return RoundedLinear(weight, bias, pack=pack, weights=weights)


def for_inference(module: M, *, pack: bool, weights: Weights = "float32") -> M:
    """A twin of a module whose linear layers are those of `inference_linear`; it shares all parameters that these do
    not copy. Where oneDNN has nothing to offer, it is the module itself."""
    if not any(_has_onednn(one.weight) for one in module.modules() if isinstance(one, nn.Linear)):
        return module
    shared = {id(one): one for one in [*module.parameters(), *module.buffers()]}
    twin = copy.deepcopy(module, shared)
    for parent in list(twin.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and _has_onednn(child.weight):
                setattr(parent, name, inference_linear(child.weight, child.bias, pack=pack, weights=weights))
    return twin
