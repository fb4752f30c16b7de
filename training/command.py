"""Shared by the command lines of all training programs: the report of a caller's mistake, presets, and exit codes."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import tyro

from dalle import command_line
from dalle.config import Config

__all__ = ["exit_on_mistake", "run_preset"]

C = TypeVar("C", bound=Config)


@contextmanager
def exit_on_mistake() -> Iterator[None]:
    """End the program with one line on stderr and exit code 2, instead of a stack trace, for a caller's mistake, a full
    disk, or a folder that cannot be written to. Warnings are one line each, too."""
    with command_line.exit_on_mistake(system_errors=True), command_line.short_warnings():
        yield


def run_preset(
    program: str, description: str | None, presets: Mapping[str, Callable[[], C]], run: Callable[[C], bool]
) -> None:
    """The command line of a stage: the name of a preset, then options that change its fields. Ends the process with
    exit code 0 for a finished run, 2 for a caller's mistake, and 3 for a run that a signal stopped before its end.

    presets: functions that return a configuration; the docstring of each is its help. run: runs a configuration and
    returns whether it finished.
    """
    choices = {name: ((preset.__doc__ or "").strip(), preset()) for name, preset in presets.items()}
    with exit_on_mistake():
        config = tyro.extras.overridable_config_cli(choices, prog=f"python -m {program}", description=description)
        finished = run(config)
    sys.exit(0 if finished else 3)
