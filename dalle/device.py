"""Which device to run on."""

import torch

from dalle.errors import ParameterError

__all__ = ["choose_device"]


def choose_device(name: str) -> torch.device:
    """The device of a name. `auto` is CUDA if there is one, else the CPU; other names are torch's.

    Raises `ParameterError` for a name that torch does not know, and for a device that is not there.
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
