"""`dalle explain`: a page that shows which words and which earlier patches a picture was drawn from."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tqdm import tqdm

from dalle.cli.look import complete_model
from dalle.command_line import exit_on_mistake
from dalle.defaults import DEFAULT_MODEL
from dalle.errors import DalleError, ImageError, ParameterError, PromptError
from dalle.explain.chosen import chosen_of, read_numbers
from dalle.files import write_file
from dalle.interrupt import heavy_imports
from dalle.printable import printable

if TYPE_CHECKING:
    from dalle.decoder.engine import StepResult

__all__ = ["explain"]


@exit_on_mistake()
def explain(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|PROMPT",
            help="PNG file drawn by `dalle` or the service, or a prompt of one or more words that is drawn first.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="PAGE",
            help="HTML file to write. Default: the name of FILE with .html, or explained.html.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            autocompletion=complete_model,
            help="Model that draws the prompt, or that has drawn the file: a name or a directory. Default: the default "
            "model, or the installed model with the digest in the file's receipt.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the picture of a prompt. Default: a random seed.")] = None,
    layers: Annotated[
        str | None,
        typer.Option(metavar="NUMBERS", help="Layers to show, as 3 or 1-4,8, numbered from 1. Default: all."),
    ] = None,
    heads: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Heads of these layers to show, likewise. Default: all.")
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the numbers as one JSON object instead of writing a page, with attention averaged over the "
            "layers and heads.",
        ),
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
    """Show which words drew which part of a picture.

    Writes one HTML page that needs nothing else: point at a word to see its
    patches; point at a patch to see its words, the earlier patches it attends to,
    and what else it could have been, with probabilities. The picture is replayed
    from the codes in its receipt.

        dalle explain out/a-red-apple.png
        dalle explain a red apple, noto style emoji --seed 7 --out apple.html
    """
    if as_json and out is not None:
        raise DalleError(f"--json prints numbers, and --out {out} is for a page: give one of them")
    file = _file(words)
    if file is not None and out is not None and out.resolve() == file.resolve():
        raise DalleError(f"--out {out} is the picture itself: give the page another name")
    if file is not None and seed is not None:
        raise DalleError(f"--seed {seed} is for a prompt: {file} has the seed that it was drawn with")
    place = out or (Path("explained.html") if file is None else file.with_suffix(".html"))
    if not as_json and (place.is_dir() or not place.parent.is_dir()):  # refused before it is drawn
        what = f"{place} is a folder" if place.is_dir() else f"there is no folder {place.parent}"
        raise DalleError(f"the page cannot be written: {what}; give --out a file in a folder that is there")
    chosen = [
        None if text is None else read_numbers(name, text) for name, text in (("layers", layers), ("heads", heads))
    ]
    with heavy_imports():
        from dalle.cli.drawing import warn_of_unknown_words
        from dalle.device import keep_memory
        from dalle.explain.explanation import explain as explanation_of
        from dalle.explain.page import html_page, json_object
        from dalle.pipeline import DALLE
        from dalle.receipt import read_receipt
        from dalle.verify import folder_of_model
    keep_memory()
    if file is not None:
        try:
            receipt = read_receipt(file)
        except ImageError as error:
            raise ImageError(
                f"{error}; a picture is explained from the receipt that `dalle` and the service write into its PNG, "
                "and that other programs may remove: give such a file, or a prompt to draw"
            ) from error
        found = folder_of_model(receipt.model_digest) if model is None else model
        if found is None:
            digest = f"{receipt.model_digest[:12]}..."
            raise ParameterError(
                f"{file} is of the model {receipt.model[:80]!r}, digest {digest}, which is not installed: see --model"
            )
        dalle = DALLE.load(found, device=device, text_encoder=text_encoder)
    else:
        prompt = _prompt(words)
        dalle = DALLE.load(model or DEFAULT_MODEL, device=device, text_encoder=text_encoder)
        chosen_of("layer", chosen[0], dalle.decoder.config.depth)  # refused before it is drawn
        chosen_of("head", chosen[1], dalle.decoder.config.num_heads)
        warn_of_unknown_words(dalle, [prompt])
        with tqdm(total=dalle.num_codes, unit="code", desc="draw", disable=None, delay=0.1, leave=False) as bar:

            def on_step(result: "StepResult") -> None:
                bar.update(result.num_codes)

            receipt = next(dalle.generate(prompt, seed=seed, on_step=on_step)).receipt
    explanation = explanation_of(dalle, receipt, layers=chosen[0], heads=chosen[1])
    if as_json:
        print(printable(json.dumps(json_object(explanation), ensure_ascii=False)))
        return
    page = html_page(explanation).encode()
    write_file(place, page)
    print(f"seed {receipt.seed}: {place}, {len(page) / 1000:,.0f} kB")


def _file(words: list[str]) -> Path | None:
    """The picture that is named, or None for a prompt. Raises `DalleError` for the path of a folder."""
    word = words[0]  # for os.path: a prompt may be too long for the name of a file, at which pathlib fails
    if len(words) > 1:
        return None
    if os.sep in word and os.path.isdir(word):
        raise DalleError(f"{word} is a folder, and one picture is explained: give its PNG file, or a prompt")
    return Path(word) if word.lower().endswith(".png") or os.path.isfile(word) else None


def _prompt(words: list[str]) -> str:
    if len(words) > 1 and any(len(word.split()) > 1 for word in words):
        raise PromptError(f"these are {len(words)} arguments, and one picture is explained: put the prompt into quotes")
    return " ".join(words)
