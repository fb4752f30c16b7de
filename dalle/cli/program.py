"""The `dalle` command: its subcommands, of which `show` and `models` are defined here.

Exit codes: 0 done, 1 a picture that differs from its receipt (`verify`), 2 a caller's mistake (one line on stderr), 130
interrupted.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from dalle.checkpoint.store import describe_model, list_models
from dalle.cli.compile import compile_step_of_model
from dalle.cli.convert import export_model, import_model
from dalle.cli.generate import generate
from dalle.cli.hub import pull_model, push_model
from dalle.cli.verify import decode, verify
from dalle.command_line import exit_on_mistake, print_error, short_warnings
from dalle.errors import CheckpointError, DalleError
from dalle.receipt import describe, printable, read_receipt
from dalle.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    help="Draw pictures from text prompts on this machine, with a decoder-only Transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.command(no_args_is_help=True)(generate)


@app.command()
@exit_on_mistake()
def show(files: Annotated[list[Path], typer.Argument(help="PNG files drawn by `dalle` or the service.")]) -> None:
    """Print how a picture was drawn: prompt, seed, index, parameters and model."""
    for file in files:
        print(describe(read_receipt(file)))


@app.command()
@exit_on_mistake()
def models() -> None:
    """List the models on this machine.

    These are the models shipped with the package, those in the folder that the
    environment variable DALLE_MODELS names, and those that `dalle pull` fetched.
    """
    found = list_models()
    if not found:
        raise DalleError("there are no models; set DALLE_MODELS to a folder of model directories")
    broken = False
    for name, folder in found.items():
        try:
            print(printable(describe_model(folder, name)))
        except CheckpointError as error:
            print_error(str(error))
            broken = True
    if broken:
        raise typer.Exit(2)


app.command("compile")(compile_step_of_model)
app.command("import", no_args_is_help=True)(import_model)
app.command("export", no_args_is_help=True)(export_model)
app.command("pull", no_args_is_help=True)(pull_model)
app.command("push", no_args_is_help=True)(push_model)
app.command()(verify)
app.command()(decode)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the console script. A reader that closes the pipe early (`dalle show ... | head`) is not an error."""
    try:
        with short_warnings():
            app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
