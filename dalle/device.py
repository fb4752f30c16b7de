"""The device to run on, by name."""

import torch

from dalle.errors import ParameterError

__all__ = ["choose_device"]


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
