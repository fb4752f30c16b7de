"""Measure a model directory. `python -m training.evaluate MODEL` writes `table.md`, `numbers.json` and `sheet.png`.

Two questions, for each validation split and for pairs of the training data:

- reconstruction: what the image tokenizer loses between a picture and its codes. PSNR, SSIM, LPIPS, and how much of
  the codebook is in use over a whole data set. Pictures with alpha are compared over white.
- generation: draw pictures for captions and look for them among the real ones: are they nearest to the right concept,
  and to the right style? The Frechet distance of drawn and real pictures is that of 256 averaged features of VGG16's
  block 3, so that a few hundred pictures give a covariance. It cannot be compared with the FID of the literature, which
  has 2,048 features of Inception.

Beside each number stands what bounds it: the same for reconstructions of the real pictures, the best that a decoder of
these codes can hope for, or chance. The numbers are a function of model, shards
and settings.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from dalle.checkpoint import load_checkpoint
from dalle.decoder.sampling import SamplingParams, check_seed
from dalle.device import choose_device
from dalle.errors import DataError, ParameterError
from dalle.images import composite
from dalle.vq.kinds import AnyImageTokenizer
from dalle.vq.quantize import codebook_statistics
from training.captions.phrasing import Phrasing
from training.command import exit_on_mistake
from training.evaluation.features import PictureFeatures, batches, evenly, load_gallery
from training.evaluation.generation import Drawn, Numbers, draw, judge
from training.evaluation.measures import psnr, ssim
from training.evaluation.report import report, sheet
from training.loop import autocast, keep_memory
from training.losses.perceptual import LPIPS
from training.pairs.shards import PairShards, find_shards

__all__ = ["Reconstructed", "evaluate", "find_splits", "reconstruct"]

ALL_VAL = "all val"
NUM_RECONSTRUCTED = 512
"""Pairs of a training split whose reconstruction is measured; of a validation split it is all."""
SMALLEST_PICTURE = 16
"""Pixels on a side: VGG16's third block is then 4 x 4."""


def evaluate(
    model: Path,
    /,
    *,
    shards: tuple[str, ...] = ("data/emoji",),
    num: int = 200,
    phrasing: Phrasing = "training",
    guidance_scale: float | None = None,
    guidance_schedule: Literal["constant", "linear", "cosine"] | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int = 0,
    out: Path = Path("runs/evaluation"),
    device: str = "auto",
) -> None:
    """Measure a model directory against picture-caption shards. Sampling parameters left out are the model's own.

    Args:
        model: Model directory; without a decoder in it, only reconstruction is measured.
        shards: Tar files, folders or glob patterns. Files named val*.tar are validation splits.
        num: Pictures drawn for each split, at most.
        phrasing: How prompts are worded. `training`: each pair's first caption. `natural`: in words of its own, with
            synonyms and in frames that training captions never have.
        guidance_scale: 1 is off.
        guidance_schedule: Constant, or rising to its scale at the last code.
        temperature: 0 is greedy.
        top_k: 0 keeps all codes.
        top_p: 1 keeps all codes.
        min_p: 0 keeps all codes.
        seed: Of the first picture drawn in a split; the next one has the next seed.
        out: Folder for the report. Features of the real pictures are kept beside it, for the next evaluation.
        device: `auto`, `cpu`, `cuda`.
    """
    given = {
        "guidance_scale": guidance_scale,
        "guidance_schedule": guidance_schedule,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    SamplingParams.from_dict(chosen)  # refused before minutes are spent
    check_seed(seed)
    if num < 2:
        raise ParameterError(f"num is {num}; it must be at least 2, for a covariance")
    keep_memory()
    place = choose_device(device)
    checkpoint = load_checkpoint(model)
    params = SamplingParams.from_dict(checkpoint.sampling.to_dict() | chosen)
    splits = find_splits(shards)
    _check_sizes(splits, checkpoint.image_tokenizer.config.image_size)
    checkpoint.image_tokenizer.to(place)

    reconstruction = _reconstruct_all(splits, checkpoint.image_tokenizer, place)
    generation: dict[str, Numbers] = {}
    out.mkdir(parents=True, exist_ok=True)
    if checkpoint.decoder is not None:
        checkpoint.decoder.to(place)
        embed = PictureFeatures(place)
        gallery = load_gallery(splits, embed, out.resolve().parent)
        shown = "val_combo" if "val_combo" in splits else next(iter(_val_first(splits)))
        drawn = {}
        for name, pairs in splits.items():
            start = gallery.starts[name]
            drawn[name] = draw(
                name, pairs, checkpoint, embed, params, num=num, seed=seed, start=start, phrasing=phrasing
            )
            if name == shown:
                sheet(drawn[name], pairs).save(out / "sheet.png")
        generation = _with_all_val(drawn, Drawn.cat, lambda one: judge(gallery, one))
    else:
        (out / "sheet.png").unlink(missing_ok=True)  # not of this model

    settings = {
        "shards": list(shards),
        "num": num,
        "seed": seed,
        "phrasing": phrasing,
        "reconstructed": NUM_RECONSTRUCTED,
        **params.to_dict(),
    }
    numbers = {
        "model": {"path": str(model), "name": checkpoint.name, "digest": checkpoint.digest},
        "settings": settings,
        "reconstruction": reconstruction,
        "generation": generation,
    }
    (out / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    table = report(checkpoint, settings, reconstruction, generation)
    (out / "table.md").write_text(table, encoding="utf-8")
    print(table)


def find_splits(shards: Sequence[str]) -> dict[str, PairShards]:
    """The pairs of each split, by name: a shard's name without its number (`train` of `train-003.tar`)."""
    groups: dict[str, list[Path]] = {}
    for path in find_shards(shards):
        groups.setdefault(re.sub(r"-\d+$", "", path.stem), []).append(path)
    return {name: PairShards(paths) for name, paths in groups.items()}


def _is_val(split: str) -> bool:
    return split.startswith("val")


def _val_first(splits: Mapping[str, PairShards]) -> list[str]:
    return sorted(splits, key=lambda name: not _is_val(name))


def _check_sizes(splits: Mapping[str, PairShards], image_size: int) -> None:
    if image_size < SMALLEST_PICTURE:
        raise DataError(
            f"the model's pictures have {image_size} pixels on a side; at least {SMALLEST_PICTURE} are needed"
        )
    for name, pairs in splits.items():
        height, width = pairs.picture(0).shape[1:]
        if (height, width) != (image_size, image_size):
            raise DataError(
                f"the pictures of {name} have {height} x {width} pixels, the model's {image_size} x {image_size}"
            )


def _with_all_val(parts: Mapping[str, Any], cat: Any, measure: Any) -> dict[str, Numbers]:
    """The numbers of each split, validation first, and behind it those of all validation splits as one."""
    val = [name for name in parts if _is_val(name)]
    numbers = {name: measure(parts[name]) for name in val}
    if len(val) > 1:
        numbers[ALL_VAL] = measure(cat([parts[name] for name in val]))
    return numbers | {name: measure(parts[name]) for name in parts if name not in val}


# -- reconstruction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstructed:
    """What was measured on M pictures."""

    psnr: Tensor
    """(M,) dB."""
    ssim: Tensor
    """(M,)."""
    perceptual: Tensor
    """(M,): LPIPS."""
    counts: Tensor
    """(K,) int64: how often each code occurred."""

    @classmethod
    def cat(cls, parts: Sequence["Reconstructed"]) -> "Reconstructed":
        """The pictures of all parts, and the sum of their counts."""
        names = ("psnr", "ssim", "perceptual")
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return cls(**joined, counts=torch.stack([part.counts for part in parts]).sum(0))

    def numbers(self) -> Numbers:
        """Means over pictures; usage and perplexity of the codebook over all of them together."""
        usage, perplexity = codebook_statistics(self.counts)
        means = {name: getattr(self, name).mean().item() for name in ("psnr", "ssim", "perceptual")}
        return {"pictures": len(self.psnr), **means, "usage": usage, "perplexity": perplexity}


@torch.no_grad()
def reconstruct(
    pairs: PairShards, numbers: Sequence[int], tokenizer: AnyImageTokenizer, lpips: LPIPS, title: str
) -> Reconstructed:
    """Encode and decode these pictures on the tokenizer's device, and compare."""
    device = next(tokenizer.parameters()).device
    parts = []
    for batch in batches(numbers, title):
        images = pairs.images(batch, channels=tokenizer.config.channels).to(device)
        codes = tokenizer.encode(images)
        images, decoded = composite(images), composite(tokenizer.decode(codes))
        with autocast(device, "auto"):
            distance = lpips(decoded, images).float()
        parts.append(
            Reconstructed(
                psnr=psnr(decoded, images).cpu(),
                ssim=ssim(decoded, images).cpu(),
                perceptual=distance.cpu(),
                counts=torch.bincount(codes.flatten(), minlength=tokenizer.config.codebook_size).cpu(),
            )
        )
    return Reconstructed.cat(parts)


def _reconstruct_all(
    splits: Mapping[str, PairShards], tokenizer: AnyImageTokenizer, device: torch.device
) -> dict[str, Numbers]:
    lpips = LPIPS().to(device)
    parts = {}
    for name, pairs in splits.items():
        chosen = evenly(len(pairs), len(pairs) if _is_val(name) else NUM_RECONSTRUCTED)
        parts[name] = reconstruct(pairs, chosen, tokenizer, lpips, f"reconstruct {name}")
    return _with_all_val(parts, Reconstructed.cat, Reconstructed.numbers)


def main() -> None:
    with exit_on_mistake():
        tyro.cli(evaluate, prog="python -m training.evaluate")


if __name__ == "__main__":
    main()
