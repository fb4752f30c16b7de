"""The benchmarks of steadiness and of growth: their arithmetic, and runs of a tiny decoder."""

import itertools
import statistics
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks.grids import config_of, filled_step, positions_of, requests_of
from benchmarks.growth import predicted_seconds
from benchmarks.limits import Machine
from benchmarks.load import LoadRun, Turn, arrival_times, offer, queueing, saturated_rate
from benchmarks.memory import Memory
from benchmarks.steadiness import load_rows
from dalle import Engine, Request, SamplingParams
from dalle.decoder.config import DecoderConfig
from dalle.decoder.decoder import Decoder
from dalle.decoder.step import StepBatch
from tests.repository.test_benchmarks import CONFIG


def requests() -> Iterator[Request]:
    ids, params = torch.ones(CONFIG.text_length, dtype=torch.int64), SamplingParams(guidance_scale=2.0)
    return (Request(text_ids=ids, null_ids=ids, params=params, seed=seed) for seed in itertools.count())


def test_arrivals_are_a_poisson_process_of_an_exact_rate() -> None:
    times = arrival_times(50.0, 20.0, seed=1)
    assert len(times) == 1000 and times == sorted(times) and times[0] >= 0 and times[-1] < 20
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1), "gaps of a Poisson process are exponential"
    assert times != arrival_times(50.0, 20.0, seed=2)


def test_queueing_alone_is_that_of_theory() -> None:
    """M/D/1 at a load of r waits r / (2 (1 - r)) on average; many servers at a low load never let anybody wait."""
    assert statistics.fmean(queueing(0.5, 1)) == pytest.approx(1.5, rel=0.03)
    assert max(queueing(0.05, 16)) == pytest.approx(1.0)


def test_a_load_counts_after_the_warm_up() -> None:
    served = [(0.0, 1.0), (1.5, 2.5), (3.0, 4.5), (9.5, 11.0)]
    run = LoadRun.of(served, load=0.8, seconds=10.0, lone=1.0, static=0.5)
    assert run.latencies == [1.5, 1.5]
    assert run.delivered == pytest.approx(2 / 8 / 0.5)


def test_every_offered_request_is_served_and_its_latency_counts_from_the_schedule() -> None:
    engine = Engine(Decoder(CONFIG).eval(), num_slots=4)
    served = offer(engine, requests(), [0.0, 0.0, 0.0, 0.3])
    assert [arrival for arrival, _ in served] == [0.0, 0.0, 0.0, 0.3]
    finishes = [finish for _, finish in served]
    assert finishes[0] == finishes[1] < finishes[2] < 0.3 < finishes[3], "two fit at once, and the third waits"
    assert engine.num_active == engine.num_waiting == 0


def test_a_saturated_engine_is_left_empty() -> None:
    engine = Engine(Decoder(CONFIG).eval(), num_slots=6)
    assert saturated_rate(engine, requests(), 3) > 0
    assert engine.num_active == engine.num_waiting == 0 and engine.num_free_slots == 6


def test_turns_of_one_load_are_taken_together() -> None:
    shares, latencies = (0.7, 0.8, 0.81), ([2.0], [1.0], [3.0, 3.0])
    runs = [LoadRun(load=0.8, delivered=share, latencies=times) for share, times in zip(shares, latencies, strict=True)]
    turns = [Turn(slots=8, together=4, lone=0.5, static=8.0, saturated=7.6, runs=[run]) for run in runs]
    [row] = load_rows(turns)
    assert row[:6] == ["8", "80%", "80%", "3", "4", "2.00"] and row[6] == "2.00 (1.00 to 3.00)"


def test_codes_that_are_timed_reach_from_the_first_to_the_last() -> None:
    codes = positions_of(64)
    assert codes[0] == 0 and codes[-1] == 63 and codes == sorted(set(codes))


def test_a_later_step_is_predicted_to_read_what_the_cache_has_more() -> None:
    config = config_of("8 x 320", 8)
    machine = Machine(reading={2**20: 1e9, 2**30: 1e9}, product=1e12)
    first, later = predicted_seconds(config, 8, [0, 50], 0.004, machine)
    assert first == 0.004
    assert later == pytest.approx(0.004 + 8 * 50 * 2 * 8 * 320 * 4 / 1e9)


@torch.inference_mode()
def test_a_step_runs_at_any_position() -> None:
    config: DecoderConfig = config_of("8 x 320", 8)
    step = filled_step(Decoder(config).eval(), 4)
    active = requests_of(config, 4)
    assert [entry.slots for entry in active] == [(0, 1), (2, 3)]
    batch = StepBatch.stack(active, 4, step.device)
    step.positions[:] = config.layout.first_code - 1 + 63
    codes = step.run(batch, config.layout.first_code + 63)
    assert codes.shape == (2,) and int(codes.max()) < config.codebook_size
    assert [entry.slots for entry in requests_of(config, 1)] == [(0,)]


def test_memory_is_predicted_as_the_sum_of_its_parts() -> None:
    memory = Memory(
        model="8 x 320", num_codes=64, slots=8, weights=10**8, packed=10**8, tables=0, cache=10**8, measured=306 * 10**6
    )
    assert memory.predicted == 3 * 10**8
    assert memory.row()[-1] == "+2.0%"
