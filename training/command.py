"""Shared by the command lines of all training programs: the report of a caller's mistake, presets, and exit codes."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import tyro
from safetensors import SafetensorError

from dalle.config import Config
from dalle.errors import DalleError
from dalle.receipt import printable

__all__ = ["mistakes_in_words", "run_preset"]

C = TypeVar("C", bound=Config)


@contextmanager
def mistakes_in_words() -> Iterator[None]:
    """A caller's mistake, a full disk or a folder that cannot be written to ends the program with one line on stderr
    and exit code 2, instead of a stack trace."""
    try:
        yield
    except DalleError as error:
        _stop(str(error), error)
    except OSError as error:
        if error.strerror is None:  # not the system's word, so somebody's mistake in code
            raise
        _stop(f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror, error)
    except SafetensorError as error:  # its way to say OSError; what cannot be read is a DalleError by now
        _stop(str(error), error)


def _stop(words: str, cause: BaseException) -> NoReturn:
    print(f"error: {printable(words)}", file=sys.stderr)
    raise SystemExit(2) from cause


def run_preset(
    program: str, description: str | None, presets: Mapping[str, Callable[[], C]], run: Callable[[C], bool]
) -> None:
    """The command line of a stage: the name of a preset, then options that change its fields. Ends the process with
    exit code 0 for a finished run, 2 for a caller's mistake, and 3 for a run that a signal stopped before its end.

    presets: functions that return a configuration; the docstring of each is its help. run: runs a configuration and
    returns whether it finished.
    """
    choices = {name: ((preset.__doc__ or "").strip(), preset()) for name, preset in presets.items()}
    with mistakes_in_words():
        config = tyro.extras.overridable_config_cli(choices, prog=f"python -m {program}", description=description)
        finished = run(config)
    sys.exit(0 if finished else 3)
