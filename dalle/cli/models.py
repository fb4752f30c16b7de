"""`dalle models`: the models on this machine, or one of them with what it knows."""

from typing import Annotated, Any

import typer

from dalle.cli.look import complete_model, print_json
from dalle.command_line import MISTAKE, exit_on_mistake, print_error
from dalle.errors import CheckpointError, DalleError
from dalle.interrupt import heavy_imports
from dalle.printable import printable

__all__ = ["models"]


@exit_on_mistake()
def models(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Name of a model, or its directory: print what it knows to draw.",
            show_default=False,
            autocompletion=complete_model,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print a JSON array with an object for each model; that of MODEL has what it knows."
        ),
    ] = False,
) -> None:
    """List the models on this machine, or what one knows.

    These are the models shipped with the package, those in the folder that the
    environment variable DALLE_MODELS names, and those that `dalle pull` fetched.
    With a MODEL, its examples, styles and concepts follow: words for prompts.

        dalle models
        dalle models emoji
    """
    with heavy_imports():
        from dalle.checkpoint.store import describe_model, describe_vocabulary, find_model, list_models, model_facts
        from dalle.checkpoint.vocabulary import read_vocabulary
    if model is not None:
        folder = find_model(model)
        vocabulary = read_vocabulary(folder)
        if as_json:
            print_json([model_facts(folder, model) | {"vocabulary": vocabulary and vocabulary.facts()}])
        else:
            print(printable(describe_model(folder, model)))
            print(printable(describe_vocabulary(vocabulary)))
        return
    folders = list_models()
    if not folders:
        raise DalleError("there are no models; set DALLE_MODELS to a folder of model directories")
    found: list[dict[str, Any]] = []
    broken = False
    for name, folder in folders.items():
        try:
            if as_json:
                found.append(model_facts(folder, name))
            else:
                print(printable(describe_model(folder, name)))
        except CheckpointError as error:
            print_error(str(error))
            broken = True
    if as_json:
        print_json(found)
    if broken:
        raise typer.Exit(MISTAKE)
