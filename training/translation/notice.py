"""The NOTICE beside the translator's data and lexicons: sources and licences, as the packages state them."""

from dalle.errors import DataError
from training.emoji.packages import Packages, read_json
from training.translation.sources import PACKAGES

__all__ = ["LICENCES", "notice"]

LICENCES = {
    "cldr-annotations-full": "Unicode-3.0",
    "cldr-annotations-derived-full": "Unicode-3.0",
    "cldr-localenames-full": "Unicode-3.0",
    "emojibase-data": "MIT",
    "i18n-iso-countries": "MIT",
}
"""The licence that each package must state."""
IN_THE_DATA = {
    "cldr-annotations-full": "names and keywords of emoji",
    "cldr-annotations-derived-full": "names of emoji with skin tones, and of flags",
    "cldr-localenames-full": "names of regions and languages",
    "emojibase-data": "names of groups and skin tones",
    "i18n-iso-countries": "further names of countries",
}
TEXT = """\
Names and phrases in French, Korean, German, Spanish and Japanese with their English, made from the packages below by
`python -m training.translation_data`. Changes: names in Unicode form NFKC with straight quotes, put into phrases; words
paired by the keywords that they occur with. Phrases and further words were written for this project, and have its
licence. A translator that is trained on the data carries this file, as do the lexicons, which hold the names.

Not in the data: the translation catalogues of LibreOffice (Debian's libreoffice-l10n packages). The Mozilla Public
License 2.0 asks that modifications of its files stay under it, and does not say whether weights that are trained on
them are such; and texts of menus have little to do with pictures.
"""


def notice(packages: Packages) -> str:
    """The text of the NOTICE. Raises `DataError` if a package states another licence than this module has for it."""
    parts = [TEXT]
    texts: dict[str, list[str]] = {}
    for package, version in PACKAGES.items():
        folder = packages.folders[package]
        said = read_json(folder / "package.json")
        if said.get("license") != LICENCES[package]:
            raise DataError(
                f"{package} {version} states the licence {said.get('license')!r}, not {LICENCES[package]!r}"
            )
        author = said.get("author", "")
        name = author if isinstance(author, str) else author.get("name", "")
        lines = [f"{package} {version}", f"  in the data:  {IN_THE_DATA[package]}", f"  author:       {name}"]
        parts.append("\n".join([*lines, f"  licence:      {said['license']}"]) + "\n")
        try:
            text = (folder / "LICENSE").read_text(encoding="utf-8").strip()
        except OSError as error:
            raise DataError(f"{folder} has no LICENSE ({error}): delete it and try again") from error
        texts.setdefault(text, []).append(package)
    for text, owners in texts.items():
        parts.append(f"{'-' * 100}\nEnclosed with {', '.join(owners)}:\n\n{text}\n")
    return "\n".join(parts)
