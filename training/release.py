"""Assemble a model for release: `python -m training.release` joins the stages' artefacts into one model directory.

The decoder comes from a run of stage 2. The image tokenizer may come from a later run of stage 1 that trained only its
decoder half; an image tokenizer with other codes is refused. The vocabulary of the model, if it has one, comes with it.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from dalle.checkpoint import load_checkpoint, load_image_tokenizer, save_checkpoint
from dalle.checkpoint.files import check_replaceable
from dalle.checkpoint.vocabulary import read_vocabulary
from dalle.decoder.sampling import SamplingParams
from dalle.errors import DataError
from training.command import run_function
from training.token_shards import codes_digest

__all__ = ["release"]


def release(
    model: Annotated[Path, tyro.conf.arg(metavar="MODEL")],
    /,
    *,
    out: Path,
    name: str | None = None,
    image_tokenizer: Path | None = None,
    about: dict[str, str] | None = None,
    sampling: SamplingParams | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] = "float16",
    overwrite: bool = False,
) -> None:
    """Write a model directory for release.

    Args:
        model: Model directory of stage 2, whose decoder and tokenizers are released.
        out: Model directory to write.
        name: Name of the released model. None: the name of MODEL.
        image_tokenizer: Model directory of stage 1 whose image tokenizer replaces that of MODEL; its codes must be
            the same. None: the image tokenizer of MODEL.
        about: Notes that `dalle models` shows, such as licence, data and training, as KEY VALUE pairs; they are added
            to those of MODEL.
        sampling: Default sampling parameters of the released model. None: those of MODEL.
        dtype: Precision of the stored weights; they are converted to float32 when they are loaded.
        overwrite: Replace a model directory that is at OUT. Nothing else is replaced, nor what is released.
    """
    sources = [path for path in (model, image_tokenizer) if path is not None]
    check_replaceable(out, overwrite=overwrite, sources=sources)
    checkpoint = load_checkpoint(model)
    if image_tokenizer is not None:
        other = load_image_tokenizer(image_tokenizer)
        if codes_digest(other) != codes_digest(checkpoint.image_tokenizer):
            raise DataError(f"{image_tokenizer} has other codes than {model}: the decoder cannot draw with it")
        checkpoint = dataclasses.replace(checkpoint, image_tokenizer=other)
    digest = save_checkpoint(
        out,
        name=name or checkpoint.name,
        image_tokenizer=checkpoint.image_tokenizer,
        text_tokenizer=checkpoint.text_tokenizer,
        decoder=checkpoint.decoder,
        about={**checkpoint.about, **(about or {})},
        sampling=sampling or checkpoint.sampling,
        vocabulary=read_vocabulary(model),
        dtype=getattr(torch, dtype),
        overwrite=overwrite,
        sources=sources,
    )
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"{out}: {size:.1f} MB, digest {digest[:12]}")


def main() -> None:
    run_function(release, "training.release")


if __name__ == "__main__":
    main()
