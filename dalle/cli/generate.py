"""`dalle generate`: pictures of prompts, written one by one as they are finished, and a contact sheet of several.

Each picture is written whole or not at all, so whatever stops the command, those already drawn are kept.
"""

import dataclasses
import functools
import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from itertools import chain, compress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from PIL import Image
from tqdm import tqdm

from dalle.checkpoint.store import DEFAULT_MODEL
from dalle.command_line import exit_on_mistake
from dalle.decoder.engine import StepResult
from dalle.device import keep_memory
from dalle.errors import DalleError
from dalle.files import CannotWriteError, prepare_folder, write_file
from dalle.images import Background, contact_sheet, encode_image, load_image
from dalle.pipeline import DALLE, MAX_PICTURES, Picture, Prefix
from dalle.receipt import read_kept_mask
from dalle.transformer.linear import Weights

__all__ = ["generate"]

MAX_SHEET_PICTURES = 144
INTERRUPTED = 130
"""Exit code after Ctrl-C."""

Schedule = Literal["constant", "linear", "cosine"]


@exit_on_mistake()
def generate(
    prompts: Annotated[
        list[str],
        typer.Argument(
            help="What to draw: a text, or the number of a class for a model of classes; each prompt gets its own set "
            "of pictures."
        ),
    ],
    n: Annotated[int, typer.Option("--n", "-n", help=f"Number of pictures per prompt, 1 to {MAX_PICTURES}.")] = 1,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed: the same prompt, seed and options give the same pictures. Default: a random seed."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the pictures; created if it does not exist.")
    ] = Path("out"),
    model: Annotated[str, typer.Option(help="Name of a model (see `dalle models`), or its directory.")] = DEFAULT_MODEL,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What the pictures should not show; needs a guidance scale above 1.")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            help="Strength of classifier-free guidance, 1 to 100: higher values follow the prompt more closely. 1 "
            "turns it off and is twice as fast."
        ),
    ] = None,
    guidance_schedule: Annotated[
        Schedule | None,
        typer.Option(
            help="Guidance over the course of a picture: constant, or rising (linear, cosine) from 1 to the full "
            "scale at the last code."
        ),
    ] = None,
    guided_codes: Annotated[
        int | None, typer.Option(help="Apply guidance to this many of the first codes only; 0 applies it to all.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Sampling temperature: 0 always takes the likeliest code, higher values give more variety."),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k likeliest codes only; 0 allows all.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample from the likeliest codes whose probabilities add up to p, in (0, 1]; 1 allows all."),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            help="Exclude codes less probable than this share of the likeliest code's probability, in [0, 1]; 0 "
            "excludes none."
        ),
    ] = None,
    continue_from: Annotated[
        Path | None,
        typer.Option(help="Picture to continue: its upper part is kept, and the model draws the rest.", metavar="FILE"),
    ] = None,
    keep_rows: Annotated[
        int | None,
        typer.Option(
            help="Number of grid rows (rows of codes) of the --continue-from picture to keep, from 0 to all but one; a "
            "grid row is 16 pixels high in the default model. Default: half of them."
        ),
    ] = None,
    background: Annotated[
        Background,
        typer.Option(
            help="Background of the pictures: transparent, opaque (white), or auto: transparent if the model draws "
            "transparency, else opaque."
        ),
    ] = "auto",
    weights: Annotated[
        Weights,
        typer.Option(
            help="Type of the decoder's weights: float32 leaves them as they are; bfloat16 and int8 round them, which "
            "is faster on a CPU and changes some codes."
        ),
    ] = "float32",
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Truncate a prompt that is too long, with a warning, instead of failing.")
    ] = False,
    device: Annotated[
        str,
        typer.Option(help="Device: auto (CUDA if available, else the CPU), cpu, cuda, or another torch device."),
    ] = "auto",
    text_encoder: Annotated[
        Path | None,
        typer.Option(help="Folder of a T5 text encoder, for models that are conditioned on one (LlamaGen's t2i)."),
    ] = None,
) -> None:
    """Draw pictures of one or more prompts into a folder, and a contact sheet if there are several.

    Sampling options that are left out have the model's own values. Each PNG
    stores its prompt, seed, index, parameters and the model's digest; `dalle
    show FILE` prints them, so that the picture can be reproduced.

        dalle generate "a red panda, fluent 3d style emoji" --n 4 --seed 7 --out pandas
    """
    if keep_rows is not None and continue_from is None:
        raise DalleError("--keep-rows needs a picture: --continue-from FILE")
    for i, prompt in enumerate(prompts):
        if prompt in prompts[:i]:
            raise DalleError(f"the prompt {prompt!r} is given twice; use --n")
    keep_memory()
    dalle = DALLE.load(model, device=device, text_encoder=text_encoder)
    options: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "guidance_scale": guidance_scale,
        "guidance_schedule": guidance_schedule,
        "guided_codes": guided_codes,
    }
    given = {name: value for name, value in options.items() if value is not None}
    prefix, num_codes = None, dalle.num_codes
    if continue_from is not None:
        num_rows = dalle.decoder.layout.grid_height // 2 if keep_rows is None else keep_rows
        image = load_image(continue_from, size=dalle.image_size, mode=dalle.image_mode)
        prefix = Prefix(image=image, num_rows=num_rows)
        num_codes -= num_rows * dalle.decoder.layout.grid_width
    draw = functools.partial(
        dalle.generate,
        prompts,
        dataclasses.replace(dalle.sampling, **given),
        n=n,
        seed=seed,
        negative_prompt=negative_prompt,
        prefix=prefix,
        background=background,
        weights=weights,
        truncate=truncate,
    )
    prepare_folder(out)
    pictures = _write_pictures(draw, out, num_pictures=len(prompts) * n, num_codes=num_codes)
    place, shown = out / _file_name(pictures[0]), ""
    if len(pictures) > 1:
        place = out / "contact-sheet.png"
        write_file(place, _contact_sheet(pictures, prompts, n))
        if len(pictures) > MAX_SHEET_PICTURES:
            shown = f", which shows the first {MAX_SHEET_PICTURES}"
    count = "1 picture" if len(pictures) == 1 else f"{len(pictures)} pictures"
    print(f"{count}, seed {pictures[0].seed}: {place}{shown}")


def _write_pictures(
    draw: Callable[..., Iterator[Picture]], out: Path, *, num_pictures: int, num_codes: int
) -> list[Picture]:
    """Write each picture as soon as it is drawn, behind a progress bar over codes. Returns them in that order.

    num_codes: number of codes to be drawn for each picture.
    """
    pictures: list[Picture] = []
    # the delay keeps an empty bar from standing above the error message of a prompt that is rejected
    with tqdm(total=num_pictures * num_codes, unit="code", desc="draw", disable=None, delay=0.1) as bar:

        def on_step(result: StepResult) -> None:
            bar.update(result.num_codes)

        try:
            for picture in draw(on_step=on_step):
                png = encode_image(picture.image, format="png", text=picture.receipt.to_text())
                write_file(out / _file_name(picture), png)
                pictures.append(picture)
        except KeyboardInterrupt:
            bar.close()
            print(f"stopped: {len(pictures)} of {num_pictures} pictures are in {out}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except CannotWriteError as error:
            raise DalleError(f"{error}; {len(pictures)} of {num_pictures} pictures are in {out}") from error
    return pictures


def _file_name(picture: Picture) -> str:
    """Name of a picture's file: words of its prompt, a digest, seed and index. The digest covers all that decides the
    pixels: prompts, parameters, model, and the codes that were kept of another picture."""
    receipt = picture.receipt
    words = re.sub(r"[^a-z0-9]+", "-", receipt.prompt.lower()).strip("-")[:40].strip("-") or "picture"
    drawn_from = repr(
        (receipt.prompt, receipt.negative_prompt, sorted(receipt.parameters.items()), receipt.model_digest)
    )
    if mask := receipt.parameters.get("kept"):
        codes = list(chain.from_iterable(receipt.codes))
        drawn_from += repr(list(compress(codes, read_kept_mask(str(mask), len(codes)))))
    return f"{words}-{hashlib.sha256(drawn_from.encode()).hexdigest()[:10]}-{receipt.seed}-{receipt.index}.png"


def _contact_sheet(pictures: list[Picture], prompts: list[str], n: int) -> bytes:
    """The PNG of a sheet of the first pictures, in the order of the prompts, each above its prompt. With several
    pictures per prompt, each prompt has a row of its own."""
    order = {prompt: i for i, prompt in enumerate(prompts)}
    pictures = sorted(pictures, key=lambda picture: (order[picture.prompt], picture.index))[:MAX_SHEET_PICTURES]
    columns = n if 1 < n < len(pictures) else None
    images = [
        picture.image.resize((2 * picture.image.width, 2 * picture.image.height), Image.Resampling.LANCZOS)
        for picture in pictures
    ]
    sheet = contact_sheet(images, labels=[picture.prompt for picture in pictures], columns=columns)
    return encode_image(sheet, format="png")
