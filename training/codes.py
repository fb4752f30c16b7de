"""Token shards: `python -m training.codes` encodes pictures as codes and captions as text ids, once, for stage 2.

`training.token_shards` tells what a token shard holds, and reads it.
"""

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from dalle.device import choose_device, keep_memory
from dalle.errors import DataError
from dalle.files import atomic_file, check_output
from dalle.text.tokenizer import PromptTokenizer
from dalle.vq.kinds import AnyImageTokenizer
from training.captions.fitting import caption_source, id_of, some_ids
from training.command import run_function
from training.next_step import after_codes
from training.pairs.problems import MAX_BROKEN, PROBLEMS_FILE, Broken, why_foreign
from training.pairs.shards import PairShards, find_shards
from training.pairs.views import can_be_mirrored, draw_views
from training.run_folder import locked
from training.starting_model import load_stage_1, load_text, start_tokenizers
from training.token_shards import codes_digest

__all__ = ["encode_pairs", "write_token_shards"]

BATCH_SIZE = 32
PAIRS_PER_SHARD = 16384
NAMES = "[0-9][0-9][0-9][0-9][0-9].safetensors"


def _compact(ids: Tensor, vocab_size: int) -> Tensor:
    return ids.to(torch.uint16 if vocab_size <= 2**16 else torch.int32)


@torch.no_grad()
def write_token_shards(
    pairs: PairShards,
    image_tokenizer: AnyImageTokenizer,
    text_tokenizer: PromptTokenizer,
    out: Path,
    *,
    num_captions: int,
    num_views: int = 1,
    mirror: bool = False,
    size: tuple[int, int] | None = None,
    class_names: Path | None = None,
    overwrite: bool = False,
    max_broken: float = MAX_BROKEN,
    seed: int,
    device: torch.device,
) -> list[Path]:
    """Encode all pairs into the files `out/00000.safetensors`, `out/00001.safetensors` and so on. Returns the files.

    Each pair gets `num_views` views: the first is the unchanged picture; the others are moved and scaled, and with
    `mirror` also mirrored if the picture shows no writing. Each pair gets `num_captions` captions, drawn at random by
    `training.captions.draw`; a caption that is too long is drawn again. If no caption of a pair fits, its first one is
    truncated; the ids of these pairs are printed. The files get their names, and files of an earlier call are removed,
    only when all are complete, so that a folder never holds a mixed or incomplete set. Pairs that cannot be read are
    left out, listed in `problems.jsonl`, and counted against `max_broken`, the largest share of them.

    size: (H, W) in pixels to which pictures are cropped and resized; None: they are encoded as they are.
    class_names: file of names for a tokenizer of classes (see `training.captions.classes`).
    Raises `CannotWriteError` if the folder has files of these names that are no token shards or, without `overwrite`,
    any; `DataError` for numbers below 1, for too many broken pairs, and for captions that are no classes.
    """
    for what, number in (("num_captions", num_captions), ("num_views", num_views)):
        if number < 1:
            raise DataError(f"{what} is {number}; it must be at least 1")
    if not 0 <= max_broken < 1:
        raise DataError(f"max_broken is {max_broken}; it must be in [0, 1)")
    captions_of = caption_source(text_tokenizer, class_names, num_captions, seed)
    for earlier in sorted(out.glob(NAMES)):
        check_output(earlier, "a token shard", _why_foreign, overwrite=overwrite)
    check_output(out / PROBLEMS_FILE, "a list of problems", why_foreign, overwrite=True)
    out.mkdir(parents=True, exist_ok=True)
    image_tokenizer = image_tokenizer.to(device).eval()
    stamp = {"codes_digest": codes_digest(image_tokenizer), "text_digest": text_tokenizer.digest}
    written: list[Path] = []
    broken = Broken(file=out / PROBLEMS_FILE, num_pairs=len(pairs) + len(pairs.problems), max_share=max_broken)
    with locked(out, keep=False), ExitStack() as unfinished:
        broken.clear()
        broken.add(*pairs.problems)
        for tensors in _encoded(
            pairs,
            broken,
            image_tokenizer,
            text_tokenizer,
            captions_of,
            num_captions=num_captions,
            num_views=num_views,
            mirror=mirror,
            size=size,
            seed=seed,
            device=device,
        ):
            path = out / f"{len(written):05d}.safetensors"
            part = unfinished.enter_context(atomic_file(path, part=path.with_suffix(".part")))
            save_file(tensors, part, stamp)
            _order_header(part)
            written.append(path)
        for earlier in out.glob(NAMES):
            earlier.unlink()
    if num_broken := len(broken):
        print(f"{num_broken} of {broken.num_pairs} pairs are broken and left out, see {broken.file}")
    return written


def _order_header(path: Path) -> None:
    """Put the metadata in a safetensors file in the order of their names. The library writes them in any order, but
    equal pairs must give equal files: the digest of the data is computed from them."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        assert len(ordered) == size
        file.seek(8)
        file.write(ordered)


def _why_foreign(path: Path) -> str | None:
    try:
        with safe_open(path, framework="pt") as file:
            stamp = file.metadata() or {}
    except (OSError, SafetensorError):
        return "it is not a safetensors file"
    return None if "codes_digest" in stamp else "its header has no digest of codes"


def _encoded(
    pairs: PairShards,
    broken: Broken,
    image_tokenizer: AnyImageTokenizer,
    text_tokenizer: PromptTokenizer,
    captions_of: Callable[[dict[str, Any], int], list[str]],
    *,
    num_captions: int,
    num_views: int,
    mirror: bool,
    size: tuple[int, int] | None,
    seed: int,
    device: torch.device,
) -> Iterator[dict[str, Tensor]]:
    """The tensors of each token shard. Arguments and errors are those of `write_token_shards`."""
    truncated: list[str] = []
    bar = tqdm(total=len(pairs), desc="encode", unit="pair")
    for start in range(0, len(pairs), PAIRS_PER_SHARD):
        numbers = range(start, min(start + PAIRS_PER_SHARD, len(pairs)))
        codes, text_ids, kept = [], [], []
        for first in range(numbers.start, numbers.stop, BATCH_SIZE):
            asked = range(first, min(first + BATCH_SIZE, numbers.stop))
            batch, images = pairs.readable(asked, channels=image_tokenizer.config.channels, size=size, broken=broken)
            bar.update(len(asked))
            if images is None:
                continue
            images = images.to(device)
            kept += batch
            sided = [mirror and can_be_mirrored(pairs.metadata(number)) for number in batch]
            views = [images]
            for view in range(1, num_views):
                views.append(draw_views(images, sided, np.random.default_rng([seed, first, view])))
            codes.append(torch.stack([image_tokenizer.encode(view).cpu() for view in views], dim=1))
            captions = []
            for number in batch:
                metadata = pairs.metadata(number)
                found = captions_of(metadata, number)
                if not found:
                    found = [str(metadata["captions"][0])] * num_captions
                    truncated.append(id_of(metadata, number))
                captions += found
            with warnings.catch_warnings(action="ignore"):  # truncated captions are reported at the end
                ids = text_tokenizer.encode_batch(captions, truncate=True)
            text_ids.append(ids.unflatten(0, (len(batch), num_captions)))
        if not kept:
            continue
        yield {
            "codes": _compact(torch.cat(codes), image_tokenizer.config.codebook_size),
            "text_ids": _compact(torch.cat(text_ids), text_tokenizer.vocab_size),
            "weights": torch.tensor(pairs.weights[kept], dtype=torch.float32),
        }
    bar.close()
    if truncated:
        print(
            f"{len(truncated)} pairs have only captions of more than {text_tokenizer.max_tokens} tokens; the first one "
            f"is truncated: {some_ids(truncated)}"
        )


def _say_enlarged(pairs: PairShards, size: tuple[int, int]) -> None:
    """Print a note if the pictures are smaller than those that the model draws, by the first that can be read."""
    for number in range(len(pairs)):
        with contextlib.suppress(DataError):
            height, width = pairs.picture(number).shape[1:]
            if height < size[0] or width < size[1]:
                print(
                    f"note: pictures of {height} x {width} pixels are enlarged to the model's {size[0]} x {size[1]}: "
                    f"build the shards with python -m training.folder --size {max(size)} if yours are larger"
                )
            return


def encode_pairs(
    shards: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[SHARDS ...]")] = ("data/emoji/train-*.tar",),
    /,
    *,
    image_tokenizer: Path = Path("runs/vq-emoji/model"),
    text_tokenizer: Path = Path("runs/bpe/tokenizer.json"),
    model: str | None = None,
    text_encoder: Path | None = None,
    class_names: Path | None = None,
    out: Path = Path("runs/codes/train"),
    num_captions: int = 32,
    num_views: int = 1,
    mirror: bool = False,
    overwrite: bool = False,
    max_broken: float = MAX_BROKEN,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Encode picture-caption shards as token shards for stage 2.

    Args:
        shards: Picture-caption shards: tar files, folders, glob patterns or URLs.
        image_tokenizer: Model directory of stage 1, which encodes the pictures.
        text_tokenizer: Text tokenizer that encodes the captions, the `tokenizer.json` of `python -m training.bpe`.
        model: Model to fine-tune, by name or path, imported ones included: its tokenizers are used in the place of
            those two, and pictures are cropped and resized to the size that it draws.
        text_encoder: Folder of the T5 whose features condition MODEL (LlamaGen's t2i). Token shards hold its text ids.
        class_names: Text file for a MODEL that draws classes, with the name of a class on each line, the first of class
            0. Captions are then names or numbers of classes.
        out: Folder for the token shards.
        num_captions: Captions drawn for each picture; a training step picks one of them at random.
        num_views: Views of each picture: the picture itself, and others slightly moved and scaled; a training step
            picks one of them at random.
        mirror: Mirror half of the moved views of a picture whose English name suggests neither writing nor sides.
        overwrite: Replace the token shards that are in OUT. Nothing else is replaced.
        max_broken: Largest share of pairs that may be broken. They are left out and listed in problems.jsonl in OUT;
            more of them stop the program.
        seed: Random seed of captions and views.
        device: Device of the image tokenizer: `auto` (CUDA if it is available), `cpu` or `cuda`.
    """
    keep_memory()
    images, text, size = (
        start_tokenizers(model, text_encoder)
        if model is not None
        else (load_stage_1(image_tokenizer), load_text(text_tokenizer), None)
    )
    pairs = PairShards(find_shards(shards), progress=True, max_broken=max_broken)
    if size is not None:
        _say_enlarged(pairs, size)
    written = write_token_shards(
        pairs,
        images,
        text,
        out,
        num_captions=num_captions,
        num_views=num_views,
        mirror=mirror,
        size=size,
        class_names=class_names,
        overwrite=overwrite,
        max_broken=max_broken,
        seed=seed,
        device=choose_device(device),
    )
    print(f"{len(written)} token shard{'s' * (len(written) != 1)} in {out}")


def main() -> None:
    run_function(encode_pairs, "training.codes", after_codes)


if __name__ == "__main__":
    main()
