"""Scores as people and programs read them: rows of CSV and JSON, a table, and a sheet of pictures ordered by score."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image

from dalle.defaults import Rerank
from dalle.errors import ImageError
from dalle.images import contact_sheet, load_image
from dalle.printable import printable
from dalle.scoring.scorer import Score

__all__ = ["COLUMNS", "MAX_SHEET_PICTURES", "csv_of", "facts_of", "ordered", "sheet_of", "table_of"]

COLUMNS = ("file", "prompt", "prompt_from", "clip_score", "log_likelihood", "model", "seed", "index", "note")
"""Columns of the CSV file, and keys of the JSON objects."""
MAX_SHEET_PICTURES = 144
"""Largest number of pictures of a sheet; of more, the best and the worst are shown."""
MAX_LINES = 40
"""Largest number of lines of a table, likewise."""
THUMBNAIL = 256
"""Largest side of a picture on the sheet, in pixels."""
PROMPT_WIDTH = 48


def ordered(scores: Iterable[Score], order: Rerank) -> list[Score]:
    """Scores, the best first; last come pictures without the score, ordered by the CLIP score."""

    def key(score: Score) -> tuple[bool, float, float]:
        chosen = score.clip_score if order == "clip" else score.log_likelihood
        return chosen is None, -(chosen or 0.0), -score.clip_score

    return sorted(scores, key=key)


def facts_of(score: Score) -> dict[str, Any]:
    """A score as an object of JSON, with the keys `COLUMNS`. What is not known is None."""
    return {name: getattr(score, name) for name in COLUMNS} | {"file": str(score.file)}


def csv_of(scores: Iterable[Score]) -> bytes:
    """Scores as CSV in UTF-8, with the header `COLUMNS`. What is not known is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    for score in scores:
        numbers = {name: getattr(score, name) for name in ("clip_score", "log_likelihood")}
        rounded = {name: "" if value is None else f"{value:.6f}" for name, value in numbers.items()}
        writer.writerow(facts_of(score) | rounded)
    return text.getvalue().encode("utf-8", "surrogateescape")  # file names may have any bytes


def table_of(scores: Sequence[Score]) -> str:
    """Scores for a terminal, with a header: the best and the worst, if there are more than 40."""
    rows = [["", "CLIP", "log-lik.", "prompt", "from", "file"]]
    for rank, score in _ends(scores, MAX_LINES):
        likelihood = "-" if score.log_likelihood is None else f"{score.log_likelihood:.3f}"
        prompt = " ".join(score.prompt.split())
        prompt = prompt if len(prompt) <= PROMPT_WIDTH else f"{prompt[: PROMPT_WIDTH - 3]}..."
        cells = [str(rank), f"{score.clip_score:.3f}", likelihood, prompt, score.prompt_from, str(score.file)]
        rows.append([printable(cell).replace("\n", "\\n") for cell in cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        numbers = [cell.rjust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        texts = [cell.ljust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        lines.append("  ".join([*numbers, *texts]).rstrip())
    if len(scores) > MAX_LINES:
        lines.insert(1 + MAX_LINES // 2, f"... {len(scores) - MAX_LINES} more ...")
    return "\n".join(lines)


def sheet_of(scores: Sequence[Score]) -> Image.Image:
    """A contact sheet of scored pictures in their order, each above its rank, CLIP score, log-likelihood and prompt.

    Raises `ImageError` for a picture that was changed since it was scored and cannot be read.
    """
    images, labels = [], []
    for rank, score in _ends(scores, MAX_SHEET_PICTURES):
        image = load_image(score.file, mode="RGBA")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        images.append(image)
        likelihood = "" if score.log_likelihood is None else f", {score.log_likelihood:.2f}"
        labels.append(f"{rank}: {score.clip_score:.3f}{likelihood}\n{score.prompt}")
    if not images:
        raise ImageError("there are no scored pictures to show")
    return contact_sheet(images, labels=labels)


def _ends(scores: Sequence[Score], most: int) -> list[tuple[int, Score]]:
    """Scores with their ranks from 1: all, or as many of the first and of the last if there are more than `most`."""
    ranked = list(enumerate(scores, 1))
    return ranked if len(ranked) <= most else ranked[: most // 2] + ranked[-(most // 2) :]
