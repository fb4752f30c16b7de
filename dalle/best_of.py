"""Best of n: the candidates of a prompt, scored by a judge, and the best of them in order.

Candidates are the pictures 0 to best_of - 1 of one seed, drawn as they are without candidates. A `Selection` follows
those of one prompt; whoever steps the engine tells it which are half-way and which are finished.

**Pruning.** Half-way, a candidate is dropped if its likelihood so far is neither among the better half of the
candidates up to its own index nor among their best n. So at least n are left, and the n best half-way always are. The
rule looks back only: a candidate need not wait for later ones, which would hold slots or lose keys and values. Who is
dropped is a function of the scores and the order of the indices, and of neither slots nor load.
"""

import bisect
import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar, get_args

import torch
from torch import Tensor

from dalle.checkpoint.clip import find_clip, load_clip
from dalle.clip.model import ClipModel
from dalle.decoder.decoder import Decoder
from dalle.decoder.engine import Engine, StepResult
from dalle.decoder.likelihood import log_probabilities
from dalle.decoder.request import Request
from dalle.defaults import DEFAULT_CLIP, DEFAULT_RERANK, MAX_PICTURES, Rerank
from dalle.errors import ParameterError
from dalle.model import Model
from dalle.ranking import Ranking
from dalle.text.classes import ClassTokenizer

__all__ = [
    "BestOf",
    "ClipJudge",
    "Judge",
    "LikelihoodJudge",
    "Pruning",
    "Selection",
    "choose",
    "draw_best",
    "judge_of",
    "mean_likelihoods",
]

R = TypeVar("R", bound=Request)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOf:
    """What is asked for: n pictures of each prompt, the best of so many candidates. Raises `ParameterError` for
    `best_of` outside n..1000 and for an unknown judge."""

    n: int
    best_of: int
    rerank: Rerank = DEFAULT_RERANK
    prune: bool = False
    """Whether weak candidates are dropped half-way."""

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MAX_PICTURES:
            raise ParameterError(f"n is {self.n}; it must be in 1..{MAX_PICTURES}")
        if not self.n <= self.best_of <= MAX_PICTURES:
            raise ParameterError(
                f"best_of is {self.best_of}; it must be in {self.n}..{MAX_PICTURES}: n is {self.n}, and no more than "
                f"{MAX_PICTURES} candidates are drawn"
            )
        if self.rerank not in get_args(Rerank):
            raise ParameterError(f"rerank is {self.rerank!r}; it must be {' or '.join(get_args(Rerank))}")

    @classmethod
    def asked(
        cls, *, n: int, best_of: int | None, rerank: Rerank | None = None, prune: bool = False, clip: object = None
    ) -> "BestOf | None":
        """What these options ask for; None if none is given. Raises `ParameterError` as the class does, for `rerank`,
        `prune` or `clip` without `best_of`, and for `clip` with another judge."""
        if best_of is None:
            given = {"rerank": rerank, "prune": prune or None, "clip": clip}
            for name, value in given.items():
                if value is not None:
                    raise ParameterError(f"{name} is {value}; it needs best_of, the number of candidates")
            return None
        asked = cls(n=n, best_of=best_of, rerank=DEFAULT_RERANK if rerank is None else rerank, prune=prune)
        if clip is not None and asked.rerank != "clip":
            raise ParameterError(f"clip is {clip}; it is for the judge clip, and rerank is {asked.rerank}")
        return asked


class Judge(Protocol):
    """Scores candidates of one prompt."""

    @property
    def rerank(self) -> Rerank:
        """The judge's name."""

    @property
    def clip(self) -> ClipModel | None:
        """The CLIP model that judges; None for another judge."""

    def scores(self, prompt: str | None, request: Request, codes: Tensor) -> Tensor:
        """Scores (M,) float32 on the CPU, of which higher is better, of M candidates with codes (M, N). They were drawn
        for the request, but for its index."""


def mean_likelihoods(decoder: Decoder, request: Request, codes: Tensor) -> Tensor:
    """Mean log-probabilities (B,) of the codes that were drawn for a request, among the first M: codes are (B, M).
    Kept codes do not count. At least one must have been drawn."""
    found = log_probabilities(decoder, request.text_ids, codes, request.features)
    if request.kept is not None:
        found = found[:, request.kept[: codes.shape[1]] < 0]
    return found.mean(1)


class LikelihoodJudge:
    """The decoder itself: how probable are these codes after this caption?"""

    rerank: Rerank = "likelihood"
    clip = None

    def __init__(self, model: Model) -> None:
        self._decoder = model.decoder

    def scores(self, prompt: str | None, request: Request, codes: Tensor) -> Tensor:
        return mean_likelihoods(self._decoder, request, codes)


class ClipJudge:
    """A CLIP model: how well does the decoded picture fit the prompt?"""

    rerank: Rerank = "clip"

    def __init__(self, model: Model, clip: ClipModel) -> None:
        self._model = model
        self.clip = clip

    @torch.inference_mode()
    def scores(self, prompt: str | None, request: Request, codes: Tensor) -> Tensor:
        """Raises `ParameterError` without a prompt."""
        if prompt is None:
            raise ParameterError("there is no prompt; clip compares pictures with one: rerank by likelihood")
        grids = self._model.decoder.layout.grid(codes)
        # one by one, so that of many candidates no more than one picture is in memory
        vectors = torch.cat([self.clip.embed_pictures([self._model.decode(grid)]) for grid in grids])
        return (vectors @ self.clip.embed_prompts([prompt]).T)[:, 0]


def judge_of(model: Model, rerank: Rerank, clip: str | Path | ClipModel | None = None) -> Judge:
    """The judge of a name, for pictures of this model. `clip` is a CLIP model, or the name or directory of one.

    Raises `CheckpointError` for a CLIP model that is missing or damaged, and `ParameterError` for clip if prompts of
    the model are no texts.
    """
    if rerank == "likelihood":
        return LikelihoodJudge(model)
    if isinstance(model.text_tokenizer, ClassTokenizer):
        raise ParameterError(f"prompts of {model.name} are numbers of classes, which clip cannot read: use likelihood")
    if not isinstance(clip, ClipModel):
        clip = load_clip(find_clip(DEFAULT_CLIP if clip is None else clip))
        clip.network.to(model.decoder.embedding.weight.device)
    return ClipJudge(model, clip)


def choose(
    judge: Judge, prompt: str | None, drawn: Sequence[tuple[R, Tensor]], n: int, *, num_pruned: int = 0
) -> list[tuple[R, Tensor, Ranking]]:
    """Compare candidates of one prompt, each with its codes (N,), and return the best n with their places, best first.
    The earlier of equal ones is first. `num_pruned`: candidates that were dropped half-way and are not among them.

    Raises `ParameterError` as the judge does.
    """
    assert 1 <= n <= len(drawn), f"the best {n} of {len(drawn)}"
    scores = judge.scores(prompt, drawn[0][0], torch.stack([codes for _, codes in drawn])).tolist()
    order = sorted(range(len(drawn)), key=lambda place: -scores[place])
    clip = judge.clip
    return [
        (
            *drawn[place],
            Ranking(
                rerank=judge.rerank,
                score=round(scores[place], 6),
                rank=number + 1,
                best_of=len(drawn) + num_pruned,
                pruned=num_pruned,
                clip=None if clip is None else clip.name,
                clip_digest=None if clip is None else clip.digest or None,
            ),
        )
        for number, place in enumerate(order[:n])
    ]


class Pruning:
    """The rule of this module's description, for the candidates of one prompt."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._undecided: dict[int, float] = {}
        self._decided: list[float] = []
        """Scores of the candidates up to an index, in ascending order."""

    def add(self, scores: Mapping[int, float]) -> list[int]:
        """Take scores of candidates that are half-way, by index. Returns the indices of those that are dropped now: a
        candidate is decided upon when all before it are."""
        self._undecided |= scores
        dropped = []
        while (index := len(self._decided)) in self._undecided:
            score = self._undecided.pop(index)
            bisect.insort(self._decided, score)
            num_better = len(self._decided) - bisect.bisect_right(self._decided, score)
            if num_better >= max(self._n, (len(self._decided) + 1) // 2):
                dropped.append(index)
        return dropped


class Selection(Generic[R]):
    """The candidates of one prompt, from the first step to the choice of the best. It does not step the engine itself:
    `draw_best` does, and a service's own loop can."""

    def __init__(self, model: Model, asked: BestOf, judge: Judge, prompt: str | None, request: R) -> None:
        """request: the prompt's request, whose index does not matter."""
        self.requests: list[R] = [dataclasses.replace(request, index=i) for i in range(asked.best_of)]
        """The candidates, by index."""
        self._decoder = model.decoder
        self._asked, self._judge, self._prompt = asked, judge, prompt
        self._codes: dict[int, Tensor] = {}
        self._dropped: set[int] = set()
        self._reached: set[int] = set()
        self._pruning = Pruning(asked.n)
        self.half_way = self._half_way(request) if asked.prune else None
        """Number of codes, kept ones included, at which weak candidates are dropped; None if none are."""

    def _half_way(self, request: Request) -> int | None:
        num_codes = self._decoder.layout.num_codes
        kept = torch.full((num_codes,), -1) if request.kept is None else request.kept
        to_draw = (kept < 0).nonzero()[:, 0].tolist()
        return to_draw[len(to_draw) // 2] if len(to_draw) > 1 else None

    def is_due(self, index: int, num_codes: int) -> bool:
        """Whether a candidate with so many codes, kept ones included, is half-way and has not been told to `prune`."""
        return self.half_way is not None and num_codes >= self.half_way and index not in self._reached

    def prune(self, codes: Mapping[int, Tensor]) -> list[int]:
        """Candidates that are due, with their codes so far (at least `half_way`), by index. Returns the indices of
        those that are dropped now and are to be cancelled. A candidate is decided upon after those before it."""
        assert self.half_way is not None
        self._reached |= codes.keys()
        so_far = torch.stack([one[: self.half_way] for one in codes.values()])
        scores = mean_likelihoods(self._decoder, self.requests[0], so_far).tolist()
        dropped = self._pruning.add(dict(zip(codes, scores, strict=True)))
        self._dropped |= {*dropped}
        return dropped

    def finish(self, index: int, codes: Tensor) -> None:
        """Take the codes (N,) of a finished candidate."""
        self._codes[index] = codes

    @property
    def is_complete(self) -> bool:
        """Whether every candidate is finished or dropped."""
        return len(self._codes.keys() | self._dropped) == len(self.requests)

    def best(self) -> list[tuple[R, Tensor, Ranking]]:
        """The best n candidates, best first, with their codes (N,) and places. All must be complete. Among equal ones
        the lower index is first."""
        assert self.is_complete
        drawn = [(self.requests[index], self._codes[index]) for index in sorted(self._codes.keys() - self._dropped)]
        return choose(self._judge, self._prompt, drawn, self._asked.n, num_pruned=len(self._dropped))


def draw_best(
    engine: Engine, selections: Sequence[Selection[R]], on_step: Callable[[StepResult], None] | None = None
) -> Generator[tuple[R, Tensor, Ranking]]:
    """Draw the candidates of several prompts together, and yield the best of each prompt as soon as all its candidates
    are finished. Closing the iterator cancels the unfinished ones."""
    running: dict[int, tuple[Selection[R], int]] = {}
    try:
        for selection in selections:
            for request in selection.requests:
                running[engine.add(request)] = selection, request.index
        while running:
            result = engine.step()
            if on_step is not None:
                on_step(result)
            stepped = {number: running[number] for number in result.drawn if number in running}
            for selection in dict.fromkeys(owner for owner, _ in stepped.values()):
                numbers = {index: number for number, (owner, index) in stepped.items() if owner is selection}
                for index in _dropped(engine, selection, result, numbers):
                    engine.cancel(numbers[index])
                    del running[numbers[index]]
                for index, number in numbers.items():
                    if number in result.finished and number in running:
                        selection.finish(index, result.finished[number])
                        del running[number]
                if selection.is_complete:
                    yield from selection.best()
    finally:
        for number in running:
            engine.cancel(number)


def _dropped(engine: Engine, selection: Selection[R], result: StepResult, numbers: Mapping[int, int]) -> list[int]:
    """Indices of the candidates of one prompt that are half-way after this step and too weak. numbers: the engine's
    numbers of those that the step advanced, by index."""
    due = [index for index, number in numbers.items() if selection.is_due(index, result.drawn[number])]
    if not due:
        return []
    finished = result.finished
    codes = {i: finished[numbers[i]] if numbers[i] in finished else engine.codes_so_far(numbers[i]) for i in due}
    return selection.prune(codes)
