"""`python -m serving.batch`: draws the pictures of a file of prompts, and resumes where it was stopped.

python -m serving.batch prompts.jsonl --out pictures
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from dalle.checkpoint.store import DEFAULT_MODEL
from dalle.cli.look import SETTINGS, Command, VersionOption, run_app
from dalle.command_line import INTERRUPTED, exit_on_mistake
from dalle.defaults import DEFAULT_CLIP, DEFAULT_RERANK, DEFAULT_TRANSLATOR, Rerank, Translate
from dalle.errors import DalleError
from dalle.images import Background
from dalle.pipeline import MAX_PICTURES
from dalle.steps import StepKind
from dalle.transformer.linear import Weights
from dalle.translate.languages import as_translate
from serving.batch.driver import Batch, run_batch
from serving.batch.plan import PlanSettings
from serving.safety.settings import SafetySettings
from serving.settings import mistakes_as_config_error

__all__ = ["main"]


@exit_on_mistake()
def batch(
    prompts: Annotated[
        str, typer.Argument(metavar="PROMPTS", help="File of prompts, a path or a URL: .jsonl, .csv, .parquet or .txt.")
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", help="Folder for the pictures, a path or a URL such as s3://bucket/folder.")
    ],
    model: Annotated[
        str, typer.Option(help="Model that draws: a name (see `dalle models`) or a directory.")
    ] = DEFAULT_MODEL,
    n: Annotated[
        int,
        typer.Option(
            "--n", "-n", min=1, max=MAX_PICTURES, help="Number of pictures per item; an item may override it."
        ),
    ] = 1,
    best_of: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_PICTURES,
            help="Draw this many candidates per item and keep the best n, best first; an item may override it.",
            show_default="no candidates",
        ),
    ] = None,
    rerank: Annotated[
        Rerank | None,
        typer.Option(
            help="Judge of the candidates: clip, a CLIP model that compares pictures with the prompt, or likelihood, "
            "the model itself. An item may override it.",
            show_default=DEFAULT_RERANK,
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(metavar="NAME|DIR", help="CLIP model that judges candidates.", show_default=DEFAULT_CLIP),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(min=0, help="Seed of the batch: an item without its own gets one computed from this and its id."),
    ] = 0,
    output_format: Annotated[
        Literal["png", "jpeg", "webp"],
        typer.Option("--format", help="Format of the pictures; an item may override it."),
    ] = "png",
    quality: Annotated[int | None, typer.Option(min=1, max=100, show_default="90", help="JPEG/WebP quality.")] = None,
    background: Annotated[
        Background,
        typer.Option(
            help="Background of the pictures: transparent, opaque (white), or auto: transparent in PNG and WebP if the "
            "model draws transparency, else opaque. An item may override it."
        ),
    ] = "auto",
    translate: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(get_args(Translate)),
            help="Translate prompts into English before they are drawn: from the language that they are in (auto), or "
            "from French, Korean, German, Spanish or Japanese; en only puts English into the wording of the model's "
            "captions. An item may override it.",
            show_default="en if the model has a vocabulary with styles, else off",
        ),
    ] = None,
    translator: Annotated[
        str | None,
        typer.Option(metavar="NAME|DIR", help="Translator of the prompts.", show_default=DEFAULT_TRANSLATOR),
    ] = None,
    webdataset: Annotated[
        bool, typer.Option("--webdataset", help="Write a tar archive per shard instead of a file per picture.")
    ] = False,
    codes: Annotated[
        bool,
        typer.Option("--codes", help="Write codes only, into the manifest; `dalle decode` makes pictures from it."),
    ] = False,
    shard_size: Annotated[
        int,
        typer.Option(
            min=1, max=100_000, help="Number of pictures, or candidates, that are drawn and committed together."
        ),
    ] = 64,
    strict: Annotated[bool, typer.Option("--strict", help="Draw nothing if any line is invalid.")] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Draw failed pictures again. Invalid lines are read again in any case.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Write nothing: count, and estimate time and size by drawing a few pictures."),
    ] = False,
    contact_sheet: Annotated[
        bool, typer.Option("--contact-sheet", help="Write contact-sheet.png with the first 144 pictures.")
    ] = False,
    gallery: Annotated[
        bool, typer.Option("--gallery", help="Write index.html, a page to browse and filter all pictures.")
    ] = False,
    backend: Annotated[
        Literal["local", "ray"] | None,
        typer.Option(
            help="Draw in this process (local) or on a Ray cluster.",
            show_default="ray if RAY_ADDRESS is set, else local",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of workers on Ray.", show_default="as many as fit")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="CPU threads per worker; on Ray also the CPUs reserved per worker. A resumed batch keeps the number "
            "it was started with.",
            show_default="all of this machine, 1 on Ray",
        ),
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs reserved per worker on Ray; may be a fraction.")] = 0,
    slots: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=1024,
            help="Slots of the engine: a guided picture takes two, any other one. A resumed batch keeps the number it "
            "was started with.",
            show_default="8",
        ),
    ] = None,
    step: Annotated[
        StepKind,
        typer.Option(
            help="Kind of step: eager, compiled (see `dalle compile`), cuda_graph, or auto: cuda_graph on CUDA, else "
            "compiled if it is there, and eager on Ray. A resumed batch keeps the kind it was started with."
        ),
    ] = "auto",
    weights: Annotated[
        Weights | None,
        typer.Option(
            help="Type of the decoder's weights: float32 leaves them as they are; bfloat16 and int8 round them, which "
            "is faster on a CPU and changes some codes. A resumed batch keeps the type it was started with.",
            show_default="float32",
        ),
    ] = None,
    c2pa_certificate: Annotated[
        str | None,
        typer.Option(
            help="Sign each PNG as made by a model, with this PEM chain of certificates (needs the extra c2pa)."
        ),
    ] = None,
    c2pa_key: Annotated[str | None, typer.Option(help="PEM file with the private key of the certificate.")] = None,
    safety_words: Annotated[
        Path | None,
        typer.Option(help="File of words and phrases, one a line, that a prompt must not have (see docs/safety.md)."),
    ] = None,
    safety_prompt_hook: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Function that gets a prompt and returns whether it is blocked."),
    ] = None,
    safety_nsfw_threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Score of Yahoo's Open-NSFW network from which a picture is blocked (needs the extra safety).",
            show_default="the network is not used",
        ),
    ] = None,
    safety_picture_hook: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Function that gets a picture and returns whether it is blocked."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Device that draws: auto, cpu, cuda, or any name that torch accepts.")
    ] = "auto",
    version: Annotated[bool, VersionOption] = False,
) -> None:
    """Draw the pictures of a file of prompts into a folder.

    An item is a line with a prompt, and optionally an id and any field of a
    request to the service. OpenAI's Batch JSONL is read too, and its results
    are written in OpenAI's format. Invalid lines are reported and skipped.

    A run that was stopped for any reason is resumed by the same command: only
    pictures that are missing or damaged are drawn.

    Exit codes: 0 all pictures are drawn; 2 a mistake in the command or in its
    files, and nothing was drawn; 3 some lines are invalid, or some pictures
    failed or are blocked, see refused.jsonl; 4 stopped, for example by a full disk; 130
    interrupted. After 4 and 130 the same command resumes the batch.
    """
    try:
        layout = _layout(webdataset, codes)
        if layout != "files" and (contact_sheet or gallery):
            raise DalleError(
                "--contact-sheet and --gallery need a file per picture: leave out --webdataset and --codes"
            )
        if quality is not None and output_format == "png":
            raise DalleError("--quality applies to jpeg and webp; png is lossless")
        if (c2pa_certificate is None) != (c2pa_key is None):
            raise DalleError("--c2pa-certificate and --c2pa-key must be given together")
        if c2pa_certificate is not None and (output_format != "png" or codes):
            raise DalleError("only PNG files can be signed: leave out --format and --codes")
        backend = backend or ("ray" if os.environ.get("RAY_ADDRESS") else "local")
        if backend == "local" and (workers is not None or gpus):
            raise DalleError("--workers and --gpus need Ray: add --backend ray")
        with mistakes_as_config_error():
            safety = SafetySettings(
                words=safety_words,
                prompt_hook=safety_prompt_hook,
                nsfw_threshold=safety_nsfw_threshold,
                picture_hook=safety_picture_hook,
            )
        code = run_batch(
            Batch(
                prompts=prompts,
                out=out,
                model=model,
                plan=PlanSettings(
                    seed=seed,
                    n=n,
                    image_format=output_format,
                    quality=quality,
                    background=background,
                    translate=None if translate is None else as_translate(translate),
                    translator=translator,
                    layout=layout,
                    shard_size=shard_size,
                    best_of=best_of,
                    rerank=rerank,
                    clip=clip,
                    signed=c2pa_certificate is not None,
                ),
                device=device,
                backend=backend,
                workers=workers,
                threads=threads,
                gpus=gpus,
                num_slots=slots,
                step=step,
                weights=weights,
                certificate=c2pa_certificate,
                certificate_key=c2pa_key,
                strict=strict,
                retry_failed=retry_failed,
                dry_run=dry_run,
                contact_sheet=contact_sheet,
                gallery=gallery,
                safety=safety,
            )
        )
    except KeyboardInterrupt:  # before anything was drawn
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    raise typer.Exit(code)


def _layout(webdataset: bool, codes: bool) -> Literal["files", "tar", "codes"]:
    if webdataset and codes:
        raise DalleError("--webdataset and --codes exclude each other: choose one")
    return "tar" if webdataset else "codes" if codes else "files"


def main() -> None:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(cls=Command, context_settings=SETTINGS)(batch)
    run_app(app, "python -m serving.batch")


if __name__ == "__main__":
    main()
