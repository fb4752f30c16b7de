"""The first pass over the prompts: counts pictures, collects invalid lines, and finds the shards to be drawn."""

import dataclasses
import sys
from collections.abc import Callable, Iterable

from dalle.receipt import printable
from serving.batch.items import Choice, InvalidLine, Shard

__all__ = ["Survey", "print_invalid_lines", "print_kept_words", "survey_shards"]

NUM_REPORTED = 5
"""Number of invalid lines that are printed, each with its reason."""


@dataclasses.dataclass(kw_only=True)
class Survey:
    """Counts over all shards, and the shards that are pending: not committed, or damaged since."""

    num_lines: int = 0
    num_invalid: int = 0
    """Number of invalid lines."""
    num_pictures: int = 0
    num_pending_pictures: int = 0
    """Number of pictures in pending shards."""
    num_pending_rows: int = 0
    """Number of rows (token sequences) of these pictures: two for a guided picture, one for any other."""
    num_pending_candidates: int = 0
    """Number of pictures that are drawn for them: candidates, and pictures of items without any."""
    has_candidates: bool = False
    """Whether any item has candidates."""
    judged_by_clip: Choice | None = None
    """The choice of the first item whose candidates a CLIP model judges."""
    pending: set[int] = dataclasses.field(default_factory=set)
    """Numbers of the pending shards."""
    num_kept: int = 0
    """Number of items whose prompts have words that the translator does not know."""
    kept: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    """Line and warning of the first few of them."""
    invalid: list[InvalidLine] = dataclasses.field(default_factory=list)
    """The first few invalid lines."""


def survey_shards(shards: Iterable[Shard], is_done: Callable[[Shard], bool]) -> Survey:
    """Read all shards and count."""
    survey = Survey()
    for shard in shards:
        survey.num_lines += len(shard.entries)
        survey.num_invalid += shard.num_invalid
        survey.num_pictures += shard.num_pictures
        invalid = (entry for entry in shard.entries if isinstance(entry, InvalidLine))
        survey.invalid += [*invalid][: NUM_REPORTED - len(survey.invalid)]
        for item in shard.items:
            if item.choice is not None:
                survey.has_candidates = True
                if item.choice.clip is not None:
                    survey.judged_by_clip = survey.judged_by_clip or item.choice
            if (warning := item.translated.warning) is not None:
                survey.num_kept += 1
                survey.kept += [(item.line, warning)][: NUM_REPORTED - len(survey.kept)]
        if not is_done(shard):
            survey.pending.add(shard.number)
            survey.num_pending_pictures += shard.num_pictures
            survey.num_pending_candidates += shard.num_candidates
            survey.num_pending_rows += shard.num_rows
    return survey


def print_invalid_lines(survey: Survey) -> None:
    """Report the first few invalid lines on standard error, and the number of all others."""
    for line in survey.invalid:
        print(printable(f"line {line.line} is invalid: {line.message}").replace("\n", " "), file=sys.stderr)
    if survey.num_invalid > len(survey.invalid):
        print(f"... and {survey.num_invalid - len(survey.invalid)} more invalid lines", file=sys.stderr)


def print_kept_words(survey: Survey) -> None:
    """Warn on standard error of the first few prompts with words that could not be translated, and of the number of all
    others."""
    for number, warning in survey.kept:
        print(printable(f"warning: line {number}: {warning}").replace("\n", " "), file=sys.stderr)
    if survey.num_kept > len(survey.kept):
        print(f"... and {survey.num_kept - len(survey.kept)} more such lines", file=sys.stderr)
