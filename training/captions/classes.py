"""Captions of class-conditional models: a caption is the number of a class, or its name in a file of names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dalle.errors import DataError
from dalle.text.classes import ClassTokenizer

__all__ = ["class_captions", "read_class_names"]


def read_class_names(path: Path | None, num_classes: int) -> dict[str, list[int]]:
    """The classes of each name, in lower case. The file has a name a line, the first of which is class 0; None for no
    names. Raises `DataError` for a file that cannot be read, and for more names than classes."""
    if path is None:
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(lines) > num_classes:
        raise DataError(f"{path} has {len(lines)} names; the model has {num_classes} classes")
    names: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        names.setdefault(line.strip().lower(), []).append(number)
    return names


def class_captions(
    metadata: Mapping[str, Any], tokenizer: ClassTokenizer, names: Mapping[str, Sequence[int]], id: str
) -> list[str]:
    """The numbers of the classes that a pair's captions say, in their order, as prompts. Other captions are left out.

    Raises `DataError`, with the pair's id, if no caption is a class, or if it is a name of several classes.
    """
    found = []
    for caption in metadata["captions"]:
        word = caption.strip().lower()
        numbers = [int(word)] if word.isascii() and word.isdigit() else names.get(word, [])
        if len(numbers) > 1:
            raise DataError(f"pair {id}: {word!r} is the name of classes {', '.join(map(str, numbers))}: say a number")
        found += [str(number) for number in numbers if number < tokenizer.num_classes]
    if not found:
        raise DataError(
            f"pair {id}: the caption {metadata['captions'][0][:80]!r} is no class: the model draws classes, so that a "
            f"caption is a number in 0..{tokenizer.num_classes - 1}, or a name in the file of --class-names"
        )
    return found
