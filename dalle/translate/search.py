"""The search for a translation: greedy, or by beams with normalised lengths.

A hypothesis is a target with the sum of the log probabilities of its tokens. Sums fall with every token, so hypotheses
of several lengths are compared by their sum divided by a length penalty (`SearchConfig.normalisation`):

    gnmt   ((5 + n) / 6)^a, of Wu et al. 2016 (arXiv 1609.08144), equation 14
    power  n^a, as in Marian, fairseq and transformers; with a = 1, the mean log probability of a token

n counts the tokens with the end, a is `length_penalty`. A beam search ends for a source when no open beam can overtake
its best hypothesis, whatever follows: with enough beams, the result is the best of all translations.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dalle.config import Config, require, require_at_least
from dalle.transformer.attention import Memory
from dalle.translate.cache import DecodingCache
from dalle.translate.encoder_decoder import EncoderDecoder

__all__ = ["Hypothesis", "SearchConfig", "beam_search", "greedy_search", "search"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig(Config):
    """How a translation is searched for."""

    num_beams: int = 4
    """Number of hypotheses that are continued at once; 1 for greedy search."""
    normalisation: Literal["gnmt", "power"] = "gnmt"
    """Kind of the length penalty."""
    length_penalty: float = 0.6
    """Exponent of the length penalty; 0 for sums that are not normalised. Larger values favour longer translations."""
    max_ratio: float = 3.0
    """A translation has at most this many ids for each id of its source, and `max_extra` more."""
    max_extra: int = 10
    """See `max_ratio`."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "num_beams")
        require_at_least(self, 0, "max_extra")
        require(0 <= self.length_penalty <= 10, f"length_penalty is {self.length_penalty}; it must be in [0, 10]")
        require(0 < self.max_ratio <= 1000, f"max_ratio is {self.max_ratio}; it must be above 0 and at most 1000")

    def normalised(self, log_probability: float, length: int) -> float:
        """The score of a hypothesis of `length` tokens, its end among them."""
        base = length if self.normalisation == "power" else (5 + length) / 6
        return log_probability / base**self.length_penalty

    def limit(self, num_source_ids: int, target_length: int) -> int:
        """Largest number of ids, with the end, of the translation of a source of so many ids."""
        return max(1, min(target_length, int(self.max_ratio * num_source_ids) + self.max_extra))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A translation, as ids."""

    ids: tuple[int, ...]
    """Its ids, without start and end."""
    log_probability: float
    """Sum of the log probabilities of its tokens, and of its end if it has one."""
    score: float
    """The sum, normalised."""
    finished: bool
    """Whether it has an end; else it was cut at its limit."""


def search(network: EncoderDecoder, source_ids: Tensor, config: SearchConfig) -> list[Hypothesis]:
    """The translations of sources (B, S) int64, padded on the right. A source's translation does not depend on the
    others, but for the rounding of sums."""
    counts = (source_ids != network.config.pad_id).sum(1).tolist()
    limits = [config.limit(count, network.config.target_length) for count in counts]
    if config.num_beams == 1:
        return greedy_search(network, source_ids, limits, config)
    return beam_search(network, source_ids, limits, config)


@torch.inference_mode()
def greedy_search(
    network: EncoderDecoder, source_ids: Tensor, limits: Sequence[int], config: SearchConfig
) -> list[Hypothesis]:
    """The likeliest token at every position, up to the end, or to `limits` ids for each of the B sources."""
    memory, cache = network.remember(source_ids), DecodingCache(network.config.decoder_depth)
    ids = torch.full_like(source_ids[:, :1], network.config.start_id)
    left = torch.tensor(limits, device=ids.device)
    is_open = torch.ones_like(left, dtype=torch.bool)
    sums, columns = torch.zeros(len(ids), device=ids.device), list[Tensor]()
    for length in range(1, max(limits) + 1):
        found = _log_probabilities(network, ids, memory, cache).max(1)
        sums += found.values.where(is_open, 0.0)
        columns.append(found.indices.where(is_open, network.config.pad_id))
        is_open &= (found.indices != network.config.end_id) & (left > length)
        if not is_open.any():
            break
        ids = found.indices[:, None]
    return [
        _hypothesis(network, config, row, total)
        for row, total in zip(torch.stack(columns, dim=1).tolist(), sums.tolist(), strict=True)
    ]


def _hypothesis(network: EncoderDecoder, config: SearchConfig, row: list[int], total: float) -> Hypothesis:
    """A hypothesis of ids that may have an end and padding."""
    ids = [token for token in row if token != network.config.pad_id]
    finished = ids[-1] == network.config.end_id
    return Hypothesis(
        ids=tuple(ids[: len(ids) - finished]),
        log_probability=total,
        score=config.normalised(total, len(ids)),
        finished=finished,
    )


def _log_probabilities(network: EncoderDecoder, ids: Tensor, memory: list[Memory], cache: DecodingCache) -> Tensor:
    """Log probabilities (B, V) float32 of the ids that follow; none has padding or start as its next id."""
    logits = network.logits(network.decode(ids, memory, cache)[:, -1])
    scores = logits.float().log_softmax(-1)
    scores[:, [network.config.pad_id, network.config.start_id]] = -math.inf
    return scores


def _repeated(memory: Memory, count: int) -> Memory:
    """The memory of rows that are there `count` times each, side by side."""
    keys, values = (part.repeat_interleave(count, 0) for part in (memory.keys, memory.values))
    return Memory(keys, values, None if memory.mask is None else memory.mask.repeat_interleave(count, 0))


@dataclasses.dataclass
class _Beams:
    """The open beams of one source, best first, and the best hypothesis that has ended."""

    tokens: list[list[int]]
    best: Hypothesis | None = None
    is_done: bool = False


@torch.inference_mode()
def beam_search(
    network: EncoderDecoder, source_ids: Tensor, limits: Sequence[int], config: SearchConfig
) -> list[Hypothesis]:
    """The best hypotheses that `num_beams` beams find, of at most `limits` ids for each of the B sources. One that has
    an end is preferred to all that were cut."""
    (num_sources, _), count, device = source_ids.shape, config.num_beams, source_ids.device
    memory = [_repeated(layer, count) for layer in network.remember(source_ids)]
    cache = DecodingCache(network.config.decoder_depth)
    ids = torch.full((num_sources * count, 1), network.config.start_id, device=device)
    sums = torch.full((num_sources, count), -math.inf, device=device)
    sums[:, 0] = 0  # all beams begin as one
    beams = [_Beams([[]] * count) for _ in range(num_sources)]
    for length in range(1, max(limits) + 1):
        added = _log_probabilities(network, ids, memory, cache)
        totals = (sums.flatten()[:, None] + added).view(num_sources, -1)
        found = totals.topk(min(2 * count, totals.shape[1]))
        rows, tokens, values = list[int](), list[int](), list[float]()
        for number, (source, some, places) in enumerate(
            zip(beams, found.values.tolist(), found.indices.tolist(), strict=True)
        ):
            ranked = [(value, *divmod(place, added.shape[1])) for value, place in zip(some, places, strict=True)]
            going = _advance(source, ranked, count, length, limits[number], network.config.end_id, config)
            for value, beam, token in going + [(-math.inf, 0, network.config.pad_id)] * (count - len(going)):
                rows.append(number * count + beam)
                tokens.append(token)
                values.append(value)
        if all(source.is_done for source in beams):
            break
        cache.take(torch.tensor(rows, device=device))
        ids = torch.tensor(tokens, device=device)[:, None]
        sums = torch.tensor(values, device=device).view(num_sources, count)
    results = [source.best for source in beams]
    return [result for result in results if result is not None]


def _advance(
    source: _Beams,
    ranked: list[tuple[float, int, int]],
    count: int,
    length: int,
    limit: int,
    end_id: int,
    config: SearchConfig,
) -> list[tuple[float, int, int]]:
    """Continue the beams of a source with the ranked (sum, beam, token), which give hypotheses of `length` tokens.
    Returns those that stay open, at most `count`; none if the source is done."""
    if source.is_done:
        return []
    going = list[tuple[float, int, int]]()
    for rank, (value, beam, token) in enumerate(ranked):
        if value == -math.inf:
            break
        if token != end_id:
            going.append((value, beam, token))
        elif rank < count:  # an end that is less likely than all open beams is none of the beams
            _keep(source, source.tokens[beam], value, config.normalised(value, length), finished=True)
    going = going[:count]
    reach = config.normalised(going[0][0], limit) if going else -math.inf  # sums never rise
    if length == limit or (source.best is not None and source.best.score >= reach):
        source.is_done = True
        if source.best is None:
            value, beam, token = going[0]
            _keep(source, [*source.tokens[beam], token], value, config.normalised(value, length), finished=False)
        return []
    source.tokens = [[*source.tokens[beam], token] for _, beam, token in going]
    return going


def _keep(source: _Beams, ids: list[int], value: float, score: float, *, finished: bool) -> None:
    if source.best is None or score > source.best.score:
        source.best = Hypothesis(ids=tuple(ids), log_probability=value, score=score, finished=finished)
