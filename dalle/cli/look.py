"""typer's pages and errors in the look of all programs: plain text, and one line for a mistake."""

import difflib
import json
import sys
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from dalle.command_line import CLOSED_PIPE, exit_on_mistake, program, short_warnings
from dalle.defaults import Translate
from dalle.help_pages import UsageError, plain_help, print_version
from dalle.installed import list_installed
from dalle.printable import printable

__all__ = [
    "SETTINGS",
    "Command",
    "Group",
    "ModelArgument",
    "VersionOption",
    "complete_model",
    "complete_translate",
    "print_json",
    "run_app",
]

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
CLICK_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""click's base class for arguments that cannot be used. typer hands on only this child of it."""
MEANT = 0.75
"""Likeness, as difflib has it, of an option that is probably meant to the one that was typed."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print_version()
        raise typer.Exit


VersionOption = typer.Option(
    "--version", "-V", help="Print the version and exit.", callback=_print_version, is_eager=True
)


def complete_model(incomplete: str) -> list[str]:
    """Names of models, for shell completion. Pulled models are left out: shells split words at their colon."""
    return [name for name in list_installed() if name.startswith(incomplete)]


def complete_translate(incomplete: str) -> list[str]:
    """Values of `--translate`, for shell completion. Tags such as fr-CA are values too, so they are no enumeration."""
    return [value for value in get_args(Translate) if value.startswith(incomplete)]


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Name of a model (see `dalle models`), or its directory.",
        autocompletion=complete_model,
    ),
]
"""The type of the argument of commands that take a model."""


class Command(TyperCommand):
    """A command whose help is plain, with the lines of its description as they are written."""

    def get_help(self, ctx: Any) -> str:
        return plain_help(super().get_help(ctx)).rstrip()  # click ends it

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        if self.help:
            formatter.write(f"\n{self.help}\n")


class Group(TyperGroup):
    """A command of subcommands, whose help is plain."""

    def get_help(self, ctx: Any) -> str:
        return plain_help(super().get_help(ctx)).rstrip()  # click ends it

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        if self.help:
            formatter.write(f"\n{self.help}\n")


def print_json(values: list[dict[str, Any]]) -> None:
    """Print an array of objects, each in a line of its own. Control characters and reordering marks are escaped."""
    print("[\n" + ",\n".join(printable(json.dumps(value, ensure_ascii=False)) for value in values) + "\n]")


def run_app(app: typer.Typer, name: str) -> None:
    """Run a program that typer parses, and end the process with its exit code.

    name: the program, as a person types it.
    """
    stdout = sys.stdout
    with program(), short_warnings(), exit_on_mistake():
        try:
            code = app(prog_name=name, standalone_mode=False)
        except CLICK_USAGE_ERROR as error:
            raise UsageError(_message(error, name)) from error
        except SystemExit:
            if sys.stdout is stdout:
                raise
            sys.stdout = stdout  # click puts another stream in its place if the pipe is closed, and ends with 1
            raise SystemExit(CLOSED_PIPE) from None
        raise SystemExit(code or 0)


def _message(error: Any, name: str) -> str:
    """click's reason in one line, with the command that has the help for it."""
    path = error.ctx.command_path if error.ctx is not None else name
    reason = " ".join(error.format_message().split()).removesuffix(".")
    option = getattr(error, "option_name", None)
    if possibilities := getattr(error, "possibilities", None):  # sorted by name: those that are meant may come last
        nearest = difflib.get_close_matches(option, possibilities, cutoff=MEANT) or possibilities
        reason = f"{error.message.removesuffix('.')} (Possible options: {', '.join(nearest)})"
    hint = (
        f"; a prompt that begins with a dash comes last, after --: {path} [OPTIONS] -- {option} ..."
        if _draws(error, option)
        else ""
    )
    return f"{reason[:1].lower()}{reason[1:]}{hint}; see {path} --help"


def _draws(error: Any, option: str | None) -> bool:
    """Whether an unknown option was given to a command that takes a prompt."""
    parameters = error.ctx.command.params if error.ctx is not None else []
    return option is not None and any(parameter.name == "words" for parameter in parameters)
