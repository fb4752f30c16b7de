"""The commands that work on what was drawn before: `dalle verify` and `dalle decode`."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from tqdm import tqdm

from dalle.checkpoint.store import DEFAULT_MODEL
from dalle.cli.console import mistakes_in_words, prepare_folder, write_file
from dalle.errors import DataError, ImageError, ParameterError
from dalle.images import encode_image
from dalle.pipeline import DALLE
from dalle.receipt import Receipt, printable
from dalle.verify import Verifier, fault_of_codes, picture_of_receipt

__all__ = ["decode", "verify"]

RECEIPT_FIELDS = (
    "prompt",
    "negative_prompt",
    "seed",
    "index",
    "parameters",
    "model",
    "model_digest",
    "codes",
    "software",
)


def verify(
    paths: Annotated[list[Path], typer.Argument(help="PNGs, or folders of them with all that is in them.")],
    model: Annotated[
        str | None, typer.Option(help="Which model they must be of. Default: each one's own, if it is here.")
    ] = None,
    resample: Annotated[
        bool, typer.Option("--resample", help="Draw each again, and compare the codes: sees altered prompts too.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or another name of torch.")] = "auto",
) -> None:
    """Compare pictures with their receipts: do the codes give the pixels?

    Says what is wrong with each that is not as it was drawn. Exit code 1 if
    there is one, or if a file that is named has no receipt; in folders,
    pictures without one are counted.
    """
    with mistakes_in_words():
        verifier = Verifier(model=model, resample=resample, device=device)
        found: Counter[str] = Counter()
        bad = False
        for path, named in tqdm(list(_pictures(paths)), unit="picture", disable=None, leave=False):
            verdict = verifier.verify(path)
            found[verdict.kind] += 1
            if verdict.kind not in ("good", "no receipt") or (named and verdict.kind == "no receipt"):
                bad = True
                tqdm.write(printable(f"{path}: {verdict.kind}: {verdict.reason}").replace("\n", " "))
        print(", ".join(f"{number} {kind}" for kind, number in found.most_common()))
        if bad:
            raise typer.Exit(1)


def _pictures(paths: list[Path]) -> Iterator[tuple[Path, bool]]:
    """Files, and whether they were named and not found in a folder."""
    for path in paths:
        if path.is_dir():
            found = sorted(one for one in path.rglob("*") if one.suffix.lower() == ".png")
            if not found:
                raise ImageError(f"there are no PNGs in {path}; other files have no receipts")
            yield from ((one, False) for one in found)
        elif not path.exists():
            raise ImageError(f"there is no {path}")
        else:
            yield path, True


def decode(
    manifest: Annotated[Path, typer.Argument(help="JSONL with codes: manifest.jsonl of a batch, or lines of it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = Path("out"),
    model: Annotated[str, typer.Option(help="Name (see `dalle models`) or directory.")] = DEFAULT_MODEL,
    output_format: Annotated[
        Literal["png", "jpeg", "webp"], typer.Option("--format", help="Of the pictures; PNGs have receipts.")
    ] = "png",
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="Of JPEG and WebP; 90 if not given.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or another name of torch.")] = "auto",
) -> None:
    """Make pictures of codes that were drawn before, each named by its key.

    Each has the background that its line tells; JPEGs are always opaque.
    Lines without codes, those of prompts that were refused, are passed over.
    """
    with mistakes_in_words():
        dalle = DALLE.load(model, device=device)
        prepare_folder(out)
        num_pictures = 0
        for number, record in tqdm(_records(manifest), unit="picture", disable=None, leave=False):
            try:
                receipt, name = _receipt(record), f"{record['key']}.{output_format}"
            except (ImageError, KeyError, TypeError) as error:
                raise DataError(f"{manifest}, line {number}: {error}") from error
            if fault := fault_of_codes(dalle, receipt):
                raise DataError(f"{manifest}, line {number}: {fault}")
            if receipt.model_digest != dalle.digest:
                raise DataError(
                    f"{manifest}, line {number}: its codes are of the model {receipt.model!r}, digest "
                    f"{receipt.model_digest[:12]}..., and not of {model}"
                )
            try:
                image = picture_of_receipt(dalle, receipt)
            except ParameterError as error:
                raise DataError(f"{manifest}, line {number}: {error}") from error
            text = receipt.to_text() if output_format == "png" else None
            if "/" in name or name.startswith("."):
                raise DataError(f"{manifest}, line {number}: the key is {name!r}; it must be the name of a file")
            write_file(out / name, encode_image(image, format=output_format, quality=quality, text=text))
            num_pictures += 1
        print(f"{num_pictures} pictures: {out}")


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of the lines that have codes."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                record = json.loads(line)
                if isinstance(record, dict) and record.get("codes") is not None:
                    yield number, record
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _receipt(record: dict[str, Any]) -> Receipt:
    """The receipt that the picture of a record has, or would have."""
    text = {name: record[name] for name in RECEIPT_FIELDS if record[name] is not None}
    whole = text | {"parameters": json.dumps(record["parameters"], ensure_ascii=False)}
    return Receipt.from_text({name: str(value) for name, value in whole.items()})
