"""Sampling: pure functions on logits (B, V), and noise that has no order.

The noise of a token is a pure function of (seed, index, position, token). A draw is the argmax of logits plus Gumbel
noise (Gumbel 1954; Maddison et al. 2014), so the same request draws the same codes alone or beside any other.

Filters are applied in the order of the fields below, each to what the one before left: temperature, top-k, top-p
(Holtzman et al. 2019, arXiv 1904.09751), min-p (Nguyen et al. 2024, 2407.01082). Guidance comes before them all (Ho and
Salimans 2022, 2207.12598).
"""

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor

from dalle.config import Config
from dalle.errors import ParameterError

__all__ = [
    "FilterParams",
    "SamplingParams",
    "check_seed",
    "filter_logits",
    "guide",
    "gumbel_noise",
    "noise_keys",
    "sample",
]

MAX_SEED = 2**63 - 1
MIN_TEMPERATURE = 1e-6
_MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams(Config):
    """Sampling parameters of a picture. Raises `ParameterError` for a value outside its range."""

    temperature: float = 1.0
    """Divisor of the logits: 0 for greedy sampling, or at least 1e-6, below which logits would overflow."""
    top_k: int = 0
    """Keep the k likeliest codes, and all that tie with the last of them; 0 keeps all."""
    top_p: float = 1.0
    """Nucleus in (0, 1]: the likeliest codes are kept until their probabilities reach p, the crossing one included."""
    min_p: float = 0.0
    """Floor in [0, 1] of the probabilities that are kept, as a share of the likeliest code's probability."""
    guidance_scale: float = 1.0
    """Scale of classifier-free guidance, in [1, 100]; 1 is off, and halves the work."""
    guidance_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the guidance scale: full from the first code, or rising from 1 to the full scale at the last code."""
    guided_codes: int = 0
    """Number of first codes that are guided; 0 guides all. LlamaGen's `cfg_interval` is this number less 2."""

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (
                self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < math.inf,
                f"at least 0, and at least {MIN_TEMPERATURE} if it is not 0",
            ),
            "top_k": (0 <= self.top_k < 2**63, "at least 0, and below 2^63"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]"),
            "guidance_scale": (1 <= self.guidance_scale <= 100, "in [1, 100]"),
            "guidance_schedule": (
                self.guidance_schedule in ("constant", "linear", "cosine"),
                "constant, linear or cosine",
            ),
            "guided_codes": (0 <= self.guided_codes < 2**63, "at least 0, and below 2^63"),
        }
        for name, (holds, limit) in ranges.items():
            if not holds:
                raise ParameterError(f"{name} is {getattr(self, name)}; it must be {limit}")

    @property
    def guided(self) -> bool:
        """Whether sampling needs a second row, without the caption."""
        return self.guidance_scale != 1

    def guidance_at(self, position: int, num_codes: int) -> float:
        """Guidance scale for the code at a position in 0..num_codes - 1."""
        if 0 < self.guided_codes <= position:
            return 1.0
        progress = (position + 1) / num_codes
        rise = {"constant": 1.0, "linear": progress, "cosine": (1 - math.cos(math.pi * progress)) / 2}
        return 1 + (self.guidance_scale - 1) * rise[self.guidance_schedule]


def check_seed(seed: int) -> int:
    """Return the seed, or raise `ParameterError` if it is not in [0, 2^63)."""
    if not 0 <= seed <= MAX_SEED:
        raise ParameterError(f"seed is {seed}; it must be in [0, {MAX_SEED}]")
    return seed


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al. 2014) on int64, in place: a bijection in which every bit depends on all
    others."""
    for shift, factor in ((30, _MIX[1]), (27, _MIX[2]), (31, None)):
        bits ^= (bits >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        if factor is not None:
            bits *= _signed(factor)
    return bits


def noise_keys(seeds: Tensor, indices: Tensor, positions: Tensor) -> Tensor:
    """Keys of the noise of codes, int64 (B,), from int64 seeds, image indices and positions that broadcast to (B,). A
    key absorbs seed, index and position one after the other."""
    step = _signed(_MIX[0])
    key = _mix(seeds + step)
    key = _mix(key ^ (indices + 1) * step)
    return _mix(key ^ (positions + 1) * step)


def gumbel_noise(keys: Tensor, num_tokens: int) -> Tensor:
    """Standard Gumbel noise (B, num_tokens), float64, from keys (B,): a token's 53 bits are a mix of key and token."""
    tokens = torch.arange(1, num_tokens + 1, device=keys.device) * _signed(_MIX[0])
    bits = (_mix(keys[:, None] + tokens) >> 11).bitwise_and_((1 << 53) - 1)
    # the very last of the 2^53 values would round to 1, and its noise to infinity
    uniform = bits.double().add_(0.5).mul_(2.0**-53).clamp_max_(1 - 2.0**-53)
    return uniform.log_().neg_().log_().neg_()


def guide(conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance of logits (B, V): u + s (c - u), with scale (B,). At scale 1 it is c to the last bit,
    which the formula alone would miss."""
    guided = unconditional + scale[:, None] * (conditional - unconditional)
    return torch.where((scale == 1)[:, None], conditional, guided)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterParams:
    """Filter parameters of a batch of B requests: temperature float32, top_k int64 (0 for none), top_p and min_p
    float32, all (B,)."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    greedy: bool
    """Whether any temperature is 0."""
    largest_top_k: int
    """The largest top_k; 0 if none filters."""
    sorts: bool
    """Whether any top_p filters, for which logits are sorted."""
    floors: bool
    """Whether any min_p filters."""

    @classmethod
    def stack(cls, params: list[SamplingParams], device: torch.device) -> "FilterParams":
        """Stack the parameters of B requests."""

        def column(name: str) -> Tensor:
            return torch.tensor([getattr(p, name) for p in params], device=device)

        return cls(
            temperature=column("temperature"),
            top_k=column("top_k"),
            top_p=column("top_p"),
            min_p=column("min_p"),
            greedy=any(p.temperature == 0 for p in params),
            largest_top_k=max(p.top_k for p in params),
            sorts=any(p.top_p < 1 for p in params),
            floors=any(p.min_p > 0 for p in params),
        )


def filter_logits(logits: Tensor, params: FilterParams) -> Tensor:
    """Divide logits (B, V) by the temperature (except in batch entries at 0), and set filtered tokens to -inf."""
    temperature = torch.where(params.temperature == 0, 1.0, params.temperature) if params.greedy else params.temperature
    logits = logits / temperature[:, None]
    vocab_size = logits.shape[1]
    if params.sorts:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        last = torch.where(params.top_k > 0, params.top_k.clamp(max=vocab_size), vocab_size) - 1
        kept = ordered >= ordered.gather(1, last[:, None])
        ordered = ordered.masked_fill(~kept, -math.inf)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        # a top_p of 1 keeps every token, whatever the sum rounds to
        kept &= (before < params.top_p[:, None]) | (params.top_p == 1)[:, None]
        logits = logits.masked_fill(~torch.zeros_like(kept).scatter(1, order, kept), -math.inf)
    elif params.largest_top_k > 0:
        largest = logits.topk(min(params.largest_top_k, vocab_size), dim=-1).values
        last = largest.gather(1, (params.top_k.clamp(max=vocab_size) - 1).clamp_min(0)[:, None])
        logits = logits.masked_fill((logits < last) & (params.top_k > 0)[:, None], -math.inf)
    if params.floors:
        floor = logits.amax(-1, keepdim=True) + params.min_p.log()[:, None]
        logits = logits.masked_fill(logits < floor, -math.inf)
    return logits


def sample(logits: Tensor, params: FilterParams, noise: Tensor) -> Tensor:
    """Sample one token for each batch entry, (B,) int64: the argmax of filtered logits plus noise (B, V), without noise
    at temperature 0."""
    if params.greedy:
        noise = torch.where((params.temperature == 0)[:, None], 0.0, noise)
    return (filter_logits(logits, params) + noise).argmax(-1)
