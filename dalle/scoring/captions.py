"""Picture files and their prompts: of an option, a receipt, a file beside the picture, or the picture's own name."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TextIO

from dalle.errors import ImageError, ParameterError
from dalle.receipt import Receipt
from dalle.tables import decoding, json_rows, text_rows

__all__ = ["ENDINGS", "Captions", "PromptSource", "find_pictures"]

PromptSource = Literal["option", "receipt", "metadata.jsonl", "text file", "file name"]

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Endings of the files that are taken from folders, in lower or upper case."""
SHEET = "contact-sheet.png"
"""The sheet that `dalle` writes beside pictures, which is no picture of a prompt."""
METADATA: Literal["metadata.jsonl"] = "metadata.jsonl"
FILE_COLUMN = "file_name"
CAPTION_COLUMNS = ("caption", "text", "captions", "prompt", "description")
"""Keys that hold a caption in `metadata.jsonl`, the first one that is there."""
DRAWN_NAME = re.compile(r"(.+)-[0-9a-f]{10}-\d+-\d+")
"""The name that `dalle generate` gives to a file: words of its prompt, a digest, seed and index."""


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """The picture files among these paths, each once: files as they are, and those in folders at any depth, sorted.

    Hidden files, and contact sheets of `dalle`, are taken only if they are named themselves. Raises `ImageError` for a
    path that does not exist, and for a folder without pictures.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(_pictures_in(path))
            if not inside:
                what = "is empty" if not any(path.iterdir()) else f"has no pictures ({' '.join(ENDINGS)})"
                raise ImageError(f"the folder {path} {what}: give one with pictures, or picture files")
            found |= dict.fromkeys(inside)
        elif path.exists():
            found[path] = None
        else:
            raise ImageError(f"there is no {path}")
    return [*found]


def _pictures_in(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in ENDINGS and not hidden and path.name != SHEET and path.is_file():
            yield path


class Captions:
    """The prompts of picture files. Metadata files are read once.

    The first of these that is there decides: the option; the receipt; `metadata.jsonl` in the picture's folder, whose
    lines have `file_name` and `caption` (or `text`, `captions`, `prompt`, `description`), as in Hugging Face's
    imagefolder; the first line of a text file of the same name (`cat.png`, `cat.txt`); and the file's name, in which
    dashes and underscores are spaces.
    """

    def __init__(self, option: str | None = None) -> None:
        """option: the prompt of all pictures. Raises `ParameterError` if it is blank."""
        if option is not None and not option.strip():
            raise ParameterError("the prompt is blank: say what the pictures show, or leave it out")
        self._option = option
        self._tables: dict[Path, dict[str, str]] = {}

    def of(self, path: Path, receipt: Receipt | None) -> tuple[str, PromptSource] | None:
        """The prompt of a picture, and where it is from; None if nothing says it, as in `0001.jpg`."""
        if self._option is not None:
            return self._option, "option"
        if receipt is not None and receipt.prompt.strip():
            return receipt.prompt, "receipt"
        if path.parent not in self._tables:
            self._tables[path.parent] = _read_metadata(path.parent / METADATA)
        if caption := self._tables[path.parent].get(path.name):
            return caption, METADATA
        if caption := _first_line(path.with_suffix(".txt")):
            return caption, "text file"
        stem = drawn[1] if (drawn := DRAWN_NAME.fullmatch(path.stem)) else path.stem
        words = " ".join(re.split(r"[-_\s]+", stem)).strip()
        is_prompt = any(letter.isalpha() for letter in words) and words.isprintable()
        return (words, "file name") if is_prompt else None


def _read_metadata(path: Path) -> dict[str, str]:
    """Captions by file name. Lines that cannot be read are left out with a warning."""
    captions = {}
    for row in json_rows(_opened(path)):
        caption = next((value for column in CAPTION_COLUMNS if (value := row.values.get(column))), None)
        if isinstance(caption, list):
            caption = caption[0]
        name, fault = row.values.get(FILE_COLUMN), row.fault
        if fault is None and not (isinstance(name, str) and isinstance(caption, str) and caption.strip()):
            fault = f"it needs {FILE_COLUMN!r} and one of {', '.join(map(repr, CAPTION_COLUMNS))}, as texts"
        if fault is not None:
            warnings.warn(f"{path}, line {row.number}, is left out: {fault}", stacklevel=2)
        else:
            captions[str(name)] = str(caption).strip()
    return captions


def _first_line(path: Path) -> str | None:
    return next((row.values["text"] for row in text_rows(_opened(path), "text") if row.fault is None), None)


def _opened(path: Path) -> TextIO:
    """The content of a text file, empty if there is none. Raises `ImageError` for one that cannot be read."""
    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}") from error
    return io.TextIOWrapper(io.BytesIO(content), *decoding(content[:4]), newline="")
