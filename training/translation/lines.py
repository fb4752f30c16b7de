"""All lines of the translator's data: which concepts are trained on, and which lines each split has."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dalle.errors import DataError
from dalle.translate.languages import LANGUAGES, clean, folded
from training.emoji.packages import Packages
from training.translation.compose import Composer, Line
from training.translation.keywords import paired_words
from training.translation.lexicons import unambiguous
from training.translation.sources import Concept, annotations_of, is_held_out, load_concepts
from training.translation.words import nouns_of

__all__ = ["SPLITS", "Concepts", "read_lines", "split_lines"]

SPLITS = ("train", "val_seen", "val_phrases", "val_concepts")


@dataclasses.dataclass(frozen=True)
class Concepts:
    """All concepts, divided."""

    seen: Sequence[Concept]
    """Concepts to train on."""
    held_out: Sequence[Concept]
    """Concepts of validation."""
    left_out: Sequence[Concept]
    """Everyday nouns with a name of a concept that is held out: in no line, but in the lexicons that ship."""

    @property
    def all(self) -> Sequence[Concept]:
        """All concepts, those of the lexicons that ship."""
        return [*self.seen, *self.held_out, *self.left_out]

    @classmethod
    def of_packages(cls, packages: Packages) -> "Concepts":
        """The concepts of packages, and those of everyday nouns and paired keywords.

        A keyword with a name of a held-out concept, in any language, is left out.
        """
        concepts = load_concepts(packages)
        seen = [one for one in concepts if not is_held_out(one.key)]
        held_out = [one for one in concepts if is_held_out(one.key)]
        taken = {(language, _plain(name, language)) for one in held_out for language, name in _all_names(one)}
        nouns = [Concept(f"noun:{english}", "word", english, names) for english, names in nouns_of().items()]
        left_out = [one for one in nouns if taken & {(code, _plain(name, code)) for code, name in _all_names(one)}]
        seen += [one for one in nouns if one not in left_out]
        taken |= {(language, _plain(name, language)) for one in seen for language, name in _all_names(one)}
        english = annotations_of(packages, "en")
        for language in LANGUAGES:
            for word, said in paired_words(english, annotations_of(packages, language)).items():
                if not {(language, _plain(word, language))} & taken:
                    seen.append(Concept(f"keyword:{said}", "word", said, {language: (word,)}))
        return cls(seen, held_out, left_out)


def _all_names(concept: Concept) -> Iterator[tuple[str, str]]:
    yield "en", concept.english
    for language, names in concept.names.items():
        for name in names:
            yield language, name


def _plain(text: str, language: str) -> str:
    return folded(clean(text), language).strip(" .!?。")


def split_lines(language: str, concepts: Concepts, *, num_phrases: int, num_val: int) -> dict[str, list[Line]]:
    """The lines of one language by split. No source occurs in two of them, and no source of training is the name of a
    concept that is held out.

    num_phrases: phrases of training, beside all names. num_val: lines of each split of validation.
    """
    composer = Composer(language, unambiguous(language, concepts.seen))
    others = Composer(language, unambiguous(language, concepts.held_out))
    held_names = {_plain(line.source, language) for line in others.names()}
    train = _unique(composer.names(), held_names, language)
    sources = {_plain(line.source, language) for line in train}
    phrases = (composer.phrase("train", number, masks=True) for number in range(num_phrases))
    train += [line for line in phrases if _plain(line.source, language) not in held_names]
    known = sources | {_plain(line.source, language) for line in train}
    found = {"train": train}
    for split, held in (("val_seen", False), ("val_phrases", True)):
        drawn = (composer.phrase(split, number, held_out=held) for number in range(num_val))
        found[split] = _unique(drawn, known, language)
    names = [*others.names()]
    step = max(1, len(names) // max(1, num_val // 2))
    phrases = (others.phrase("val_concepts", number) for number in range(num_val - len(names[::step])))
    found["val_concepts"] = _unique([*names[::step], *phrases], known, language)
    return found


def _unique(lines: Iterator[Line] | Sequence[Line], known: set[str], language: str) -> list[Line]:
    """The lines whose sources are neither known nor among those before."""
    found: dict[str, Line] = {}
    for line in lines:
        key = _plain(line.source, language)
        if key not in known:
            found.setdefault(key, line)
    return [*found.values()]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that `training.translation_data` wrote. Raises `DataError` if it is missing or damaged."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            if not all(isinstance(line[key], str) for key in ("language", "source", "target", "kind", "concept")):
                raise TypeError(f"a line lacks text: {line}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): `python -m training.translation_data` writes such files"
        ) from error
    if not lines:
        raise DataError(f"{path} is empty: `python -m training.translation_data` writes such files")
    return lines
