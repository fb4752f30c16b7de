"""The commands that exchange models with other projects: `dalle import` and `dalle export`."""

from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from dalle.checkpoint.store import describe_model, find_model
from dalle.cli.console import mistakes_in_words
from dalle.receipt import printable

__all__ = ["export_model", "import_model"]


def import_model(
    path: Annotated[Path, typer.Argument(help="Its folder, or the one file that it is in.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model directory to write; its name is the model's.")],
    family: Annotated[
        str | None, typer.Option(help="Take it for a checkpoint of this family, whatever it looks like.")
    ] = None,
) -> None:
    """Turn a checkpoint of another project into a model directory, once.

    The family is found out from the files: vqgan-jax, taming (taming-transformers:
    VQModel, GumbelVQ), mindalle (minDALL-E), llamagen (LlamaGen), dalle-pytorch,
    rudalle (ruDALL-E), min-dalle (its detokenizer), openai-dvae.
    docs/interop.md tells which files each consists of, what is not read and why,
    and under which licence its published weights are.

    Nothing in the files is run: pickles are read by a reader that knows tensors and
    refuses the rest. The directory is written whole or not at all, and read back
    before it takes its place. A model as large as the disk needs little memory.

        dalle import vqgan_imagenet_f16_16384 --out models/vqgan-f16
        dalle import logs/2021-04-23_my-vqgan --out models/mine
        DALLE_MODELS=models dalle models
    """
    from dalle.interop.convert import import_checkpoint  # foreign formats are nobody else's concern

    with mistakes_in_words(), tqdm(unit="B", unit_scale=True, desc="convert", disable=None, delay=0.5) as bar:

        def on_written(num_bytes: int) -> None:
            bar.update(num_bytes)

        done = import_checkpoint(path, out, family=family, on_start=bar.reset, on_written=on_written)
        bar.close()
        converted = done.converted
        lines = [
            ("family", f"{done.family}: {done.reason}"),
            *(("read", str(file)) for file in done.read),
            *(("ignored", text) for text in converted.ignored),
            *(("derived", text) for text in converted.derived),
            *converted.about.items(),
        ]
        print("\n".join(f"{key:<9}{printable(text)}" for key, text in lines))
        print(printable(describe_model(out)))


def export_model(
    model: Annotated[str, typer.Argument(help="Name (see `dalle models`) or directory.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; it must not be there yet.")],
    to: Annotated[
        str, typer.Option(help="vqgan-jax: the image tokenizer, as that project reads it; hf: safetensors and JSON.")
    ] = "hf",
) -> None:
    """Write a model for other projects to read; docs/interop.md tells names and files.

    dalle export models/mine --to vqgan-jax --out mine-jax
    """
    from dalle.interop.export import export_checkpoint

    with mistakes_in_words():
        export_checkpoint(find_model(model), to, out)
        print(f"{to}: {out}")
