"""Hardware settings of training and evaluation: the precision of a forward pass, and how freed memory is kept."""

import contextlib
import ctypes

import torch

__all__ = ["autocast", "keep_memory"]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a forward pass. `auto` is bfloat16 on CUDA devices and CPUs that compute in it natively
    (AVX-512 BF16, AMX), else float32."""
    if precision == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
        precision = "bfloat16" if native else "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def keep_memory() -> None:
    """Make the C library keep freed memory instead of returning every large tensor to the kernel.

    Otherwise a step on the CPU spends most of its time on page faults: 7 instead of 40 rows a second were measured for
    the default decoder. Without glibc, this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        trim_threshold, mmap_max = -1, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
