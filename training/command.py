"""Shared by the command lines of all training programs: how a caller's mistake ends them."""

from contextlib import AbstractContextManager

from dalle import command_line

__all__ = ["exit_on_mistake"]


def exit_on_mistake() -> AbstractContextManager[None]:
    """End the program with one line on stderr and exit code 2, instead of a stack trace, for a caller's mistake, a full
    disk, or a folder that cannot be written to."""
    return command_line.exit_on_mistake(system_errors=True)
