"""The precision of a forward pass in training and evaluation."""

import torch

__all__ = ["autocast"]


def autocast(device: torch.device, precision: str, *, keep_casts: bool = True) -> torch.autocast:
    """The autocast context of a forward pass. `auto` is bfloat16 on CUDA devices and CPUs that compute in it natively
    (AVX-512 BF16, AMX), else float32.

    keep_casts: whether weights in bfloat16 are kept until the context ends, for a network that is used several times.
    """
    if precision == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
        precision = "bfloat16" if native else "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=keep_casts)
