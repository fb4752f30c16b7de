"""The commands for pictures and codes that were drawn before: `dalle verify` and `dalle decode`."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from tqdm import tqdm

from dalle.cli.look import complete_model, print_json
from dalle.command_line import DIFFERENT, exit_on_mistake
from dalle.defaults import DEFAULT_MODEL
from dalle.errors import DataError, ImageError, ParameterError
from dalle.files import prepare_folder, write_file
from dalle.interrupt import heavy_imports
from dalle.printable import printable

if TYPE_CHECKING:
    from dalle.receipt import Receipt

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


@exit_on_mistake()
def verify(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="PNG files, or folders that are searched for them at any depth."),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            autocompletion=complete_model,
            help="Model that must have drawn the pictures: a name or a directory. Default: for each picture, the "
            "installed model with the digest in its receipt.",
        ),
    ] = None,
    resample: Annotated[
        bool,
        typer.Option(
            "--resample",
            help="Also draw each picture again and compare its codes, which detects a changed prompt, seed or "
            "parameter.",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print a JSON array with an object for each picture, also for those that pass."),
    ] = False,
    device: Annotated[
        str,
        typer.Option(help="Device: auto (CUDA if available, else the CPU), cpu, cuda, or another torch device."),
    ] = "auto",
) -> None:
    """Check that pictures are unchanged since they were drawn.

    A PNG stores a receipt: the prompt, the parameters, and the image tokens
    (codes) that it was decoded from. The codes must decode to its pixels. Every
    picture that does not pass is printed with the reason. Exit code 1 if there is
    one, or if a file given by name has no receipt; pictures without a receipt
    that are found in folders are only counted.
    """
    with heavy_imports():
        from dalle.device import keep_memory
        from dalle.verify import Verifier
    keep_memory()
    verifier = Verifier(model=model, resample=resample, device=device)
    found: Counter[str] = Counter()
    bad = False
    verdicts: list[dict[str, Any]] = []
    for path, named in tqdm(list(_pictures(paths)), unit="picture", disable=None, leave=False):
        verdict = verifier.verify(path)
        found[verdict.kind] += 1
        passed = verdict.kind == "good" or (verdict.kind == "no receipt" and not named)
        bad = bad or not passed
        if as_json:
            verdicts.append({"file": str(path), "passed": passed, "kind": verdict.kind, "reason": verdict.reason})
        elif not passed:
            tqdm.write(printable(f"{path}: {verdict.kind}: {verdict.reason}").replace("\n", " "))
    if as_json:
        print_json(verdicts)
    else:
        print(", ".join(f"{number} {kind}" for kind, number in found.most_common()))
    if bad:
        raise typer.Exit(DIFFERENT)


def _pictures(paths: list[Path]) -> Iterator[tuple[Path, bool]]:
    """Files, each with True if it was given by name, and False if it was found in a folder."""
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


@exit_on_mistake()
def decode(
    manifest: Annotated[
        Path,
        typer.Argument(
            metavar="MANIFEST", help="JSONL file with codes: the manifest.jsonl of a batch, or some lines of one."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the pictures; created if it does not exist.")
    ] = Path("out"),
    model: Annotated[
        str,
        typer.Option(
            help="Model that drew the codes: a name (see `dalle models`) or a directory.", autocompletion=complete_model
        ),
    ] = DEFAULT_MODEL,
    output_format: Annotated[
        Literal["png", "jpeg", "webp"],
        typer.Option("--format", help="Format of the pictures; PNG alone stores receipts."),
    ] = "png",
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="JPEG/WebP quality (default 90).")] = None,
    device: Annotated[
        str,
        typer.Option(help="Device: auto (CUDA if available, else the CPU), cpu, cuda, or another torch device."),
    ] = "auto",
) -> None:
    """Decode the image tokens (codes) of a batch to pictures.

    Each picture is in a file that is named by its key.
    A picture has the background that its line names; JPEGs are always opaque.
    Lines without codes (invalid or failed ones) are skipped.
    """
    with heavy_imports():
        from dalle.device import keep_memory
        from dalle.images import encode_image
        from dalle.pipeline import DALLE
        from dalle.verify import fault_of_codes, picture_of_receipt
    keep_memory()
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
    """Line number and content of every line that has codes."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                record = json.loads(line)
                if isinstance(record, dict) and record.get("codes") is not None:
                    yield number, record
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _receipt(record: dict[str, Any]) -> "Receipt":
    """The receipt that the PNG of a record has, or would have."""
    from dalle.receipt import Receipt

    fields = {name: record[name] for name in RECEIPT_FIELDS} | {"step": record.get("step")}  # older records have none
    text = {name: value for name, value in fields.items() if value is not None}
    for name in ("ranking", "translation"):
        if record.get(name) is not None:
            text[name] = json.dumps(record[name], ensure_ascii=False)
    whole = text | {"parameters": json.dumps(record["parameters"], ensure_ascii=False)}
    return Receipt.from_text({name: str(value) for name, value in whole.items()})
