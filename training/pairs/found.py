"""`FoundPicture`: a picture of a source with its captions, before it is read."""

import dataclasses
from pathlib import Path

__all__ = ["FoundPicture", "is_unicode", "lines_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class FoundPicture:
    """One picture of a source with its captions, or the reason why it gives no pair."""

    id: str
    """The picture's path as the source gives it, or its row, or the place of an invalid line."""
    path: Path
    """The file of the picture, or of the table that it is in."""
    captions: list[str]
    problem: str | None = None
    """Why the picture cannot be used; None if nothing is wrong so far."""
    split: str | None = None
    """`training`, `validation` or `test`, if the source itself has splits."""
    key: str | None = None
    """A text that stays the same when the source grows, of a picture inside of a table; None: `id` does."""
    content: bytes | None = None
    """The picture itself, if it is inside of a table."""


def is_unicode(text: str) -> bool:
    """Whether a text has no unpaired surrogates, which are not Unicode characters."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def lines_of(text: str) -> list[str]:
    """The lines of a text that are not blank, without the white space around them."""
    return [line.strip() for line in text.splitlines() if line.strip()]
