"""Pairs that cannot be used: counted, listed in a file, and the reason to stop only when they are too many."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from dalle.errors import DataError
from dalle.files import atomic_write

__all__ = ["MAX_BROKEN", "PROBLEMS_FILE", "Broken", "Problem", "require_few", "why_foreign", "write_problems"]

PROBLEMS_FILE = "problems.jsonl"
MAX_BROKEN = 0.01
"""Largest share of pairs that may be broken, unless a program is told another."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A picture, a pair or a line that is left out, and why."""

    id: str
    problem: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken:
    """The broken pairs of a set, which several processes find and append to one file. What an earlier run of the same
    folder has found is counted with them."""

    file: Path = dataclasses.field(compare=False)
    num_pairs: int
    """Number of all pairs of the set."""
    max_share: float
    """Share of the pairs that may be broken, in [0, 1)."""

    def add(self, *found: Problem) -> None:
        """Append problems that are not listed yet. Raises `DataError` when there are too many."""
        if not found:
            return
        listed = {*self._lines()}
        lines = [_line(one) for one in found]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines if line not in listed))
        listed |= {*lines}
        require_few(len(listed), self.num_pairs, self.max_share, f"{found[0].problem}; see {self.file}")

    def clear(self) -> None:
        """Remove the list."""
        self.file.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len({*self._lines()})

    def _lines(self) -> list[str]:
        return self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []


def require_few(num_broken: int, num_pairs: int, max_share: float, example: str) -> None:
    """Raise `DataError` if more than a share of the pairs are broken. example: a sentence about one of them."""
    if num_broken > max_share * num_pairs:
        raise DataError(
            f"{num_broken} of {num_pairs} pairs are broken; the limit (max_broken) is {max_share:g}: {example}"
        )


def write_problems(path: Path, problems: Iterable[Problem]) -> None:
    """Write a list of problems, in place of an earlier one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, "".join(f"{_line(problem)}\n" for problem in problems))


def why_foreign(path: Path) -> str | None:
    """Why a file is no list of problems that may be replaced; None if it is one."""
    try:
        with open(path, encoding="utf-8") as lines:
            first = next(lines, None)
        if first is None or {*json.loads(first)} == {"id", "problem"}:
            return None
    except (OSError, ValueError, TypeError, RecursionError):
        pass
    return "it is of another program"


def _line(problem: Problem) -> str:
    return json.dumps(dataclasses.asdict(problem), ensure_ascii=False)
