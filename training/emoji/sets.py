"""The picture sets of `training.emoji`: package, style and licence of each, and the rules for captions and sampling
weights. The only file that is read here is the manifest beside this module.

The manifest has what no rule gives: the selection of pictures (for each concept and set, the neutral one and one of
five skin tones; no two equal pictures in a set), their order, and the pictures that are held out for validation. It has
a line for each picture, in the order of sets and, within a set, of its package, with tab-separated fields: id, split,
and a JSON object with the metadata fields that override the rules of `training.emoji.names`.
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
# Groups of many near-identical pictures with long captions: all combinations of couples, and older families.
CROWDS = re.compile(
    r"family: (wo)?man\b|(couple with heart|kiss|(wo)?men holding hands|people holding hands"
    r"|woman and man holding hands)(:|$)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureSet:
    """A set of pictures: one package, one style, one licence."""

    name: str
    """Name of the set, the first part of the ids of its pictures."""
    package: str
    """Name of the npm package; openclipart-svg is a Debian package."""
    version: str
    style: str
    licence: str
    kind: Kind = "emoji"
    weight: float | None = None
    """Sampling weight of all pictures of the set; None: it depends on the picture."""
    render_size: int = 256
    """Side in pixels at which SVG pictures are rendered; those of 256 are halved with a box filter. Sets whose SVG
    filters are too slow for 256 have 128."""


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
    """One picture of the manifest."""

    id: str
    """Id of the picture: SET/NAME, where NAME is its name in its package."""
    key: str
    """Key of the pair in its shard: its number in the shuffled data set."""
    shard: str
    """Name of the pair's shard, without `.tar`."""
    overrides: Mapping[str, Any]
    """Metadata fields that override those of the rules."""

    @property
    def picture_set(self) -> PictureSet:
        return SETS_BY_NAME[self.id.split("/", 1)[0]]

    @property
    def name(self) -> str:
        return self.id.split("/", 1)[1]


def load_manifest(path: Path = MANIFEST) -> list[Entry]:
    """All pictures in the order of their keys: shuffled with a fixed seed, in training shards of 5000 and validation
    splits."""
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
    """The code points without skin tones; those of a skin tone alone stay unchanged.

    codepoints: lower-case hexadecimal of at least four digits, joined by `-`, without the variation selector fe0f.
    """
    rest = [codepoint for codepoint in codepoints.split("-") if codepoint not in SKIN_TONES]
    return "-".join(rest) or codepoints


def captions(picture_set: PictureSet, name: str) -> list[str]:
    """The captions of a picture from its English name: the first has the full style, the last is the name alone."""
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
    """A CLDR name without its colon: `flag: Peru` gives `flag of Peru`, and `man: beard` gives `man, beard`."""
    name = name.translate(STRAIGHT_QUOTES)
    for prefix, said in (("flag: ", "flag of "), ("keycap: ", "keycap ")):
        if name.startswith(prefix):
            return said + name.removeprefix(prefix)
    return name.replace(": ", ", ")


def weight(picture_set: PictureSet, *, name: str, codepoints: str | None, group: str | None) -> float:
    """Sampling weight of a picture in (0, 1]; it is low in groups of many similar pictures."""
    if picture_set.weight is not None:
        return picture_set.weight
    if codepoints is None:
        return 1.0
    if group == "flags" or CROWDS.match(name):
        return 0.3
    return 0.5 if group == "symbols" or codepoints != base_of(codepoints) else 1.0
