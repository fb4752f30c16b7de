"""The commands that exchange models with a hub: `dalle pull` and `dalle push`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dalle.cli.look import ModelArgument
from dalle.command_line import exit_on_mistake
from dalle.errors import CheckpointError
from dalle.interrupt import heavy_imports
from dalle.printable import printable

__all__ = ["pull_model", "push_model"]


@exit_on_mistake()
def pull_model(
    repository: Annotated[
        str,
        typer.Argument(
            metavar="hf:OWNER/NAME[@REVISION]",
            help="Repository of the hub; a revision is a branch, a tag or a commit (default: main).",
        ),
    ],
    include: Annotated[
        list[str] | None,
        typer.Option(help="Fetch only matching files of another project's repository, such as 'vq_*'; repeatable."),
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Read another project's files as this family, as in `dalle import`.")
    ] = None,
    pickles: Annotated[
        bool,
        typer.Option(
            "--pickles", help="Also fetch pickled weights; they are read without running any code that is in them."
        ),
    ] = False,
) -> None:
    """Fetch a model from Hugging Face's hub, to be used by that name.

    A model of this library is fetched as it is. Another project's checkpoint is
    converted as by `dalle import`, if its family is known. Only the files that
    a model needs are fetched, and each is compared with its digest. A download
    that breaks off is continued by the next pull.

    The model is kept in the folder that DALLE_MODELS names, or else in
    ~/.cache/dalle/models, and is used without a network from then on. Pull
    again to get a newer commit. Private and gated repositories need a token:
    `hf auth login`, or HF_TOKEN. HF_ENDPOINT names another hub.

        dalle pull hf:OWNER/NAME
        dalle generate a sunflower --model hf:OWNER/NAME
    """
    with heavy_imports():
        from dalle.checkpoint.pulled import Reference
        from dalle.checkpoint.store import describe_model
        from dalle.hub.pull import pull
        from dalle.interop.convert import import_checkpoint  # readers of foreign formats are loaded by commands alone

    reference = Reference.parse(repository)

    def convert(files: Path, out: Path, source: str) -> None:
        try:
            done = import_checkpoint(files, out, family=family, name=reference.name, source_name=source)
        except CheckpointError as error:
            raise CheckpointError(f"{error} (--include, --family and --pickles choose what is read)") from error
        print(printable(f"converted from {done.family}"))

    done = pull(
        reference,
        convert=convert,
        include=include or (),
        pickles=pickles,
        again=bool(include) or family is not None or pickles,
        report=_report,
    )
    if not done.is_new:
        print(f"{reference} is on this machine already, at {done.commit[:12]}")
    print(printable(describe_model(done.folder, str(reference))))


@exit_on_mistake()
def push_model(
    model: ModelArgument,
    repository: Annotated[
        str, typer.Argument(metavar="hf:OWNER/NAME", help="Repository of the hub; created if it does not exist.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as a private one.")] = False,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Markdown file with measurements for the card, such as the table.md of training.evaluate.",
        ),
    ] = None,
) -> None:
    """Publish a model directory on Hugging Face's hub.

    A model card comes with it: the model's facts, licence and digests. What you
    write outside the part between its two marks is kept by later pushes, and so
    are other files of the repository. A repository with another model is left
    alone. A token that may write is needed: `hf auth login`, or HF_TOKEN.

        dalle push runs/recipe/model hf:OWNER/NAME
    """
    with heavy_imports():
        from dalle.checkpoint.pulled import Reference
        from dalle.hub.push import push
    done = push(model, Reference.parse(repository), private=private, message=message, figures=figures, report=_report)
    print(printable(f"pushed {done.commit[:12]}: {done.url}"))


def _report(text: str) -> None:
    print(printable(text), file=sys.stderr)
