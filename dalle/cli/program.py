"""The `dalle` command: `generate`, `show`, `models`; `import` and `export` are in `dalle.cli.convert`, `verify` and
`decode` in `dalle.cli.verify`.

Exit codes: 0 done, 1 a picture that is not what it says (`verify`), 2 a caller's mistake (one line on stderr), 130
interrupted. Pictures are written one by one as they are finished, whole or not at all, so whatever stops the command,
those already drawn are kept.
"""

import hashlib
import os
import re
import sys
from itertools import chain, compress
from pathlib import Path
from typing import Annotated, Literal

import typer
from PIL import Image
from tqdm import tqdm

from dalle.checkpoint.store import DEFAULT_MODEL, describe_model, list_models
from dalle.cli.console import CannotWriteError, mistakes_in_words, prepare_folder, print_error, write_file
from dalle.cli.convert import export_model, import_model
from dalle.cli.verify import decode, verify
from dalle.decoder.engine import StepResult
from dalle.decoder.sampling import SamplingParams
from dalle.errors import CheckpointError, DalleError
from dalle.images import Background, contact_sheet, encode_image, load_image
from dalle.pipeline import DALLE, MAX_PICTURES, Picture, Prefix
from dalle.receipt import describe, printable, read_kept_mask, read_receipt
from dalle.version import __version__

__all__ = ["app", "main"]

MAX_SHEET_PICTURES = 144

app = typer.Typer(
    help="Pictures from prompts, drawn by a decoder-only Transformer on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Schedule = Literal["constant", "linear", "cosine"]


@app.command(no_args_is_help=True)
def generate(
    prompts: Annotated[
        list[str], typer.Argument(help="What to draw, or the number of a class; several make several sets.")
    ],
    n: Annotated[int, typer.Option("--n", "-n", help=f"Pictures of each prompt, 1 to {MAX_PICTURES}.")] = 1,
    seed: Annotated[
        int | None, typer.Option(help="The same prompt, seed and options give the same pictures. Default: a new one.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures; made if it is not there.")] = Path(
        "out"
    ),
    model: Annotated[str, typer.Option(help="Name (see `dalle models`) or directory.")] = DEFAULT_MODEL,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to draw; needs guidance above 1.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How hard to follow the prompt, 1 to 100; 1 is off, and twice as fast.")
    ] = None,
    guidance_schedule: Annotated[
        Schedule | None, typer.Option(help="Guidance from the first code on, or rising towards the last.")
    ] = None,
    guided_codes: Annotated[int | None, typer.Option(help="Guide only so many of the first codes; 0 for all.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 draws the likeliest codes; above 1 is wilder.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest codes only; 0 for all.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest codes that make up p, in (0, 1].")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Drop codes below this share of the likeliest, in [0, 1].")
    ] = None,
    continue_from: Annotated[
        Path | None, typer.Option(help="A picture whose upper part is kept; the model finishes it.", metavar="FILE")
    ] = None,
    keep_rows: Annotated[
        int | None,
        typer.Option(
            help="Rows of codes kept of --continue-from, 0 up to all but one; a row is 16 pixels high in the default "
            "model. Default: half of them."
        ),
    ] = None,
    background: Annotated[
        Background,
        typer.Option(
            help="transparent, opaque (over white), or auto: transparent if the model draws transparency, else opaque."
        ),
    ] = "auto",
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut a prompt that is too long, with a warning.")
    ] = False,
    device: Annotated[
        str, typer.Option(help="auto (CUDA if there is one), cpu, cuda, or another name of torch.")
    ] = "auto",
    text_encoder: Annotated[
        Path | None, typer.Option(help="Folder of a T5, for a model that follows its features (LlamaGen's t2i).")
    ] = None,
) -> None:
    """Draw pictures of one or more prompts into a folder, with a contact sheet if there are several.

    Options left out take the model's own values. Each PNG carries its prompt,
    seed, index, parameters and the model's digest; `dalle show FILE` prints
    them, so that any picture can be drawn again.

        dalle generate "a red panda, fluent 3d style emoji" --n 4 --seed 7 --out pandas
    """
    with mistakes_in_words():
        if keep_rows is not None and continue_from is None:
            raise DalleError("--keep-rows needs a picture: --continue-from FILE")
        for i, prompt in enumerate(prompts):
            if prompt in prompts[:i]:
                raise DalleError(f"the prompt {prompt!r} is given twice; use --n")
        dalle = DALLE.load(model, device=device, text_encoder=text_encoder)
        given = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "guidance_scale": guidance_scale,
            "guidance_schedule": guidance_schedule,
            "guided_codes": guided_codes,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        params = SamplingParams.from_dict(dalle.sampling.to_dict() | chosen)
        prefix = None
        if continue_from is not None:
            rows = dalle.decoder.layout.grid_height // 2 if keep_rows is None else keep_rows
            given_picture = load_image(continue_from, size=dalle.image_size, mode=dalle.image_mode)
            prefix = Prefix(image=given_picture, num_rows=rows)
        prepare_folder(out)
        _draw(dalle, prompts, params, n, seed, negative_prompt, prefix, background, truncate, out)


def _draw(
    dalle: DALLE,
    prompts: list[str],
    params: SamplingParams,
    n: int,
    seed: int | None,
    negative_prompt: str | None,
    prefix: Prefix | None,
    background: Background,
    truncate: bool,
    out: Path,
) -> None:
    total = len(prompts) * n
    pictures: list[Picture] = []
    given = prefix.num_rows * dalle.decoder.layout.grid_width if prefix is not None else 0
    # the delay keeps an empty bar from standing above the line about a prompt that is refused
    with tqdm(total=total * (dalle.num_codes - given), unit="code", desc="draw", disable=None, delay=0.1) as bar:

        def on_step(result: StepResult) -> None:
            bar.update(len(result.drawn))

        drawing = dalle.generate(
            prompts,
            params,
            n=n,
            seed=seed,
            negative_prompt=negative_prompt,
            prefix=prefix,
            background=background,
            truncate=truncate,
            on_step=on_step,
        )
        try:
            for picture in drawing:
                write_file(
                    out / _file_name(picture), encode_image(picture.image, format="png", text=picture.receipt.to_text())
                )
                pictures.append(picture)
        except KeyboardInterrupt:
            bar.close()
            print(f"stopped: {len(pictures)} of {total} pictures are in {out}", file=sys.stderr)
            raise typer.Exit(130) from None
        except CannotWriteError as error:
            raise DalleError(f"{error}; {len(pictures)} of {total} pictures are in {out}") from error
    place: Path = out / _file_name(pictures[0])
    if total > 1:
        place = out / "contact-sheet.png"
        write_file(place, _sheet(pictures, prompts, n))
    drawn = "1 picture" if total == 1 else f"{total} pictures"
    cut = f", which shows the first {MAX_SHEET_PICTURES}" if total > MAX_SHEET_PICTURES else ""
    print(f"{drawn}, seed {pictures[0].seed}: {place}{cut}")


def _sheet(pictures: list[Picture], prompts: list[str], n: int) -> bytes:
    """The first pictures prompt by prompt, each over its prompt; a row for each prompt if there are several of each."""
    order = {prompt: i for i, prompt in enumerate(prompts)}
    pictures = sorted(pictures, key=lambda picture: (order[picture.prompt], picture.index))[:MAX_SHEET_PICTURES]
    columns = n if 1 < n < len(pictures) else None
    images = [
        picture.image.resize((2 * picture.image.width, 2 * picture.image.height), Image.Resampling.LANCZOS)
        for picture in pictures
    ]
    sheet = contact_sheet(images, labels=[picture.prompt for picture in pictures], columns=columns)
    return encode_image(sheet, format="png")


@app.command()
def show(files: Annotated[list[Path], typer.Argument(help="PNGs that were drawn here.")]) -> None:
    """Print what a picture was drawn from: prompt, seed, index, parameters, model."""
    with mistakes_in_words():
        for file in files:
            print(describe(read_receipt(file)))


@app.command()
def models() -> None:
    """List the models that are there: those shipped, and those in the folder that DALLE_MODELS names."""
    with mistakes_in_words():
        found = list_models()
        if not found:
            raise DalleError("there are no models; set DALLE_MODELS to a folder of model directories")
        broken = False
        for folder in found.values():
            try:
                print(printable(describe_model(folder)))
            except CheckpointError as error:
                print_error(error)
                broken = True
        if broken:
            raise typer.Exit(2)


app.command("import", no_args_is_help=True)(import_model)
app.command("export", no_args_is_help=True)(export_model)
app.command()(verify)
app.command()(decode)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _file_name(picture: Picture) -> str:
    """Readable, and different for whatever was asked for differently: prompt, digest of all parameters, given codes and
    model, seed and index."""
    receipt = picture.receipt
    words = re.sub(r"[^a-z0-9]+", "-", receipt.prompt.lower()).strip("-")[:40].strip("-") or "picture"
    drawn_from = repr(
        (receipt.prompt, receipt.negative_prompt, sorted(receipt.parameters.items()), receipt.model_digest)
    )
    if mask := receipt.parameters.get("kept"):
        codes = list(chain.from_iterable(receipt.codes))
        drawn_from += repr(list(compress(codes, read_kept_mask(str(mask), len(codes)))))
    return f"{words}-{hashlib.sha256(drawn_from.encode()).hexdigest()[:10]}-{receipt.seed}-{receipt.index}.png"


def main() -> None:
    """The console script. A reader that goes away (`dalle show ... | head`) is no error."""
    try:
        app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
