"""The data of the translator: names and phrases in French, Korean, German, Spanish and Japanese with their English.
`python -m training.translation_data` writes

    train.jsonl         names and phrases to train on
    val_seen.jsonl      names of training in phrases of training, in combinations that it does not have
    val_phrases.jsonl   names of training in phrases that it does not have
    val_concepts.jsonl  names of the 5 % of concepts that are held out in every language, alone and in phrases
    lexicon/            all names by language, which ship with a translator
    lexicon-seen/       the same without what is held out, for measurements
    NOTICE              sources and licences

Each line of a JSONL file is an object with language, source, target, kind (`name` or `phrase`), concept (its key) and
masked (whether slots stand for names). The packages are downloaded with npm; neither an account nor a key is needed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dalle.errors import DataError
from dalle.files import atomic_write, check_claimed, names_in
from dalle.translate.languages import LANGUAGES
from training.command import exit_on_mistake, parse
from training.emoji.packages import Packages, fetch_npm
from training.next_step import after_translation_data
from training.run_folder import locked
from training.translation.compose import Line
from training.translation.lexicons import build_lexicon
from training.translation.lines import SPLITS, Concepts, split_lines
from training.translation.notice import notice
from training.translation.sources import INTEGRITY, PACKAGES

__all__ = ["LEXICONS", "SEEN_LEXICONS", "TranslationDataOptions", "build", "main", "write_data"]

BUILD_FILE = "build.json"
LEXICONS, SEEN_LEXICONS = "lexicon", "lexicon-seen"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslationDataOptions:
    """Build the translator's data from Unicode CLDR and packages made from it. The same options give the same bytes."""

    out: Path = Path("data/translation")
    """Output folder. Files of an earlier build there are replaced."""
    packages: Path | None = None
    """Folder for downloaded and unpacked packages, about 250 MB. None: `.packages` in the output folder."""
    phrases: int = 60_000
    """Phrases to train on in each language, beside all names."""
    val: int = 400
    """Lines of each validation split in each language, at most."""

    def __post_init__(self) -> None:
        for name in ("phrases", "val"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} is {getattr(self, name)}; it must be at least 1")


def build(options: TranslationDataOptions) -> None:
    """Download the packages that are missing, and write all files. Raises `DataError` if npm is missing or fails, or a
    package is not the expected one; `CannotWriteError` for a folder with files of another origin."""
    out = options.out
    names = [*(f"{split}.jsonl" for split in SPLITS), LEXICONS, SEEN_LEXICONS, "NOTICE"]
    check_claimed(out, names_in(out), BUILD_FILE, names)
    with locked(out, keep=False):
        write_data(fetch_npm(PACKAGES, options.packages or out / ".packages", INTEGRITY), options)


def write_data(packages: Packages, options: TranslationDataOptions) -> None:
    """Write all files from unpacked packages. Raises `DataError` if one of them lacks a file or states another
    licence."""
    out, text = options.out, notice(packages)
    atomic_write(out / BUILD_FILE, json.dumps(_described(options), indent=2) + "\n")
    concepts = Concepts.of_packages(packages)
    lines: dict[str, dict[str, list[Line]]] = {split: {} for split in SPLITS}
    for language in LANGUAGES:
        found = split_lines(language, concepts, num_phrases=options.phrases, num_val=options.val)
        for split, some in found.items():
            lines[split][language] = some
        for folder, known in ((LEXICONS, concepts.all), (SEEN_LEXICONS, concepts.seen)):
            (out / folder).mkdir(exist_ok=True)
            build_lexicon(language, known).save(out / folder)
        counts = ", ".join(f"{len(some)} of {split}" for split, some in found.items())
        print(f"{LANGUAGES[language]}: {counts}")
    for split, by_language in lines.items():
        atomic_write(out / f"{split}.jsonl", _jsonl(by_language))
    for place in (out, out / LEXICONS, out / SEEN_LEXICONS):
        atomic_write(place / "NOTICE", text)


def _jsonl(by_language: Mapping[str, Iterable[Line]]) -> str:
    return "".join(
        json.dumps({"language": language, **dataclasses.asdict(line)}, ensure_ascii=False) + "\n"
        for language, lines in by_language.items()
        for line in lines
    )


def _described(options: TranslationDataOptions) -> dict[str, Any]:
    words = Path(__file__).with_name("translation")
    digests = {name: hashlib.sha256((words / name).read_bytes()).hexdigest() for name in ("words.tsv", "templates.tsv")}
    return {"packages": dict(PACKAGES), "phrases": options.phrases, "val": options.val, "written here": digests}


def main() -> None:
    with exit_on_mistake():
        options = parse(TranslationDataOptions, "training.translation_data")
        build(options)
        print(after_translation_data(options.out))


if __name__ == "__main__":
    main()
