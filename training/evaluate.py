"""Measure a model directory. `python -m training.evaluate MODEL` writes `table.md`, `numbers.json` and `sheet.png`.

Two things are measured, for each validation split and for the training split:

- reconstruction: what the image tokenizer loses between a picture and its codes. PSNR, SSIM, LPIPS, and the usage of
  the codebook over a whole data set. Pictures with alpha are compared over a white background.
- generation: pictures are drawn for captions, and the nearest real pictures are retrieved: do they have the right
  concept and the right style? The Frechet distance between drawn and real pictures, and precision and recall, are
  those of 256 averaged features of VGG16's block 3, so that a few hundred pictures give a covariance. The distance
  cannot be compared with the FID of the literature, which uses 2,048 features of Inception. The CLIP score is the mean
  cosine between picture and prompt.

Beside each share stand its bounds: the same measure on reconstructions of the real pictures, an upper bound for every
decoder of these codes, and the share of a random guess; beside the CLIP score that of the real pictures. All numbers
are a function of models, shards and settings.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from PIL import Image

from dalle.checkpoint import load_checkpoint
from dalle.checkpoint.clip import find_clip, load_clip
from dalle.checkpoint.vocabulary import usable_vocabulary
from dalle.checkpoint.wording import CaptionWording
from dalle.decoder.sampling import SamplingParams, check_seed
from dalle.defaults import DEFAULT_CLIP
from dalle.device import choose_device, keep_memory
from dalle.errors import DataError, ParameterError
from dalle.files import atomic_file, atomic_write, check_claimed, check_output, names_in
from dalle.vq.kinds import AnyImageTokenizer
from training.captions.phrasing import Phrasing
from training.command import run_function
from training.evaluation.features import PictureFeatures, evenly, load_gallery
from training.evaluation.generation import Drawn, Numbers, draw, judge
from training.evaluation.reconstruction import Reconstructed, reconstruct
from training.evaluation.report import report, sheet
from training.losses.perceptual import LPIPS
from training.pairs.shards import PairShards, find_shards
from training.run_folder import locked

__all__ = ["evaluate", "find_splits"]

ALL_VAL = "all val"
NUMBERS_FILE, TABLE_FILE, SHEET_FILE = "numbers.json", "table.md", "sheet.png"
NUM_RECONSTRUCTED = 512
"""Number of pairs of a training split whose reconstruction is measured; of a validation split, all are."""
SMALLEST_PICTURE = 16
"""Smallest side of a picture in pixels; the output of VGG16's third block is then 4 x 4."""


def evaluate(
    model: Annotated[Path, tyro.conf.arg(metavar="MODEL")],
    /,
    *,
    shards: tuple[str, ...] = ("data/emoji",),
    num: int = 200,
    phrasing: Phrasing = "training",
    wording: bool = True,
    clip: str = DEFAULT_CLIP,
    guidance_scale: float | None = None,
    guidance_schedule: Literal["constant", "linear", "cosine"] | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int = 0,
    out: Path = Path("runs/evaluation"),
    overwrite: bool = False,
    device: str = "auto",
) -> None:
    """Measure a model directory on picture-caption shards. Sampling parameters that are not given are the model's own.

    Args:
        model: Model directory; if it has no decoder, only reconstruction is measured.
        shards: Picture-caption shards: tar files, folders, glob patterns or URLs. Files named val*.tar are validation
            splits.
        num: Largest number of pictures drawn for each split.
        phrasing: Wording of the prompts. `training`: the first caption of each pair. `natural`: other words and
            phrases for the same picture, with synonyms, that never occur in training captions.
        wording: Draw prompts in the wording of the model's captions, as the command line and the service do, if the
            model has a vocabulary with styles. --no-wording measures the decoder alone.
        clip: CLIP directory, or the name of one in the package, for the CLIP score. Scores of different ones cannot be
            compared.
        guidance_scale: Scale of classifier-free guidance; 1 turns it off.
        guidance_schedule: Guidance scale over the codes of a picture: constant, or rising to `guidance_scale` at the
            last code along a line or a cosine.
        temperature: Sampling temperature; 0 takes the likeliest code.
        top_k: Sample from this many likeliest codes; 0 keeps all codes.
        top_p: Sample from the likeliest codes that together have this probability; 1 keeps all codes.
        min_p: Sample from codes with at least this share of the largest probability; 0 keeps all codes.
        seed: Random seed of the first picture drawn in a split; the n-th picture after it has `seed` + n.
        out: Folder for the report. Features of the real pictures are cached in its parent folder.
        overwrite: Replace the report that is in OUT. Nothing else is replaced.
        device: Device of the evaluation: `auto` (CUDA if it is available), `cpu` or `cuda`.
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
    SamplingParams.from_dict(chosen)  # invalid values are refused before minutes are spent
    check_seed(seed)
    if num < 2:
        raise ParameterError(f"num is {num}; it must be at least 2, as a covariance needs two pictures")
    check_claimed(out, names_in(out), NUMBERS_FILE, (TABLE_FILE, SHEET_FILE))
    check_output(out / NUMBERS_FILE, "a report", _why_foreign, overwrite=overwrite)
    keep_memory()
    place = choose_device(device)
    checkpoint = load_checkpoint(model)
    clip_model = load_clip(find_clip(clip))
    params = SamplingParams.from_dict(checkpoint.sampling.to_dict() | chosen)
    vocabulary = usable_vocabulary(model)
    worded = CaptionWording(vocabulary) if wording and vocabulary is not None and vocabulary.styles else None
    splits = find_splits(shards)
    _check_sizes(splits, checkpoint.image_tokenizer.config.image_size)
    checkpoint.image_tokenizer.to(place)

    reconstruction = _reconstruct_all(splits, checkpoint.image_tokenizer, place)
    generation: dict[str, Numbers] = {}
    picture: Image.Image | None = None
    if checkpoint.decoder is not None:
        checkpoint.decoder.to(place)
        clip_model.network.to(place)
        embed = PictureFeatures(place)
        gallery = load_gallery(splits, embed, out.resolve().parent)
        shown = "val_combo" if "val_combo" in splits else next(iter(_val_first(splits)))
        drawn = {}
        for name, pairs in splits.items():
            start = gallery.starts[name]
            drawn[name] = draw(
                *(name, pairs, checkpoint, embed, clip_model, params),
                num=num,
                seed=seed,
                start=start,
                phrasing=phrasing,
                wording=worded,
            )
            if name == shown:
                picture = sheet(drawn[name], pairs)
        generation = _with_all_val(drawn, Drawn.cat, lambda one: judge(gallery, one))

    settings = {
        "shards": list(shards),
        "num": num,
        "seed": seed,
        "phrasing": phrasing,
        "wording": worded is not None,
        "reconstructed": NUM_RECONSTRUCTED,
        "clip": clip_model.name,
        "clip_digest": clip_model.digest,
        **params.to_dict(),
    }
    numbers = {
        "model": {"path": str(model), "name": checkpoint.name, "digest": checkpoint.digest},
        "settings": settings,
        "reconstruction": reconstruction,
        "generation": generation,
    }
    table = report(checkpoint, settings, reconstruction, generation)
    with locked(out, keep=False):
        # first the file by which a later run recognises the others as its own
        atomic_write(out / NUMBERS_FILE, json.dumps(numbers, indent=2) + "\n")
        atomic_write(out / TABLE_FILE, table)
        if picture is None:
            (out / SHEET_FILE).unlink(missing_ok=True)  # an earlier one is of another model
        else:
            with atomic_file(out / SHEET_FILE) as unfinished:
                picture.save(unfinished, format="PNG")
    print(table)


def _why_foreign(path: Path) -> str | None:
    try:
        found = {*json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, RecursionError):
        found = set()
    return None if {"model", "settings", "reconstruction", "generation"} <= found else "it is no report of this program"


def find_splits(shards: Sequence[str]) -> dict[str, PairShards]:
    """The pairs of each split by its name, which is that of its shards without number: `train` for `train-003.tar`."""
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
    """The numbers of each split, validation splits first; after these, the numbers of all validation splits
    together."""
    val = [name for name in parts if _is_val(name)]
    numbers = {name: measure(parts[name]) for name in val}
    if len(val) > 1:
        numbers[ALL_VAL] = measure(cat([parts[name] for name in val]))
    return numbers | {name: measure(parts[name]) for name in parts if name not in val}


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
    run_function(evaluate, "training.evaluate")


if __name__ == "__main__":
    main()
