"""The `dalle` command: its subcommands, of which `show` is defined here. docs/command-line.md has the
exit codes of all programs."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from dalle.cli.compile import compile_step_of_model
from dalle.cli.convert import export_model, import_model
from dalle.cli.explain import explain
from dalle.cli.generate import generate
from dalle.cli.hub import pull_model, push_model
from dalle.cli.look import SETTINGS, Command, Group, VersionOption, print_json, run_app
from dalle.cli.models import models
from dalle.cli.score import score
from dalle.cli.verify import decode, verify
from dalle.command_line import MISTAKE, exit_on_mistake
from dalle.interrupt import heavy_imports

__all__ = ["app", "run"]

app = typer.Typer(
    cls=Group,
    help="Draw pictures from text prompts on this machine, with a decoder-only Transformer.",
    context_settings=SETTINGS,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command(cls=Command)(generate)


@app.command(cls=Command)
@exit_on_mistake()
def show(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="PNG files drawn by `dalle` or the service.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON array with an object for each file, with its codes.")
    ] = False,
) -> None:
    """Print how a picture was drawn: prompt, seed, model."""
    with heavy_imports():
        from dalle.receipt import describe, read_receipt
    found: list[dict[str, Any]] = []
    for file in files:
        receipt = read_receipt(file)
        if as_json:
            found.append({"file": str(file), **dataclasses.asdict(receipt)})
        else:
            print(describe(receipt))
    if as_json:
        print_json(found)


app.command(cls=Command)(explain)
app.command(cls=Command)(score)
app.command(cls=Command)(models)
app.command("compile", cls=Command)(compile_step_of_model)
app.command("import", cls=Command)(import_model)
app.command("export", cls=Command)(export_model)
app.command("pull", cls=Command)(pull_model)
app.command("push", cls=Command)(push_model)
app.command(cls=Command)(verify)
app.command(cls=Command)(decode)


@app.callback(invoke_without_command=True)
def _options(context: typer.Context, version: Annotated[bool, VersionOption] = False) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(MISTAKE)


def run() -> None:
    """Run the command with the arguments of the process, and end it."""
    run_app(app, "dalle")
