"""Sampling: filters by hand, noise as a pure function, and the distribution that comes out."""

import dataclasses
import math

import pytest
import torch

from dalle.decoder.sampling import FilterParams, SamplingParams, filter_logits, guide, gumbel_noise, noise_keys, sample
from dalle.errors import ParameterError

LOGITS = torch.tensor([[2.0, 1.0, 1.0, 0.0, -1.0]])


def kept(**values: float) -> list[int]:
    params = FilterParams.stack([SamplingParams(**values)], torch.device("cpu"))  # type: ignore[arg-type]
    return filter_logits(LOGITS, params)[0].isfinite().nonzero().flatten().tolist()


def test_top_k_keeps_the_likeliest_and_their_equals() -> None:
    assert kept(top_k=1) == [0]
    assert kept(top_k=2) == [0, 1, 2]
    assert kept(top_k=4) == [0, 1, 2, 3]
    assert kept(top_k=0) == kept(top_k=100) == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_token_that_crosses() -> None:
    first = LOGITS.softmax(-1)[0, 0].item()
    assert kept(top_p=first - 0.01) == [0]
    assert kept(top_p=first + 0.01) == [0, 1]
    assert kept(top_p=1.0) == [0, 1, 2, 3, 4]
    assert kept(top_p=1e-6) == [0]


def test_min_p_is_a_share_of_the_likeliest() -> None:
    assert kept(min_p=math.exp(-1) + 0.01) == [0]
    assert kept(min_p=math.exp(-1) - 0.01) == [0, 1, 2]
    assert kept(min_p=1.0) == [0]


def test_filters_see_the_temperature() -> None:
    assert kept(min_p=math.exp(-1), temperature=2.0) == [0, 1, 2, 3]
    assert kept(top_p=0.9, temperature=0.1) == [0]


def test_each_row_has_its_own_filters() -> None:
    params = [SamplingParams(top_k=1), SamplingParams(), SamplingParams(min_p=0.3), SamplingParams(top_p=0.5)]
    together = filter_logits(LOGITS.expand(4, -1), FilterParams.stack(params, torch.device("cpu")))
    for i, single in enumerate(params):
        alone = filter_logits(LOGITS, FilterParams.stack([single], torch.device("cpu")))
        assert torch.equal(together[i : i + 1], alone)


def test_noise_is_a_pure_function_of_its_key() -> None:
    seeds, indices, positions = torch.tensor([7, 7, 7, 8, 2**63 - 1]), torch.tensor([0, 1, 0, 0, 0]), torch.arange(5)
    noise = gumbel_noise(noise_keys(seeds, indices, positions), 100)
    assert noise.isfinite().all()
    assert len({tuple(row.tolist()) for row in noise}) == 5
    for i in range(5):
        one = slice(i, i + 1)
        key = noise_keys(seeds[one], indices[one], positions[one])
        assert torch.equal(gumbel_noise(key, 40), noise[one, :40])


def test_noise_is_finite_at_the_end_of_its_range() -> None:
    """The seed whose first token has 53 bits of ones, found by going through the mixing backwards."""
    mask = 2**64 - 1

    def unmix(bits: int) -> int:
        for shift, factor in ((31, 1), (27, 0x94D049BB133111EB), (30, 0xBF58476D1CE4E5B9)):
            bits = bits * pow(factor, -1, 2**64) & mask
            undone = bits
            for _ in range(64 // shift):
                undone = bits ^ (undone >> shift)
            bits = undone
        return bits

    step = 0x9E3779B97F4A7C15
    key = (unmix(mask) - step) & mask
    key = unmix(key) ^ step
    key = unmix(key) ^ step
    seed = (unmix(key) - step) & mask
    seeds = torch.tensor([seed - 2**64 if seed >= 2**63 else seed])
    zero = torch.zeros(1, dtype=torch.int64)
    noise = gumbel_noise(noise_keys(seeds, zero, zero), 1).item()
    assert noise == pytest.approx(53 * math.log(2))


def test_noise_has_the_gumbel_distribution_and_no_correlation() -> None:
    grid = torch.cartesian_prod(torch.arange(20), torch.arange(10), torch.arange(20))
    noise = gumbel_noise(noise_keys(grid[:, 0], grid[:, 1], grid[:, 2]), 64)
    assert abs(noise.mean() - 0.57722) < 0.01
    assert abs(noise.var() - math.pi**2 / 6) < 0.02
    for other in (noise.roll(1, 0), noise.roll(20, 0), noise.roll(200, 0), noise.roll(1, 1)):
        assert abs(torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1]) < 0.01


def test_draws_follow_the_softmax() -> None:
    draws = 20_000
    keys = noise_keys(torch.arange(draws), torch.zeros(draws, dtype=torch.int64), torch.arange(draws) % 64)
    noise = gumbel_noise(keys, 5)
    params = FilterParams.stack([SamplingParams(temperature=0.7)] * draws, torch.device("cpu"))
    share = torch.bincount(sample(LOGITS.expand(draws, -1), params, noise), minlength=5) / draws
    assert (share - (LOGITS[0] / 0.7).softmax(-1)).abs().max() < 0.012


def test_temperature_zero_is_greedy() -> None:
    noise = gumbel_noise(noise_keys(torch.arange(50), torch.arange(50), torch.arange(50)), 5)
    params = FilterParams.stack([SamplingParams(temperature=0)] * 50, torch.device("cpu"))
    assert (sample(LOGITS.expand(50, -1), params, noise) == 0).all()


def test_guidance_and_its_schedules() -> None:
    conditional, unconditional = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert guide(conditional, unconditional, torch.tensor([3.0])).tolist() == [[3.0, -2.0]]
    scales = {
        name: [SamplingParams(guidance_scale=5, guidance_schedule=name).guidance_at(i, 4) for i in range(4)]
        for name in ("constant", "linear", "cosine")
    }
    assert scales["constant"] == [5, 5, 5, 5]
    assert scales["linear"] == [2, 3, 4, 5]
    assert scales["cosine"] == pytest.approx([1 + 2 * (1 - math.cos(math.pi * k / 4)) for k in (1, 2, 3, 4)])
    first = SamplingParams(guidance_scale=5, guided_codes=3)
    assert [first.guidance_at(i, 5) for i in range(5)] == [5, 5, 5, 1, 1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be at least 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": 1e-40}, "temperature is 1e-40; it must be at least 0, and at least 1e-06 if it is not 0"),
        ({"top_k": -1}, "top_k is -1; it must be at least 0"),
        ({"top_k": 2**63}, "top_k is 9223372036854775808; it must be at least 0, and below 2\\^63"),
        ({"top_p": 1.5}, r"top_p is 1.5; it must be in \(0, 1\]"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"min_p": 2.0}, r"min_p is 2.0; it must be in \[0, 1\]"),
        ({"guidance_scale": 0.5}, r"guidance_scale is 0.5; it must be in \[1, 100\]"),
        ({"guidance_schedule": "square"}, "guidance_schedule is square"),
    ],
)
def test_values_outside_their_range_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        SamplingParams(**values)  # type: ignore[arg-type]


def test_top_k_without_sorting_keeps_what_sorting_keeps() -> None:
    logits = torch.randn(6, 50).round(decimals=1)  # with ties
    params = [SamplingParams(top_k=k) for k in (0, 1, 7, 30, 50, 90)]
    columns = FilterParams.stack(params, torch.device("cpu"))
    assert not columns.sorts and columns.largest_top_k == 90
    sorted_too = dataclasses.replace(columns, sorts=True)
    assert torch.equal(filter_logits(logits, columns), filter_logits(logits, sorted_too))
