"""Shared by the command lines of all training programs: their arguments, a caller's mistake, and presets."""

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import tyro

from dalle import command_line
from dalle.command_line import DONE, STOPPED
from dalle.config import Config
from dalle.help_pages import parsing
from training.distributed import current_share, joined, quiet_followers

__all__ = ["exit_on_mistake", "parse", "parse_preset", "run_function", "run_preset"]

DRY_RUN = "--dry-run"

T = TypeVar("T")
C = TypeVar("C", bound=Config)


@contextmanager
def exit_on_mistake() -> Iterator[None]:
    """Around a whole program: what `dalle.command_line.program` does, and one line on stderr and exit code 2, instead
    of a stack trace, for a caller's mistake, a full disk, or a folder that cannot be written to. Warnings are one line
    each, too."""
    with command_line.program(), command_line.exit_on_mistake(system_errors=True), command_line.short_warnings():
        yield


def parse(options: type[T], name: str, arguments: Sequence[str] | None = None) -> T:
    """The options of a program, an object of their class, from the command line.

    name: the program, as in `training.vq`. arguments: those of the process if None.
    """
    given = sys.argv[1:] if arguments is None else [*arguments]
    with parsing(f"python -m {name}", given):
        return tyro.cli(options, args=given, prog=f"python -m {name}")


def run_function(function: Callable[..., Any], name: str, after: Callable[..., str] | None = None) -> None:
    """The command line of a program that is one function: its parameters are the options.

    after: what to run after the program, as a text; its parameters are some of those of the function.
    """

    @functools.wraps(function)
    def later(*values: Any, **named: Any) -> functools.partial[Any]:  # what it prints is not the parser's
        return functools.partial(function, *values, **named)

    with exit_on_mistake():
        with parsing(f"python -m {name}", sys.argv[1:]):
            call = tyro.cli(later, args=sys.argv[1:], prog=f"python -m {name}")
        call()
        if after is not None:
            given = inspect.signature(function).bind(*call.args, **call.keywords)
            given.apply_defaults()
            print(after(**{key: given.arguments[key] for key in inspect.signature(after).parameters}))


def parse_preset(
    name: str, description: str | None, presets: Mapping[str, Callable[[], C]], arguments: Sequence[str]
) -> C:
    """The configuration that arguments describe: the name of a preset, then options that change its fields.

    name: the program, as in `training.vq`. presets: functions that return a configuration; the docstring of each is its
    help.
    """
    choices = {preset: (inspect.getdoc(make) or "", make()) for preset, make in presets.items()}
    program = f"python -m {name}"
    arguments = [re.sub(r"^--log(?==|$)", "--loop.log", argument) for argument in arguments]
    with quiet_followers(), parsing(program, [*arguments]):
        return tyro.extras.overridable_config_cli(choices, args=arguments, prog=program, description=description)


def run_preset(
    name: str,
    description: str | None,
    presets: Mapping[str, Callable[[], C]],
    run: Callable[[C], bool],
    *,
    dry_run: Callable[[C], str] | None = None,
    after: Callable[[C], str],
) -> None:
    """The command line of a stage, whose arguments `parse_preset` reads. Ends the process with
    exit code 0 for a finished run, 2 for a caller's mistake, 4 for a run that SIGTERM stopped before its end, and 130
    for one that Ctrl-C stopped.

    run: runs a configuration and returns whether it finished; in processes that `torchrun` has started, it runs in each
    of them. dry_run: the report of what a configuration would need, which the option `--dry-run` prints instead;
    None: there is no such option.
    after: what to run after a finished run, as a text.
    """
    arguments = [argument for argument in sys.argv[1:] if dry_run is None or argument != DRY_RUN]
    with exit_on_mistake(), joined():
        config = parse_preset(name, description, presets, arguments)
        if dry_run is not None and len(arguments) < len(sys.argv[1:]):
            print(dry_run(config))
            finished = True
        else:
            finished = run(config)
            if finished and current_share().leads:
                print(after(config))
    sys.exit(DONE if finished else STOPPED)
