"""The commands that exchange models with other projects: `dalle import` and `dalle export`."""

from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from dalle.cli.look import ModelArgument
from dalle.command_line import exit_on_mistake, one_line
from dalle.interrupt import heavy_imports
from dalle.printable import printable

__all__ = ["export_model", "import_model"]

OPEN_CLIP, MARIAN = "open-clip", "marian"


@exit_on_mistake()
def import_model(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", help="The other project's checkpoint: a folder or a file.", readable=False
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Model directory to write; its name becomes the model's name.")
    ],
    family: Annotated[
        str | None, typer.Option(help="Read the checkpoint as this family instead of recognising it from its files.")
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace a model directory that is there. Nothing else is ever replaced."),
    ] = False,
) -> None:
    """Convert a checkpoint of another project to a model directory.

    The family is recognised from the files: vqgan-jax, taming (taming-transformers:
    VQModel, GumbelVQ), mindalle (minDALL-E), llamagen (LlamaGen), dalle-pytorch,
    rudalle (ruDALL-E), min-dalle (its detokenizer), openai-dvae; open-clip, a CLIP
    model, of which a CLIP directory is made; and marian (opus-mt), of which a
    translator directory is made.
    docs/interop.md lists the files of each family, what is not supported and why,
    and the licences of the published weights.

    No code in the files is run: pickles are read by a reader that accepts tensors
    and rejects everything else. The directory is written whole or not at all, and
    is read back and checked first. One tensor is in memory at a time.

        dalle import vqgan_imagenet_f16_16384 --out models/vqgan-f16
        dalle import logs/2021-04-23_my-vqgan --out models/mine
        DALLE_MODELS=models dalle models
    """
    with heavy_imports():
        from dalle.checkpoint.store import describe_model
        from dalle.interop.convert import import_checkpoint  # these commands alone load readers of foreign formats
        from dalle.interop.marian import import_marian, is_marian
        from dalle.interop.open_clip import import_open_clip, is_open_clip

    if family == OPEN_CLIP or (family is None and is_open_clip(path)):
        config = import_open_clip(path, out, overwrite=overwrite).network.config
        size = config.vision.image_size
        print(one_line(f"{OPEN_CLIP}: {out}, a CLIP directory for pictures of {size} x {size} pixels"))
        return

    if family == MARIAN or (family is None and is_marian(path)):
        translator = import_marian(path, out, overwrite=overwrite)
        from_, to = translator.text.source_languages, translator.text.target_language
        print(one_line(f"{MARIAN}: {out}, a translator directory, from {', '.join(from_) or '?'} into {to or '?'}"))
        return

    with tqdm(unit="B", unit_scale=True, desc="convert", disable=None, delay=0.5) as bar:

        def on_written(num_bytes: int) -> None:
            bar.update(num_bytes)

        done = import_checkpoint(
            path, out, family=family, overwrite=overwrite, on_start=bar.reset, on_written=on_written
        )
    converted = done.converted
    lines = [
        ("family", f"{done.family}: {done.reason}"),
        *(("read", str(file)) for file in done.read),
        *(("ignored", text) for text in converted.ignored),
        *(("derived", text) for text in converted.derived),
        *converted.about.items(),
    ]
    print("\n".join(f"{key:<9}{one_line(text)}" for key, text in lines))
    print(printable(describe_model(out)))


@exit_on_mistake()
def export_model(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; it must not exist yet.")],
    to: Annotated[
        str,
        typer.Option(
            help="Layout: hf (all networks, as safetensors and JSON), or vqgan-jax (the image tokenizer, in the format "
            "of that project)."
        ),
    ] = "hf",
) -> None:
    """Export a model for other projects.

    docs/interop.md lists the files and the names of the weights.

        dalle export models/mine --to vqgan-jax --out mine-jax
    """
    with heavy_imports():
        from dalle.checkpoint.store import find_model
        from dalle.interop.export import export_checkpoint

    export_checkpoint(find_model(model), to, out)
    print(one_line(f"{to}: {out}"))
