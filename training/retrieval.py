"""Measure a CLIP model. `python -m training.retrieval MODEL` writes `table.md` and `numbers.json`.

For each split: recall at 1 and 5 of pictures for prompts and of prompts for pictures, with the prompts of training and
with natural ones (`training.captions.phrasing`), and the accuracy with which the model names a picture's style and
group among all of them, without a head of its own. Pictures are compared within their split; a prompt names the style.

For each validation split also: how often the nearest training picture has the same style and group, by the model's
image encoder and by features of VGG16.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from dalle.checkpoint.clip import find_clip, load_clip
from dalle.device import choose_device, keep_memory
from dalle.errors import ParameterError
from dalle.files import atomic_write, check_claimed, check_output, names_in
from training.captions.phrasing import Phrasing
from training.clip_data import PairLabels
from training.command import run_function
from training.evaluate import find_splits
from training.evaluation.features import PictureFeatures, evenly
from training.evaluation.generation import Numbers
from training.evaluation.matching import RECALL_AT, Split, measure_split
from training.evaluation.neighbours import LABELS, Looks, looks_of, neighbour_accuracy
from training.pairs.small_pictures import SmallPictures

__all__ = ["measure"]

NUMBERS_FILE, TABLE_FILE = "numbers.json", "table.md"
PHRASINGS: tuple[Phrasing, ...] = ("training", "natural")


def measure(
    model: Annotated[Path, tyro.conf.arg(metavar="MODEL")],
    /,
    *,
    shards: tuple[str, ...] = ("data/emoji",),
    num: int = 512,
    neighbours: int = 2048,
    out: Path = Path("runs/retrieval"),
    overwrite: bool = False,
    device: str = "auto",
) -> None:
    """Measure a CLIP directory on picture-caption shards.

    Args:
        model: CLIP directory, as `python -m training.clip` writes it, or the name of one in the package.
        shards: Picture-caption shards: tar files, folders, glob patterns or URLs. Files named val*.tar are validation
            splits.
        num: Largest number of pictures of each split, evenly spaced. Recall is higher among fewer pictures.
        neighbours: Number of training pictures, evenly spaced, among which the nearest one of each validation picture
            is looked for; 0 leaves that out, and with it the minutes that VGG16 takes on a CPU.
        out: Folder for the report.
        overwrite: Replace the report that is in OUT. Nothing else is replaced.
        device: Device of the evaluation: `auto` (CUDA if it is available), `cpu` or `cuda`.
    """
    if num < 1:
        raise ParameterError(f"num is {num}; it must be at least 1")
    if neighbours < 0:
        raise ParameterError(f"neighbours is {neighbours}; it must be 0 or more")
    check_claimed(out, names_in(out), NUMBERS_FILE, (TABLE_FILE,))
    check_output(out / NUMBERS_FILE, "a report", _why_foreign, overwrite=overwrite)
    keep_memory()
    place = choose_device(device)
    clip = load_clip(find_clip(model))
    network = clip.network.to(place)
    found = find_splits(shards)
    labels = {name: PairLabels(pairs) for name, pairs in found.items()}
    styles, groups = (
        sorted({one for each in labels.values() for one in getattr(each, key)} - {""}) for key in ("styles", "groups")
    )
    rows: dict[str, Numbers] = {}
    training_splits = [name for name in found if not name.startswith("val")]
    embed = PictureFeatures(place) if neighbours and training_splits and len(found) > len(training_splits) else None
    looks: dict[str, Looks] = {}
    for name in sorted(found, key=lambda name: not name.startswith("val")):
        pairs, numbers = found[name], evenly(len(found[name]), num)
        pictures = SmallPictures.of_pairs(pairs, network.config.vision.image_size, keep=False)
        split = Split(pairs, numbers, pictures, labels[name])
        if embed is not None:
            some = evenly(len(pairs), neighbours) if name in training_splits else numbers
            looks[name] = looks_of(network, embed, pairs, pictures, labels[name], some, f"compare {name}")
        rows[name] = measure_split(network, clip.text_tokenizer, split, PHRASINGS, styles, groups, "float32")
    chances = {name: 1 / len(all) if all else None for name, all in (("style", styles), ("group", groups))}
    near = {
        name: neighbour_accuracy(looks[name], looks[training_splits[0]]) for name in looks if name.startswith("val")
    }
    report = {
        "model": {"path": str(model), "name": clip.name, "digest": clip.digest},
        "settings": {"shards": list(shards), "num": num, "neighbours": neighbours},
        "retrieval": rows,
        "neighbours": near,
        "zero_shot_chance": chances,
    }
    table = _table(f"# {clip.name}, {clip.digest[:12]}", rows, chances)
    if near:
        table += "\n" + _neighbour_table(near, len(looks[training_splits[0]].style))
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / NUMBERS_FILE, json.dumps(report, indent=2) + "\n")
    atomic_write(out / TABLE_FILE, table)
    print(table)


def _why_foreign(path: Path) -> str | None:
    try:
        found = {*json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, RecursionError):
        found = set()
    return None if {"model", "settings", "retrieval"} <= found else "it is no report of this program"


def _share(value: float | int | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _table(title: str, rows: Mapping[str, Numbers], chances: Mapping[str, float | None]) -> str:
    """The report as Markdown."""

    names = [f"{direction} R@{k}" for direction in ("text to image", "image to text") for k in RECALL_AT]
    keys = [f"{direction}_{k}" for direction in ("text_to_image", "image_to_text") for k in RECALL_AT]
    lines = [["split", "pictures", *names, "style", "group"], ["---", *["---:"] * (len(names) + 3)]]
    for split, row in rows.items():
        cells = [
            f"{_share(row[key])} / {_share(row[f'natural_{key}'])} / {_share(row[f'chance_{key[-1]}'])}" for key in keys
        ]
        lines.append([split, str(row["pictures"]), *cells, _share(row["style"]), _share(row["group"])])
    text = (
        "Shares in %. Recall: prompts in training / natural phrasing / random guess. Zero-shot style and group: "
        f"a random guess has {_share(chances['style'])} and {_share(chances['group'])}."
    )
    return "\n\n".join([title, text, _markdown(lines)]) + "\n"


def _neighbour_table(rows: Mapping[str, Numbers], num: int) -> str:
    lines = [["split", "style", "group"], ["---", "---:", "---:"]]
    for split, row in rows.items():
        keys = (" / ".join(_share(row[f"{who}_{label}"]) for who in ("clip", "vgg", "chance")) for label in LABELS)
        lines.append([split, *keys])
    text = (
        f"Shares in % of pictures whose nearest one of {num} training pictures has the same style or group: by this "
        "model's image encoder / by VGG16 / a random training picture."
    )
    return "\n\n".join([text, _markdown(lines)]) + "\n"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    run_function(measure, "training.retrieval")


if __name__ == "__main__":
    main()
