"""Names of pictures: their code points, and the names and keywords that Unicode CLDR has for these.

Sets whose pictures are named by words are joined with CLDR by slug: lower-case words with hyphens. Icons and clip art
have no code points; they keep their own names.
"""

import dataclasses
import html
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dalle.errors import DataError
from training.emoji.packages import IconSet, Packages, read_json
from training.emoji.sets import CLDR_PACKAGES, SETS_BY_NAME, SKIN_TONES, Entry, base_of, captions, weight

__all__ = ["Annotation", "Names", "clip_art_path", "clip_art_text", "load_annotations", "slug"]

LANGUAGES = ("fr", "ko", "de", "es", "ja")
# These sets have the code points of their pictures. The gradient set has the same names as the flat one.
SETS_WITH_CODEPOINTS = ("twemoji", "noto", "fluent-emoji-flat")
SETS_WITH_ALIASES = ("noto", "noto-v1", "twemoji", "fluent-emoji", "fluent-emoji-flat", "emojione")
CODEPOINTS_OF = {
    "noto": "noto",
    "twemoji": "twemoji",
    "fluent-emoji": "fluent-emoji-flat",
    "fluent-emoji-flat": "fluent-emoji-flat",
}
BALD = "1f9b2"
FIRST_REGIONAL_INDICATOR = 0x1F1E6
TRAILING_NUMBERS = re.compile(r"(-\d+)+$")
TRAILING_COUNTS = re.compile(r"(-(\d+|one|two|three|four|five|six))+$")
COLLECTION_TITLE = re.compile(r"clip ?art|collection", re.IGNORECASE)
MEANINGLESS_KEYWORDS = {
    "hash",
    "unsorted",
    "svg",
    "openclipart",
    "cartoon",
    "color",
    "colour",
    "architetto francesco rollandin",
}
KEYWORD_LENGTHS = range(3, 25)


@dataclasses.dataclass(frozen=True)
class Annotation:
    """Name and keywords in CLDR of one character or sequence, in one language."""

    name: str
    keywords: tuple[str, ...]


def load_annotations(folders: Sequence[Path], language: str) -> dict[str, Annotation]:
    """Annotations by code points, from the CLDR packages in these folders; those of later folders take precedence.

    Raises `DataError` if a package lacks the language.
    """
    annotations = {}
    for folder in folders:
        paths = list(folder.glob(f"annotations*/{language}/annotations.json"))
        if not paths:
            raise DataError(f"{folder} has no annotations for {language}: delete it and try again")
        (content,) = read_json(paths[0]).values()
        for text, fields in content["annotations"].items():
            if "tts" in fields:
                annotations[codepoints_of(text)] = Annotation(fields["tts"][0], tuple(fields.get("default", ())))
    return annotations


def codepoints_of(text: str) -> str:
    """The code points of a text as lower-case hexadecimal of at least four digits, joined by `-`, without variation
    selectors."""
    return "-".join(f"{ord(character):04x}" for character in text if character != "\ufe0f")


def slug(name: str) -> str:
    """A name as lower-case ASCII words with hyphens."""
    name = name.replace("&", "and").replace("\u2019", "").replace("'", "")
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def clip_art_path(packages: Packages, name: str) -> Path:
    """The SVG file of a picture in the package openclipart-svg."""
    return packages.folders[SETS_BY_NAME["openclipart"].package] / "usr/share/openclipart/svg" / name


def clip_art_text(svg: str, name: str) -> tuple[str, list[str]]:
    """Name and keywords of a clip art picture. The name is its title or, if that is the title of a collection, the name
    of its file."""
    found = re.search(r"<dc:title>(.*?)</dc:title>", svg, re.DOTALL)
    title = html.unescape(found[1]) if found else ""
    if not title.strip() or COLLECTION_TITLE.search(title):
        title = re.sub(r"_\d+$", "", name.rsplit("/", 1)[-1].removesuffix(".svg")).replace("_", " ")
    said = re.sub(r"\s+", " ", re.sub(r"\d+", "", title.lower())).strip(" -.")
    keywords: list[str] = []
    for raw in re.findall(r"<rdf:li(?: [^>]*)?(?<!/)>(.*?)</rdf:li>", svg, re.DOTALL):
        keyword = raw.strip().lower().replace("_", " ")
        if len(keyword) in KEYWORD_LENGTHS and keyword not in MEANINGLESS_KEYWORDS and keyword not in keywords:
            keywords.append(keyword)
    return said, keywords


class Names:
    """Code points, names, keywords and groups of all pictures."""

    def __init__(self, packages: Packages) -> None:
        self._packages = packages
        folders = [packages.folders[package] for package in CLDR_PACKAGES]
        self._english = load_annotations(folders, "en")
        self._foreign = {language: load_annotations(folders, language) for language in LANGUAGES}
        icon_sets = {name: packages.icons(SETS_BY_NAME[name].package) for name in SETS_WITH_ALIASES}
        self._codepoints = {
            name: {said: plain_codepoints(sequence) for sequence, said in icon_sets[name].chars.items()}
            for name in SETS_WITH_CODEPOINTS
        }
        self._groups = self._group_table(icon_sets)
        self._slugs = self._slug_table(icon_sets)
        self._words = {said.replace("-", ""): codepoints for said, codepoints in reversed(self._slugs.items())}

    def _group_table(self, icon_sets: Mapping[str, IconSet]) -> dict[str, str]:
        groups: dict[str, str] = dict.fromkeys((*SKIN_TONES, BALD), "components")
        for name in SETS_WITH_CODEPOINTS:
            for category, pictures in icon_sets[name].categories.items():
                for picture in pictures:
                    if picture in self._codepoints[name]:
                        groups.setdefault(self._codepoints[name][picture], category.lower())
        return groups

    def _slug_table(self, icon_sets: Mapping[str, IconSet]) -> dict[str, str]:
        """Code points by slug, in order of precedence: names of CLDR, names of the sets, and aliases of the sets."""
        slugs: dict[str, str] = {}
        for codepoints, annotation in self._english.items():
            slugs.setdefault(slug(annotation.name), codepoints)
        for name in SETS_WITH_CODEPOINTS:
            for said, codepoints in self._codepoints[name].items():
                slugs.setdefault(said, codepoints)
        links = [
            (alias, fields["parent"])
            for icons in icon_sets.values()
            for alias, fields in icons.aliases.items()
            if set(fields) == {"parent"}
        ]
        known = 0
        while known < len(slugs):
            known = len(slugs)
            for first, second in links:
                for said, other in ((first, second), (second, first)):
                    if said in slugs:
                        slugs.setdefault(other, slugs[said])
        return slugs

    def codepoints(self, entry: Entry) -> str | None:
        """Code points of a picture; None if CLDR has no name for it."""
        picture_set = entry.picture_set
        if picture_set.kind in ("icon", "clip art"):
            return None
        found = self._joined(picture_set.name, entry.name)
        return found if found is not None and (found in self._english or _letter(found)) else None

    def _joined(self, set_name: str, name: str) -> str | None:
        match set_name:
            case "fluent-3d":
                return plain_codepoints(name)
            case "flag" | "circle-flags":
                return _flag(name.removesuffix("-1x1"))
            case "fxemoji":
                return self._words.get(name)
        table = self._codepoints.get(CODEPOINTS_OF.get(set_name, ""), {})
        name = name.replace("flag-for-", "flag-")
        for said in (name, TRAILING_NUMBERS.sub("", name), f"flag-{name}"):
            if found := table.get(said) or self._slugs.get(said):
                return found
        return None

    def metadata(self, entry: Entry) -> dict[str, Any]:
        """The JSON metadata of a pair: id, style, licence, name_en, keywords_en, codepoints, base, group, captions,
        weight, names. Fields that the manifest overrides also determine the fields that are derived from them."""
        picture_set, decided = entry.picture_set, entry.overrides
        codepoints = decided["codepoints"] if "codepoints" in decided else self.codepoints(entry)
        name, keywords = self._name_and_keywords(entry, codepoints)
        name = decided.get("name_en", name)
        # some annotations have their name as the only keyword; it is kept then
        others = [keyword for keyword in keywords if keyword != name]
        keywords = decided.get("keywords_en", others if others or codepoints is None else keywords)
        group = None if codepoints is None or _letter(codepoints) else self._groups.get(codepoints)
        return {
            "id": entry.id,
            "style": picture_set.style,
            "licence": picture_set.licence,
            "name_en": name,
            "keywords_en": keywords,
            "codepoints": codepoints,
            "base": f"name:{slug(name)}" if codepoints is None else base_of(codepoints),
            "group": group,
            "captions": captions(picture_set, name),
            "weight": weight(picture_set, name=name, codepoints=codepoints, group=group),
            "names": {
                language: annotations[codepoints].name
                for language, annotations in self._foreign.items()
                if codepoints in annotations
            },
        }

    def _name_and_keywords(self, entry: Entry, codepoints: str | None) -> tuple[str, list[str]]:
        if codepoints is not None:
            if codepoints in self._english:
                annotation = self._english[codepoints]
                return annotation.name, list(annotation.keywords)
            assert _letter(codepoints), codepoints
            return f"regional indicator {chr(int(codepoints, 16) - FIRST_REGIONAL_INDICATOR + ord('A'))}", []
        if entry.picture_set.kind == "clip art":
            path = clip_art_path(self._packages, entry.name)
            try:
                return clip_art_text(path.read_text(encoding="utf-8", errors="replace"), entry.name)
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error}") from error
        numbers = TRAILING_COUNTS if entry.picture_set.name == "icon-park" else TRAILING_NUMBERS
        return numbers.sub("", entry.name).replace("-", " "), []


def plain_codepoints(sequence: str) -> str:
    """Code points in the notation of a package -> in that of the data: at least four digits, no variation selectors."""
    return "-".join(codepoint.zfill(4) for codepoint in sequence.split("-") if codepoint != "fe0f")


def _flag(code: str) -> str:
    """Code points of the flag of an ISO 3166 code: two letters, or a region such as `gb-eng`."""
    if len(code) == 2:
        return "-".join(f"{FIRST_REGIONAL_INDICATOR + ord(letter) - ord('a'):x}" for letter in code)
    return "-".join(["1f3f4", *(f"e00{ord(letter):02x}" for letter in code.replace("-", "")), "e007f"])


def _letter(codepoints: str) -> bool:
    return "-" not in codepoints and 0 <= int(codepoints, 16) - FIRST_REGIONAL_INDICATOR < 26
