"""`dalle score`: how well pictures fit their prompts, as a table, a CSV file and a sheet ordered by score."""

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tqdm import tqdm

from dalle.cli.look import complete_model, print_json
from dalle.command_line import INCOMPLETE, exit_on_mistake, one_line, print_error
from dalle.defaults import DEFAULT_CLIP, Rerank
from dalle.errors import ImageError
from dalle.files import CannotWriteError, atomic_folder, check_output
from dalle.interrupt import heavy_imports

if TYPE_CHECKING:
    from PIL import Image

    from dalle.scoring.scorer import Score

__all__ = ["score"]

TABLE_FILE, SHEET_FILE = "scores.csv", "contact-sheet.png"
FOLDER = "a folder of scores"


@exit_on_mistake()
def score(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Picture files, or folders that are searched for them at any depth."),
    ],
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Prompt that all pictures are scored against. Default: that of each picture's receipt, its caption in "
            "metadata.jsonl or in a text file beside it, or the words of its file name."
        ),
    ] = None,
    clip: Annotated[
        str,
        typer.Option(
            metavar="NAME|DIR",
            help="CLIP model: a name, or a directory as `dalle import` or `training.clip` writes it. The default knows "
            "emoji and icons.",
        ),
    ] = DEFAULT_CLIP,
    model: Annotated[
        str | None,
        typer.Option(
            autocompletion=complete_model,
            help="Model that has drawn the pictures, for their likelihood: a name or a directory. Default: for each "
            "picture, the installed model with the digest in its receipt.",
        ),
    ] = None,
    sort: Annotated[
        Rerank,
        typer.Option(help="Score that orders the pictures; those without a likelihood come last."),
    ] = "clip",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help=f"Folder for {TABLE_FILE} and {SHEET_FILE}. Default: scores; with --json, nothing is written.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace scores that are in FOLDER. Nothing else is ever replaced.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help=f"Print a JSON array with an object for each picture, with the columns of {TABLE_FILE}."
        ),
    ] = False,
    device: Annotated[
        str,
        typer.Option(help="Device: auto (CUDA if available, else the CPU), cpu, cuda, or another torch device."),
    ] = "auto",
) -> None:
    """Score pictures against their prompts.

    The CLIP score is the cosine between picture and prompt, as a CLIP model sees
    them. The log-likelihood is that of a code, on average, under the model that
    drew the picture. Higher is better for both. Scores of different CLIP models,
    or of different decoders, cannot be compared.

    Prints a table, the best picture first, and writes a CSV file and a contact
    sheet. Pictures that cannot be read, or that nothing says the prompt of, are
    listed and skipped; the exit code is then 3.

        dalle score out
        dalle score photos/*.jpg --prompt "a red bicycle" --out bicycles
        dalle score out --json | jq -r '.[0].file'
    """
    folder = out or (None if as_json else Path("scores"))
    with heavy_imports():
        from dalle.checkpoint.clip import find_clip, load_clip
        from dalle.device import choose_device, keep_memory
        from dalle.scoring.captions import Captions, find_pictures
        from dalle.scoring.results import csv_of, facts_of, ordered, sheet_of, table_of
        from dalle.scoring.scorer import Scorer, Skipped
    keep_memory()
    files = find_pictures(paths)
    if folder is not None:
        _check_folder(folder, folder, files, overwrite)
    judge = load_clip(find_clip(clip))
    judge.network.to(choose_device(device))
    scorer = Scorer(judge, Captions(prompt), model=model, device=device)
    found: list[Score] = []
    with tqdm(total=len(files), unit="picture", desc="score", disable=None, leave=False, delay=0.1) as bar:
        for one in scorer.scores(files):
            bar.update()
            if isinstance(one, Skipped):
                with bar.external_write_mode():
                    print_error(f"{one.file}: {one.reason}; skipped")
            else:
                found.append(one)
    if not found:
        raise ImageError(f"nothing was scored: none of {len(files)} pictures could be; the reasons are above")
    found = ordered(found, sort)
    if folder is not None:
        _write(folder, files, overwrite, {TABLE_FILE: csv_of(found), SHEET_FILE: _png(sheet_of(found))})
    num_skipped = len(files) - len(found)
    if as_json:
        print_json([facts_of(one) for one in found])
    else:
        print(table_of(found))
        print(one_line(f"{_summary(found, num_skipped, judge.name)}: {folder}"))
    if num_skipped:
        raise typer.Exit(INCOMPLETE)


def _summary(found: "list[Score]", num_skipped: int, clip: str) -> str:
    """What was scored and how many were skipped, where prompts are from, and what the notes say."""
    origins = Counter(one.prompt_from for one in found)
    notes = Counter(note for one in found for note in one.note.split("; ") if note)
    parts = [
        f"{len(found)} picture{'s' * (len(found) > 1)} by the CLIP model {clip}",
        f"{num_skipped} skipped" if num_skipped else "",
        "prompts from " + ", ".join(f"{origin} ({count})" for origin, count in origins.most_common()),
        *(f"{note} ({count})" for note, count in notes.most_common(3)),
    ]
    return "; ".join(filter(None, parts))


def _png(image: "Image.Image") -> bytes:
    from dalle.images import encode_image

    return encode_image(image, format="png")


def _why_foreign(folder: Path) -> str | None:
    names = {*os.listdir(folder)} if folder.is_dir() else set()
    if TABLE_FILE not in names:
        return f"it has no {TABLE_FILE}" if folder.is_dir() else "it is no folder"
    others = sorted(names - {TABLE_FILE, SHEET_FILE})
    return f"it has {others[0]}" if others else None


def _check_folder(place: Path, folder: Path, files: list[Path], overwrite: bool) -> None:
    check_output(folder, FOLDER, _why_foreign, overwrite=overwrite, sources=files, moved=place)


def _write(folder: Path, files: list[Path], overwrite: bool, contents: dict[str, bytes]) -> None:
    """Write the folder, whole or not at all. Raises `CannotWriteError`."""
    try:
        with atomic_folder(folder, check=lambda place: _check_folder(place, folder, files, overwrite)) as unfinished:
            for name, content in contents.items():
                (unfinished / name).write_bytes(content)
    except OSError as error:
        raise CannotWriteError(f"cannot write {folder}: {error.strerror or error}") from error
