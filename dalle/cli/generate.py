"""`dalle generate`: its options. `dalle.cli.drawing` does the work."""

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from dalle.cli.look import complete_model, complete_translate
from dalle.cli.prompts import gather_prompts
from dalle.command_line import exit_on_mistake
from dalle.defaults import (
    DEFAULT_CLIP,
    DEFAULT_MODEL,
    DEFAULT_RERANK,
    DEFAULT_TRANSLATOR,
    MAX_PICTURES,
    Background,
    Rerank,
    Translate,
    Weights,
)
from dalle.errors import DalleError
from dalle.interrupt import heavy_imports
from dalle.translate.languages import as_translate

__all__ = ["generate"]

Schedule = Literal["constant", "linear", "cosine"]


@exit_on_mistake()
def generate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to draw: a text of one or more words, or the number of a class for a model of classes. - reads "
            "prompts from standard input, one a line.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            help="A prompt; repeat it for several. Each gets its own set of pictures.",
            show_default=False,
        ),
    ] = None,
    prompts_file: Annotated[
        str | None,
        typer.Option(
            "--prompts", metavar="FILE", help="File of prompts, one a line; - is standard input.", show_default=False
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", help=f"Number of pictures per prompt, 1 to {MAX_PICTURES}.")] = 1,
    best_of: Annotated[
        int | None,
        typer.Option(
            metavar="NUM",
            help=f"Draw this many candidates per prompt, --n to {MAX_PICTURES}, and keep the best n, best first.",
            show_default=False,
        ),
    ] = None,
    rerank: Annotated[
        Rerank | None,
        typer.Option(
            help="Judge of the candidates: a CLIP model, which compares picture and prompt, or the likelihood of the "
            f"picture's codes in the decoder. Default: {DEFAULT_RERANK}."
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR",
            help="CLIP model that judges: a name, or a directory as `dalle import` makes of open_clip's files. "
            f"Default: {DEFAULT_CLIP}, which knows emoji and icons.",
            show_default=False,
        ),
    ] = None,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Drop candidates half-way whose codes so far are less likely than others'."),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed: the same prompt, seed and options give the same pictures. Default: a random seed."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the pictures; created if it does not exist.")
    ] = Path("out"),
    model: Annotated[
        str, typer.Option(help="Name of a model (see `dalle models`), or its directory.", autocompletion=complete_model)
    ] = DEFAULT_MODEL,
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
    translate: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(get_args(Translate)),
            autocompletion=complete_translate,
            help="Translate prompts into English before they are drawn: from the language that they are in (auto), or "
            "from French, Korean, German, Spanish or Japanese. A region does not matter (fr-CA). The translator reads "
            "prompts of up to 63 tokens. English gets the wording of the model's captions: `i want to see a rocket in "
            "twitter style` becomes `rocket, twemoji style emoji`; off draws every prompt as it is.",
            show_default="en if the model has a vocabulary with styles, else off",
        ),
    ] = None,
    translator: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR", help=f"Translator of the prompts. Default: {DEFAULT_TRANSLATOR}.", show_default=False
        ),
    ] = None,
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
    """Draw pictures of prompts into a folder.

    All words are one prompt. Several pictures come with a contact sheet.
    Sampling options that are left out have the model's own values. Each PNG
    stores its prompt, seed, index, parameters and the model's digest; `dalle
    show FILE` prints them, so that the picture can be reproduced.

        dalle generate a sunflower, fluent 3d style emoji --n 4 --seed 7 --out sunflowers
        dalle generate --prompt "a red heart" --prompt "a blue heart"
        dalle generate --prompts ideas.txt
        dalle generate a red cat --n 4 --best-of 16
        dalle generate "un panda roux, style fluent 3d" --translate auto
        shuf -n 3 ideas.txt | dalle generate -
        dalle generate -- "-40 degrees, an icon of a thermometer"
    """
    if keep_rows is not None and continue_from is None:
        raise DalleError("--keep-rows needs a picture: --continue-from FILE")
    chosen = None if translate is None else as_translate(translate)
    if translator is not None and chosen in (None, "off", "en"):
        raise DalleError("--translator needs prompts to translate: --translate auto, or a language")
    prompts = gather_prompts(words or (), prompt or (), prompts_file)
    options = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "guidance_scale": guidance_scale,
        "guidance_schedule": guidance_schedule,
        "guided_codes": guided_codes,
    }
    with heavy_imports():
        from dalle.cli.drawing import Drawing, draw
    draw(
        Drawing(
            prompts=prompts,
            n=n,
            best_of=best_of,
            rerank=rerank,
            clip=clip,
            prune=prune,
            seed=seed,
            out=out,
            model=model,
            negative_prompt=negative_prompt,
            sampling={name: value for name, value in options.items() if value is not None},
            continue_from=continue_from,
            keep_rows=keep_rows,
            background=background,
            weights=weights,
            translate=chosen,
            translator=translator,
            truncate=truncate,
            device=device,
            text_encoder=text_encoder,
        )
    )
