"""`python -m serving.batch`: pictures of all prompts in a file, whatever happens on the way.

python -m serving.batch prompts.jsonl --out pictures
"""

import os
import sys
from typing import Annotated, Literal

import typer

from dalle.checkpoint.store import DEFAULT_MODEL
from dalle.command_line import exit_on_mistake
from dalle.errors import DalleError
from dalle.images import Background
from dalle.pipeline import MAX_PICTURES
from serving.batch.driver import INTERRUPTED, Batch, run_batch
from serving.batch.plan import PlanSettings

__all__ = ["main"]


@exit_on_mistake()
def batch(
    prompts: Annotated[str, typer.Argument(help="A file, or a URL of fsspec: .jsonl, .csv, .parquet or .txt.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder, or URL such as s3://bucket/folder.")],
    model: Annotated[str, typer.Option(help="Name (see `dalle models`) or directory.")] = DEFAULT_MODEL,
    n: Annotated[
        int, typer.Option("--n", "-n", min=1, max=MAX_PICTURES, help="Pictures of each prompt that does not say.")
    ] = 1,
    seed: Annotated[
        int, typer.Option(min=0, help="A row without a seed gets one computed from this and its id, or line number.")
    ] = 0,
    output_format: Annotated[
        Literal["png", "jpeg", "webp"], typer.Option("--format", help="Of pictures; a row may say otherwise.")
    ] = "png",
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="Of JPEG and WebP; 90 if not given.")] = None,
    background: Annotated[
        Background,
        typer.Option(
            help="transparent, opaque (over white), or auto: transparent for PNG and WebP of a model that draws "
            "transparency, else opaque. A row may say otherwise."
        ),
    ] = "auto",
    webdataset: Annotated[
        bool, typer.Option("--webdataset", help="A tar archive for each shard, no loose files.")
    ] = False,
    codes: Annotated[
        bool, typer.Option("--codes", help="No pictures; `dalle decode` makes them of the manifest.")
    ] = False,
    shard_size: Annotated[int, typer.Option(min=1, max=100_000, help="Pictures that are committed together.")] = 64,
    strict: Annotated[bool, typer.Option("--strict", help="Draw nothing if any line is refused.")] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Try pictures again that could not be drawn. Lines that were refused are read again in any case.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count, and measure with a few pictures.")] = False,
    contact_sheet: Annotated[bool, typer.Option("--contact-sheet", help="The first 144 pictures on one.")] = False,
    gallery: Annotated[bool, typer.Option("--gallery", help="index.html: all pictures, to look through.")] = False,
    backend: Annotated[
        Literal["local", "ray"] | None,
        typer.Option(help="In this process, or Ray Data. Default: ray if RAY_ADDRESS is set."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Of Ray. Default: as many as there is room for.")] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of each worker on the CPU; on Ray also the CPUs it reserves. Default: all of this "
            "machine's, or one on Ray; a folder that was begun keeps its number.",
        ),
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="That each worker reserves on Ray.")] = 0,
    slots: Annotated[
        int | None, typer.Option(min=2, max=1024, help="Rows in a step: two for each guided picture. Default: 8.")
    ] = None,
    c2pa_certificate: Annotated[
        str | None, typer.Option(help="PEM chain: sign each PNG as drawn by a model (needs the extra c2pa).")
    ] = None,
    c2pa_key: Annotated[str | None, typer.Option(help="PEM file with the certificate's private key.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or another name of torch.")] = "auto",
) -> None:
    """Draw pictures of all prompts in a file into a folder.

    A run that was stopped in any way goes on when the same command is given
    again: only what is missing or damaged is drawn. Rows have the fields of
    the service's requests, and an id if you like; OpenAI's Batch JSONL is read
    too, and answered in kind.

    Exit codes: 0 every prompt is drawn; 2 a mistake, and nothing was drawn; 3
    some lines were refused or pictures failed, and refused.jsonl lists them; 4
    stopped on the way (a full disk, say), and the same command goes on; 130
    interrupted.
    """
    try:
        layout = _layout(webdataset, codes)
        if layout != "files" and (contact_sheet or gallery):
            raise DalleError("--contact-sheet and --gallery show loose files: leave out --webdataset and --codes")
        if quality is not None and output_format == "png":
            raise DalleError("--quality is of jpeg and webp; png is lossless")
        if (c2pa_certificate is None) != (c2pa_key is None):
            raise DalleError("--c2pa-certificate and --c2pa-key belong together")
        if c2pa_certificate is not None and (output_format != "png" or codes):
            raise DalleError("only PNGs are signed: leave out --format and --codes")
        backend = backend or ("ray" if os.environ.get("RAY_ADDRESS") else "local")
        if backend == "local" and (workers is not None or gpus):
            raise DalleError("--workers and --gpus are of Ray: add --backend ray")
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
                    layout=layout,
                    shard_size=shard_size,
                    signed=c2pa_certificate is not None,
                ),
                device=device,
                backend=backend,
                workers=workers,
                threads=threads,
                gpus=gpus,
                num_slots=slots,
                certificate=c2pa_certificate,
                certificate_key=c2pa_key,
                strict=strict,
                retry_failed=retry_failed,
                dry_run=dry_run,
                contact_sheet=contact_sheet,
                gallery=gallery,
            )
        )
    except KeyboardInterrupt:  # before anything was drawn
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    raise typer.Exit(code)


def _layout(webdataset: bool, codes: bool) -> Literal["files", "tar", "codes"]:
    if webdataset and codes:
        raise DalleError("--webdataset and --codes are two ways to keep pictures: choose one")
    return "tar" if webdataset else "codes" if codes else "files"


def main() -> None:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    app.command()(batch)
    app()


if __name__ == "__main__":
    main()
