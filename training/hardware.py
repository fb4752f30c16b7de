"""The precision of a forward pass in training and evaluation."""

import torch

__all__ = ["autocast", "has_bfloat16"]


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 natively: CUDA devices that do, and CPUs with AVX-512 BF16 or AMX."""
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()


def autocast(device: torch.device, precision: str, *, keep_casts: bool = True) -> torch.autocast:
    """The autocast context of a forward pass. `auto` is bfloat16 where the device computes in it natively, else
    float32.

    keep_casts: whether weights in bfloat16 are kept until the context ends, for a network that is used several times.
    """
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16(device) else "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=keep_casts)
