"""The sets of pictures behind `training.emoji`: where each comes from, what its style is called, who owns it, and the
rules that make captions and sampling weights. No files are read here but the manifest beside this module.

The manifest pins what no rule gives: which pictures are in (besides the neutral one, one of five skin tones for each
concept and set; no two equal pictures in a set), their order, and which are held out. One line of tab-separated fields
for each picture, in the order of sets and, within them, of packages: id, split, and, as a JSON object, the metadata in
which people decided otherwise than the rules of `training.emoji.names`.
"""

import csv
import dataclasses
import gzip
import hashlib
import json
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "CLDR_PACKAGES",
    "SETS",
    "SETS_BY_NAME",
    "SKIN_TONES",
    "Entry",
    "PictureSet",
    "base_of",
    "captions",
    "load_manifest",
    "manifest_digest",
    "spoken",
    "weight",
]

Kind = Literal["emoji", "flag", "icon", "clip art"]

MANIFEST = Path(__file__).with_name("manifest.tsv.gz")
PAIRS_PER_SHARD = 5000
SKIN_TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
STRAIGHT_QUOTES = str.maketrans({"\u2019": "'", "\u201c": '"', "\u201d": '"'})
# Many near-identical pictures with long captions: couples in every combination, and the older families.
CROWDS = re.compile(
    r"family: (wo)?man\b|(couple with heart|kiss|(wo)?men holding hands|people holding hands"
    r"|woman and man holding hands)(:|$)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureSet:
    """One set of pictures in one hand: a package, a style, a licence."""

    name: str
    """First part of the ids of its pictures."""
    package: str
    """An npm package; openclipart is Debian's."""
    version: str
    style: str
    licence: str
    kind: Kind = "emoji"
    weight: float | None = None
    """Sampling weight of every picture, where it does not depend on the picture."""
    render_size: int = 256
    """Side in pixels before the box filter that halves it. Filters make some sets too slow for that: they have 128."""


def _iconify(name: str, version: str, style: str, licence: str, **options: Any) -> PictureSet:
    return PictureSet(
        name=name, package=f"@iconify-json/{name}", version=version, style=style, licence=licence, **options
    )


SETS: tuple[PictureSet, ...] = (
    _iconify("noto", "1.2.9", "noto", "Apache-2.0"),
    _iconify("noto-v1", "1.2.5", "noto blob", "Apache-2.0"),
    _iconify("twemoji", "1.2.5", "twemoji", "CC-BY-4.0"),
    _iconify("fluent-emoji", "1.2.7", "fluent gradient", "MIT", render_size=128),
    _iconify("fluent-emoji-flat", "1.2.6", "fluent flat", "MIT"),
    PictureSet(name="fluent-3d", package="@lobehub/fluent-emoji-3d", version="1.1.0", style="fluent 3d", licence="MIT"),
    _iconify("emojione", "1.2.3", "emojione", "CC-BY-4.0"),
    _iconify("fxemoji", "1.2.2", "firefox os", "Apache-2.0"),
    _iconify("streamline-emojis", "1.2.4", "streamline", "CC-BY-4.0"),
    _iconify("flat-color-icons", "1.2.3", "flat color icon", "MIT", kind="icon", weight=1.0),
    _iconify("fluent-color", "1.2.21", "fluent icon", "MIT", kind="icon", weight=1.0),
    _iconify("circle-flags", "1.2.11", "round flag", "MIT", kind="flag", weight=0.2),
    _iconify("flag", "1.2.12", "square flag", "MIT", kind="flag", weight=0.2),
    PictureSet(
        name="openclipart",
        package="openclipart-svg",
        version="0.18",
        style="clip art",
        licence="CC0/PD",
        kind="clip art",
        weight=0.5,
    ),
    _iconify("icon-park", "1.2.4", "line icon", "Apache-2.0", kind="icon", weight=0.3),
    _iconify("streamline-ultimate-color", "1.2.2", "line color icon", "CC-BY-4.0", kind="icon", weight=0.3),
)
SETS_BY_NAME: Mapping[str, PictureSet] = {picture_set.name: picture_set for picture_set in SETS}
CLDR_PACKAGES: Mapping[str, str] = {
    "cldr-annotations-full": "48.2.0",
    "cldr-annotations-derived-full": "48.2.0",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A picture of the manifest."""

    id: str
    """SET/NAME, where NAME is the picture's own in its package."""
    key: str
    """Its number in the shuffled data set, which names its files in a shard."""
    shard: str
    """Name of its shard, without `.tar`."""
    overrides: Mapping[str, Any]
    """Metadata fields that rules do not give."""

    @property
    def picture_set(self) -> PictureSet:
        return SETS_BY_NAME[self.id.split("/", 1)[0]]

    @property
    def name(self) -> str:
        return self.id.split("/", 1)[1]


def load_manifest(path: Path = MANIFEST) -> list[Entry]:
    """All pictures in the order of their keys: shuffled once and for all, cut into shards of 5000, val splits apart."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    random.Random(0).shuffle(rows)
    entries = []
    num_train = 0
    for number, (id, split, overrides) in enumerate(rows):
        shard = split
        if split == "train":
            shard = f"train-{num_train // PAIRS_PER_SHARD:03d}"
            num_train += 1
        entries.append(
            Entry(id=id, key=f"{number:06d}", shard=shard, overrides=json.loads(overrides) if overrides else {})
        )
    return entries


def manifest_digest(path: Path = MANIFEST) -> str:
    """SHA-256 of the manifest's text."""
    return hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()


def base_of(codepoints: str) -> str:
    """The concept without its skin tones; a skin tone alone is a concept.

    codepoints: as in the data: lower-case hexadecimal of at least four digits, joined by `-`, without the variation
    selector fe0f.
    """
    rest = [codepoint for codepoint in codepoints.split("-") if codepoint not in SKIN_TONES]
    return "-".join(rest) or codepoints


def captions(picture_set: PictureSet, name: str) -> list[str]:
    """Templates filled with a picture's English name: the first is the fullest, the last the name alone."""
    style = picture_set.style
    if picture_set.kind == "clip art":
        return [f"{name}, {style}", f"{style} of {name}", name]
    name = spoken(name)
    plain = [f"{name} in {style} style", name]
    match picture_set.kind:
        case "icon":
            return [f"{name}, {style} style", f"{name} {style}", *plain]
        case "flag":
            return [f"{name}, {style} style", f"a {style} icon of {name}", *plain]
        case "emoji":
            return [f"{name}, {style} style emoji", f"a {style} emoji of {name}", *plain]


def spoken(name: str) -> str:
    """A CLDR name as a person would type it: `flag: Peru` is a flag of Peru, `man: beard` is a man, beard."""
    name = name.translate(STRAIGHT_QUOTES)
    for prefix, said in (("flag: ", "flag of "), ("keycap: ", "keycap ")):
        if name.startswith(prefix):
            return said + name.removeprefix(prefix)
    return name.replace(": ", ", ")


def weight(picture_set: PictureSet, *, name: str, codepoints: str | None, group: str | None) -> float:
    """Sampling weight in (0, 1]: low for what has many pictures and little to teach."""
    if picture_set.weight is not None:
        return picture_set.weight
    if codepoints is None:
        return 1.0
    if group == "flags" or CROWDS.match(name):
        return 0.3
    return 0.5 if group == "symbols" or codepoints != base_of(codepoints) else 1.0
