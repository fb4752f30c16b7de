"""Progress of a batch: a bar on a terminal, a line every minute elsewhere.

Every picture of a model takes the same number of steps, so the time left follows from the number of rows (token
sequences) still to be drawn, two for a guided picture, and from the speed so far.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from tqdm import tqdm

from serving.batch.items import Shard

__all__ = ["Progress", "follow"]

LINE_SECONDS = 60.0


def follow(shards: Iterable[Shard], doing: str, num_lines: int | None = None) -> Iterator[Shard]:
    """Yield the same shards, and show how many lines have been read. The bar appears after a second.

    doing: the label of the bar, such as "reading the prompts".
    """
    num_read = 0
    last_line = time.monotonic()
    with tqdm(desc=doing, total=num_lines, unit=" lines", delay=1, disable=None, leave=False) as bar:
        for shard in shards:
            yield shard
            num_read += len(shard.entries)
            bar.update(len(shard.entries))
            if bar.disable and time.monotonic() - last_line > LINE_SECONDS:
                last_line = time.monotonic()
                of_all = "" if num_lines is None else f" of {num_lines}"
                print(f"{doing}: {num_read}{of_all} lines", file=sys.stderr, flush=True)


class Progress:
    """Shows the progress of drawing; a context manager."""

    def __init__(self, *, num_pictures: int, num_rows: int, num_codes: int) -> None:
        """Totals to be drawn: pictures, their rows (token sequences), and steps per row."""
        self.num_pictures = num_pictures
        self.total = num_rows * num_codes
        """Codes to be drawn, counted per row: a guided picture's codes count twice."""
        self.num_codes = num_codes
        self._steps = 0
        """Codes drawn in this run, counted per row as in `total`."""
        self._skipped = 0
        """Codes that did not have to be drawn in this run."""
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm(total=self.total, disable=None, bar_format="{l_bar}{bar}| {postfix}", leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self, num_rows: int) -> None:
        """Count a step that has drawn one code for each of this many rows."""
        self._steps += num_rows
        self._show(num_rows)

    def skip(self, num_rows_skipped: int) -> None:
        """Count rows that took no step in this run: their codes were recovered."""
        self._skipped += num_rows_skipped * self.num_codes
        self._show(num_rows_skipped * self.num_codes)

    def text(self) -> str:
        """Pictures done, pictures per second, and time left, as text."""
        done = self._steps + self._skipped
        seconds = time.monotonic() - self._start
        pictures = round(self.num_pictures * done / max(self.total, 1))
        if not self._steps:
            return f"{pictures} of {self.num_pictures} pictures"
        left = (self.total - done) / self._steps * seconds
        rate = self.num_pictures * self._steps / self.total / seconds
        return f"{pictures} of {self.num_pictures} pictures, {rate:.3g}/s, {tqdm.format_interval(left)} left"

    def _show(self, steps: int) -> None:
        if not self._bar.disable:
            self._bar.set_postfix_str(self.text(), refresh=False)
            self._bar.update(steps)
        elif time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            print(self.text(), file=sys.stderr, flush=True)
