"""Put a model together for others: `python -m training.release` joins the stages' artefacts into one model directory.

The decoder comes from a run of stage 2. The image tokenizer may come from a later run of stage 1 that trained only the
way back to pixels; one whose codes differ is refused.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import torch
import tyro

from dalle.checkpoint import load_checkpoint, load_image_tokenizer, save_checkpoint
from dalle.decoder.sampling import SamplingParams
from dalle.errors import DataError
from training.codes import codes_digest
from training.command import exit_on_mistake

__all__ = ["release"]


def release(
    model: Path,
    /,
    *,
    out: Path,
    name: str | None = None,
    image_tokenizer: Path | None = None,
    about: dict[str, str] | None = None,
    sampling: SamplingParams | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] = "float16",
) -> None:
    """Write a model directory to ship.

    Args:
        model: Model directory of stage 2.
        out: The directory to write.
        name: Of the model; default: its present one.
        image_tokenizer: Model directory of stage 1 with the same codes and a better way back to pixels.
        about: What `dalle models` says of it: licence, data, training.
        sampling: What the model draws best with; default: its present ones.
        dtype: Of the stored weights; they are float32 again when loaded.
    """
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
        dtype=getattr(torch, dtype),
    )
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"{out}: {size:.1f} MB, digest {digest[:12]}")


def main() -> None:
    with exit_on_mistake():
        tyro.cli(release, prog="python -m training.release")


if __name__ == "__main__":
    main()
