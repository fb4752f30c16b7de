"""`Ranking`: the place of a picture among the candidates of its prompt, for its receipt."""

import dataclasses
import math
import re

from dalle.config import Config
from dalle.defaults import Rerank
from dalle.errors import ParameterError

__all__ = ["Ranking"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking(Config):
    """A picture's place among the candidates of its prompt. Raises `ParameterError` for a value outside its range.

    The candidates are the pictures 0 to `best_of` - 1 of one seed. A ranking says nothing of how the picture was drawn:
    the same index draws it without candidates.
    """

    rerank: Rerank
    """The judge that scored the candidates."""
    score: float
    """The judge's score, of which higher is better: the mean log-probability of a code (`likelihood`), or the cosine
    between picture and prompt (`clip`). Scores of different judges, or different models, cannot be compared."""
    rank: int
    """1 for the best candidate."""
    best_of: int
    """Number of candidates that were drawn."""
    pruned: int = 0
    """Number of candidates that were dropped half-way and have no score."""
    clip: str | None = None
    """Name of the CLIP model that judged; None for `likelihood`."""
    clip_digest: str | None = None
    """Digest of that model, in lowercase hexadecimal."""

    def __post_init__(self) -> None:
        ranked = self.best_of - self.pruned
        is_hexadecimal = self.clip_digest is None or re.fullmatch("[0-9a-f]+", self.clip_digest) is not None
        for holds, fault in (
            (math.isfinite(self.score), f"score is {self.score}; it must be finite"),
            (self.best_of >= 1, f"best_of is {self.best_of}; it must be at least 1"),
            (0 <= self.pruned < self.best_of, f"pruned is {self.pruned}; it must be in 0..{self.best_of - 1}"),
            (1 <= self.rank <= ranked, f"rank is {self.rank}; it must be in 1..{ranked}, the candidates with a score"),
            (is_hexadecimal, f"clip_digest is {str(self.clip_digest)[:80]!r}; it must be lowercase hexadecimal"),
        ):
            if not holds:
                raise ParameterError(fault)
