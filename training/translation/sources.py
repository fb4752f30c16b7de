"""Names of things in six languages, from Unicode CLDR and packages made from it: one `Concept` for each thing.

Names of emoji come from CLDR's annotations, names of regions and languages from its locale display names, further names
of countries from i18n-iso-countries, and names of groups and skin tones from emojibase-data. Words that CLDR has only
among its keywords, such as `apple` beside `red apple`, are found by `training.translation.keywords`.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dalle.translate.languages import LANGUAGES, clean
from training.emoji.names import Annotation, load_annotations
from training.emoji.packages import Packages, read_json
from training.emoji.sets import base_of, spoken

__all__ = ["INTEGRITY", "PACKAGES", "Concept", "Kind", "annotations_of", "is_held_out", "load_concepts"]

Kind = Literal["thing", "tone", "flag", "region", "language", "group", "word"]

PACKAGES: Mapping[str, str] = {
    "cldr-annotations-full": "48.2.0",
    "cldr-annotations-derived-full": "48.2.0",
    "cldr-localenames-full": "48.2.0",
    "emojibase-data": "17.0.0",
    "i18n-iso-countries": "7.14.0",
}
"""Versions of the npm packages."""
INTEGRITY: Mapping[str, str] = {
    name: f"sha512-{digest}"
    for name, digest in zip(
        PACKAGES,
        (
            "DV7A+rEcgUSNTRsVGNGqBZRmAkGfwhGHO5Q1dRwzBoBnVrHWp804JP7/QJdEc66iHmx3+zLWVIMCFLm0lW7PUQ==",
            "log62km+AOzI7n/NEuNNFV0mg9DWnt67EYCh1RwxZq9dyRuyteB586LT83Ke8TchEfnwI9cIk2P31zO4nTvZmw==",
            "4o0paYDz0UXhfhChAVFkmVl2CP0YTSEqE6WrC0fNafaSC5u5DAXphxH3SZ1Ujczarikr8DToKZfiok6EqWLdNQ==",
            "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
            "nXHJZYtNrfsi1UQbyRqm3Gou431elgLjKl//CYlnBGt5aTWdRPH1PiS2T/p/n8Q8LnqYqzQJik3Q7mkwvLokeg==",
        ),
        strict=True,
    )
}
"""Digests of their archives."""

HELD_OUT = 0.05
"""Share of concepts that are held out, in every language."""
FIRST_LETTER = 0x1F1E6
REGION_FLAG = "1f3f4-e00"
"""Code points that flags of regions such as Scotland begin with."""
OPTIONAL_ENDING = re.compile(r"\((in|innen|n|e)\)")
IN_BRACKETS = re.compile(r" ?\([^)]*\)")


@dataclasses.dataclass(frozen=True)
class Concept:
    """One thing with its name in English and its names in other languages."""

    key: str
    """What the thing is in all languages: code points of an emoji, or kind and code. Skin tones have that of their
    base."""
    kind: Kind
    english: str
    """English name, as the captions of the emoji data have it: `flag of Peru`, `woman, light skin tone`."""
    names: Mapping[str, Sequence[str]]
    """Names by language, the usual one first."""


def is_held_out(key: str) -> bool:
    """Whether a concept is held out from training: a function of its key alone, the same in every language."""
    digest = hashlib.sha256(f"held out/{key}".encode()).digest()
    return int.from_bytes(digest[:8]) < HELD_OUT * 2**64


def annotations_of(packages: Packages, language: str) -> dict[str, Annotation]:
    """Names and keywords of emoji by code points. Raises `DataError` if a package lacks the language."""
    folders = [packages.folders[name] for name in PACKAGES if name.startswith("cldr-annotations")]
    return load_annotations(folders, language)


def load_concepts(packages: Packages) -> list[Concept]:
    """All concepts of the packages, those of emoji first, in an order that does not change. Raises `DataError` for a
    package that lacks a file."""
    return [*_emoji(packages), *_groups(packages), *_regions(packages), *_languages(packages)]


def _emoji(packages: Packages) -> list[Concept]:
    english = annotations_of(packages, "en")
    others = {language: annotations_of(packages, language) for language in LANGUAGES}
    concepts = []
    for codepoints, annotation in english.items():
        names = {language: found[codepoints].name for language, found in others.items() if codepoints in found}
        if len(names) < len(LANGUAGES):
            continue
        base = base_of(codepoints)
        region = _region_of(codepoints)
        kind: Kind = "thing" if base == codepoints else "tone"
        if region or codepoints.startswith(REGION_FLAG):
            kind = "flag"
        concepts.append(
            Concept(
                key=f"region:{region}" if region else base,
                kind=kind,
                english=clean(spoken(annotation.name)),
                names={language: _ways(name) for language, name in names.items()},
            )
        )
    return concepts


def _region_of(codepoints: str) -> str | None:
    """The ISO 3166 code of a flag of two regional indicators."""
    letters = [int(one, 16) - FIRST_LETTER for one in codepoints.split("-")]
    return "".join(chr(ord("A") + one) for one in letters) if len(letters) == 2 and 0 <= min(letters) < 26 else None


def _ways(name: str) -> tuple[str, ...]:
    """Ways to write a name: as it is, and, for `Richter(in)` and `Wassermann (Sternzeichen)`, without brackets."""
    name = clean(name)
    both = [OPTIONAL_ENDING.sub("", name), OPTIONAL_ENDING.sub(r"\1", name)] if OPTIONAL_ENDING.search(name) else []
    bare = IN_BRACKETS.sub("", name)
    return tuple(dict.fromkeys([name, *both, *([bare] if bare and not both else [])]))


def _groups(packages: Packages) -> list[Concept]:
    """Names of groups of emoji, such as `food & drink`, and other wordings for skin tones."""
    folder = packages.folders["emojibase-data"]
    messages = {language: read_json(folder / language / "messages.json") for language in ("en", *LANGUAGES)}

    def by_key(language: str, table: str) -> dict[str, str]:
        return {entry["key"]: clean(entry["message"]) for entry in messages[language][table]}

    concepts = []
    for table in ("groups", "subgroups", "skinTones"):
        others = {language: by_key(language, table) for language in LANGUAGES}
        for key, english in by_key("en", table).items():
            names = {language: (found[key],) for language, found in others.items() if key in found}
            concepts.append(Concept(f"{table}:{key}", "group", english, names))
    return concepts


def _display_names(packages: Packages, language: str, table: str) -> dict[str, str]:
    path = packages.folders["cldr-localenames-full"] / "main" / language / f"{table}.json"
    names: dict[str, str] = read_json(path)["main"][language]["localeDisplayNames"][table]
    return {code: clean(name) for code, name in names.items()}


def _regions(packages: Packages) -> list[Concept]:
    """Countries and continents. `-alt-short` and the like are further names."""
    english = _display_names(packages, "en", "territories")
    others = {language: _display_names(packages, language, "territories") for language in LANGUAGES}
    countries = {language: _countries(packages.folders["i18n-iso-countries"], language) for language in LANGUAGES}
    concepts = []
    for code, name in english.items():
        if "-alt-" in code:
            continue
        names = {}
        for language, found in others.items():
            if code in found:
                further = [found[one] for one in sorted(found) if one.startswith(f"{code}-alt-")]
                names[language] = tuple(dict.fromkeys([found[code], *further, *countries[language].get(code, ())]))
        concepts.append(Concept(f"region:{code}", "region", name, names))
    return concepts


def _countries(folder: Path, language: str) -> dict[str, list[str]]:
    countries: dict[str, Any] = read_json(folder / "langs" / f"{language}.json")["countries"]
    return {
        code: [clean(one) for one in ([said] if isinstance(said, str) else said)] for code, said in countries.items()
    }


def _languages(packages: Packages) -> list[Concept]:
    """Languages with a code of two letters."""
    english = _display_names(packages, "en", "languages")
    others = {language: _display_names(packages, language, "languages") for language in LANGUAGES}
    return [
        Concept(
            f"language:{code}",
            "language",
            name,
            {language: (found[code],) for language, found in others.items() if code in found},
        )
        for code, name in english.items()
        if len(code) == 2
    ]
