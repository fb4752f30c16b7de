"""The device to run on, by name, and how a program keeps the memory that it has freed."""

import contextlib
import ctypes

import torch

from dalle.errors import ParameterError

__all__ = ["choose_device", "keep_memory"]


def choose_device(name: str) -> torch.device:
    """The torch device with this name. `auto` is CUDA if it is available, else the CPU.

    Raises `ParameterError` for a name that torch does not know, and for a device that is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises each of these
        reason = str(error).splitlines()[0]
        raise ParameterError(f"device is {name!r}, which cannot be used here: {reason}") from error
    return device


def keep_memory() -> None:
    """Make the C library keep freed memory for this process instead of returning every large tensor to the kernel.

    Otherwise large tensors are paid for in page faults each time they are made: a VQGAN's 256 x 256 pixels take 1.5
    times as long, and a training step of the default decoder five times. Without glibc, this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        trim_threshold, mmap_max = -1, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
