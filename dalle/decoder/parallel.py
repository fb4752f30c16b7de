"""Parallel decoding: several codes of a picture in one pass, and the same codes as one by one.

The noise of a code is a function of (seed, index, position, token), so sampling is a function of the codes before. A
pass runs a window of W tokens of a row, the last code and W - 1 drafts, and samples W codes with their own noise. The
first is the right one; each draft that equals its sample makes the next sample right too. A sample behind a wrong draft
is the draft of its place in the next pass: Jacobi iteration (Song et al. 2021, arXiv 2002.03629), with the forecasts of
Wiggers and Hoogeboom 2020 (2002.09928). Keys and values of wrong drafts are hidden by the masks until the next pass
replaces them.

**Exactness.** A pass over W tokens adds the same numbers in another order, so its logits differ from those of a step
over one token in their last bits, and so do the keys and values that it leaves in the cache. A sample counts only if no
such difference could change it: its score (logit plus noise) must lead every other by a margin, and no filter may
decide by less than the margin whether it or a better one is kept. Otherwise the picture's codes are drawn again one by
one, from the last keys and values that such steps have written, up to the doubtful code, which is then exactly that of
sequential decoding. See `MARGIN` for the size of the margin, and what is left to chance.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dalle.decoder.cache import read_length
from dalle.decoder.sampling import FilterParams
from dalle.decoder.step import SlotRequest, Step, StepBatch

__all__ = ["MARGIN", "WINDOW_WIDTH", "Drawing", "draw_windows", "nearly_tied"]

WINDOW_WIDTH = 8
"""Width of windows that pays on a CPU, and that compiled windows have."""
MARGIN = 1e-5
"""Smallest lead of a winner that counts, relative to the largest logit of its rows and to the factor 2 s - 1 by which a
guidance scale s can enlarge an error. In this unit no lead among the 32 likeliest codes differed between windows and
single tokens by more than 1.6e-6 (6,144 comparisons of the default model) or 2.0e-6 (2,304 codes of tiny decoders); a
code could differ only where one does by 1e-5. One picture of the default model in a hundred has a doubtful code."""


@dataclasses.dataclass(kw_only=True)
class Drawing:
    """A request that has slots, with its codes so far."""

    placed: SlotRequest
    codes: list[int]
    given: list[int]
    """All its kept codes, -1 where one is to be drawn; empty if none is kept."""
    num_exact: int
    """Number of codes such that keys and values in front of the last of them are those of sequential decoding."""
    guesses: list[int] = dataclasses.field(default_factory=list)
    """The last pass's samples of the codes that come next, some of them behind wrong drafts."""

    @classmethod
    def start(cls, placed: SlotRequest) -> "Drawing":
        """The drawing of a request whose slots are filled up to its first code to draw."""
        kept, codes = placed.request.kept, placed.request.given_first
        return cls(placed=placed, codes=codes, given=[] if kept is None else kept.tolist(), num_exact=len(codes))

    @property
    def slots(self) -> tuple[int, ...]:
        return self.placed.slots

    @property
    def is_exact(self) -> bool:
        """Whether a step over one token would draw exactly what sequential decoding does."""
        return self.num_exact == len(self.codes)

    def append(self, codes: Sequence[int]) -> None:
        self.codes += codes
        del self.guesses[: len(codes)]

    def drafts(self, num: int, grid_width: int) -> list[int]:
        """Drafts of the next `num` codes. Where there is no guess yet, it is the code that is given, or that above or
        to the left, whichever did not change beside the code above to the left."""
        row = self.codes + self.guesses
        for place in range(len(row), len(self.codes) + num):
            given = self.given[place] if place < len(self.given) else -1
            row.append(given if given >= 0 else _planar(row, grid_width))
        return row[len(self.codes) : len(self.codes) + num]


def _planar(row: Sequence[int], grid_width: int) -> int:
    """Guess the code after these, which are in raster order."""
    place = len(row)
    if place < grid_width:
        return row[-1] if row else 0
    above = row[-grid_width]
    return above if place % grid_width == 0 or above != row[-grid_width - 1] else row[-1]


def draw_windows(step: Step, batch: StepBatch, drawings: Sequence[Drawing], width: int, num_slots: int) -> None:
    """Draw one code or more, up to `width`, of each request of a batch for windows of that width, and feed the last of
    them to the request's slots. `num_slots` is the number of slots that a sequential step would run."""
    layout = step.layout
    drafts = [drawing.drafts(width - 1, layout.grid_width) for drawing in drawings]
    num_positions = layout.first_code + max(len(drawing.codes) for drawing in drawings) + width - 1
    sampled, doubtful = _sample(step, batch, drafts, min(num_positions, layout.length - 1))
    doubted = []
    for number, drawing in enumerate(drawings):
        codes, exact = sampled[number], width == 1 and drawing.is_exact
        num_right = next((i for i in range(width - 1) if drafts[number][i] != codes[i]), width - 1) + 1
        num_right = min(num_right, layout.num_codes - len(drawing.codes))
        num_sure = num_right if exact else next((i for i in range(num_right) if doubtful[number][i]), num_right)
        drawing.guesses = codes.copy()
        drawing.append(codes[:num_sure])
        drawing.num_exact += exact
        if num_sure < num_right:
            doubted.append(drawing)
    begun = [drawing for drawing in drawings if drawing.codes]
    if begun:
        step.feed([drawing.placed for drawing in begun], [drawing.codes for drawing in begun])
    for drawing in doubted:
        _settle(step, drawing, num_slots)


def _settle(step: Step, drawing: Drawing, num_slots: int) -> None:
    """Draw the next code of a request as sequential decoding does, and all codes before it whose keys and values are
    not yet exact. Steps of this one request feed nothing to the slots of others, which are then as before."""
    fed = step.ids.clone()
    alone = StepBatch.stack([drawing.placed], num_slots, step.device)
    step.rewind(drawing.placed, drawing.codes[: drawing.num_exact])
    for place in range(drawing.num_exact, len(drawing.codes) + 1):
        drawing.codes[place : place + 1] = step.run(alone, step.layout.first_code + place).tolist()
    drawing.num_exact = len(drawing.codes)
    del drawing.guesses[:1]
    slots = list(drawing.slots)
    fed[slots] = step.ids[slots]
    step.ids.copy_(fed)


def _sample(
    step: Step, batch: StepBatch, drafts: Sequence[Sequence[int]], num_positions: int
) -> tuple[list[list[int]], list[list[bool]]]:
    """Run the last token and the drafts of each request: W samples of each, and whether each of them is doubtful."""
    layout, num_slots = step.layout, batch.num_slots
    drafted = torch.tensor(drafts, dtype=torch.int64).to(step.device) + layout.text_vocab_size
    ids = torch.cat([step.ids[:num_slots], drafted[batch.owner]], dim=1)
    # what would be behind the end of a row goes to its last position, which no other token attends to
    offsets = torch.arange(ids.shape[1], device=step.device)
    positions = (step.positions[:num_slots] + offsets).clamp_max(layout.length - 1)
    places = (positions[batch.conditional] - (layout.first_code - 1)).clamp_max(layout.num_codes - 1)
    keys, length = batch.keys.gather(1, places).flatten(), read_length(num_positions)
    if ids.shape[1] == 1:
        logits, noise = step.forward(num_slots, length, keys)
        logits = logits[:, None]
    else:
        logits, noise = step.forward_window(ids, positions, length, keys)
    guided = batch.guided(logits, places)
    codes = batch.draw(guided, noise, places).view_as(places)
    doubtful = nearly_tied(guided, batch.filters, noise, _margins(batch, logits, places)).view_as(places)
    if batch.kept is not None:
        doubtful &= batch.kept.gather(1, places) < 0
    return codes.tolist(), doubtful.tolist()


def _margins(batch: StepBatch, logits: Tensor, places: Tensor) -> Tensor:
    """Margins of the guided logits of `StepBatch.guided`, (A * W,)."""
    sizes = logits.abs().amax(-1)
    size = sizes[batch.conditional]
    if batch.unconditional is not None:
        size = torch.maximum(size, sizes[batch.unconditional]) * (2 * batch.scales.gather(1, places) - 1)
    return MARGIN * size.flatten()


def nearly_tied(logits: Tensor, params: FilterParams, noise: Tensor, margins: Tensor) -> Tensor:
    """Whether logits that differ by half of a margin or less could give another sample: (R,) bool, from logits and
    noise (R, V) and margins (R,), in units of logits before the temperature."""
    if logits.shape[1] == 1:
        return torch.zeros_like(margins, dtype=torch.bool)
    greedy = params.temperature == 0
    temperature = torch.where(greedy, 1.0, params.temperature)
    scaled, slack = logits / temperature[:, None], margins / temperature
    scores = scaled + torch.where(greedy[:, None], 0.0, noise)
    if not (params.largest_top_k or params.sorts or params.floors):
        best = scores.topk(2, sorted=True).values
        return best[:, 0] - best[:, 1] < slack
    best, winners = scores.masked_fill(~_survivors(scaled, params, slack), -math.inf).topk(2, sorted=True)
    sure = _survivors(scaled, params, -slack).gather(1, winners[:, :1])[:, 0]
    return (best[:, 0] - best[:, 1] < slack) | ~sure


def _survivors(logits: Tensor, params: FilterParams, slack: Tensor) -> Tensor:
    """Tokens that pass the filters, (R, V) bool, if each comparison of two logits, after the temperature, is decided
    with a slack (R,) in favour of the token; against it, if the slack is negative. Probabilities, which change by less
    than logits, have the same slack."""
    slack = slack[:, None]
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    itself = (slack < 0).long()  # a token leads itself by more than a negative slack
    num_ahead = torch.searchsorted(-ordered, -ordered - slack) - itself
    num_kept = torch.where(params.top_k > 0, params.top_k, logits.shape[1])[:, None]
    kept = num_ahead < num_kept
    probabilities = ordered.masked_fill(~kept, -math.inf).softmax(-1)
    sums = torch.cat([torch.zeros_like(slack), probabilities.cumsum(-1)], dim=-1)
    ahead = sums.gather(1, num_ahead + itself) - itself * probabilities
    kept &= (ahead < params.top_p[:, None] + slack) | (params.top_p == 1)[:, None]
    kept &= ordered - ordered[:, :1] >= params.min_p.log()[:, None] - slack
    kept |= num_ahead == 0  # every filter keeps the likeliest token
    return torch.zeros_like(kept).scatter(1, order, kept)
