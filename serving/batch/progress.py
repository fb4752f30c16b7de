"""How far a batch is: a bar on a terminal, elsewhere a line every minute.

Every picture takes a known number of steps, so the time left is computed from rows still to be drawn, guided pictures
counting twice, and from how long rows have taken in this run.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from tqdm import tqdm

from serving.batch.plan import Shard

__all__ = ["Progress", "follow"]

LINE_SECONDS = 60.0


def follow(shards: Iterable[Shard], doing: str, num_lines: int | None = None) -> Iterator[Shard]:
    """The same shards, while a person sees how many lines have been read: a bar if it takes longer than a second.

    doing: what is being done with them, in words.
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
    """Told of rows and pictures; used in a `with`."""

    def __init__(self, *, num_pictures: int, num_rows: int, num_codes: int) -> None:
        """Of what is still to be drawn: pictures, rows of the engine, and steps for each row."""
        self.num_pictures = num_pictures
        self.total = num_rows * num_codes
        self.num_codes = num_codes
        self._steps = 0
        """Row by row, like the total."""
        self._skipped = 0
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm(total=self.total, disable=None, bar_format="{l_bar}{bar}| {postfix}", leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self, num_rows: int) -> None:
        """A step has drawn this many rows."""
        self._steps += num_rows
        self._show(num_rows)

    def skip(self, num_rows_skipped: int) -> None:
        """This many rows took no step here: they were drawn before, or by somebody else."""
        self._skipped += num_rows_skipped * self.num_codes
        self._show(num_rows_skipped * self.num_codes)

    def text(self) -> str:
        """Pictures done, pictures in a second, time left."""
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
