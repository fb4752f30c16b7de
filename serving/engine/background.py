"""Work beside the engine's thread, which must not slow its steps."""

import os
import threading
from contextlib import suppress

__all__ = ["step_back"]

NICENESS = 5
"""Steps by which such a thread's priority is lower than the process's: a third of its weight on Linux. Where it shares
a core with the engine's, steps get three quarters of it."""


def step_back() -> None:
    """Give this thread, and those that torch starts from it, a lower priority. Only Linux has it for threads."""
    with suppress(OSError, AttributeError):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)
