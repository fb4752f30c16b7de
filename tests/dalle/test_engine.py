"""The engine: a request's codes are its own, whatever happens beside it, and it is done when it said it would be."""

import dataclasses
import random

import pytest
import torch
from torch import Tensor

from dalle.decoder import prefill
from dalle.decoder.decoder import Decoder
from dalle.decoder.engine import Engine, finish_steps
from dalle.decoder.request import Request
from dalle.decoder.sampling import SamplingParams
from dalle.errors import EngineError, ParameterError
from tests.support.models import FAMILIES, lively_decoder
from tests.support.requests import NULL, fitted, request


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    return lively_decoder()


def draw(decoder: Decoder, *requests: Request, num_slots: int = 8) -> list[Tensor]:
    return Engine(decoder, num_slots=num_slots).run(requests)


@torch.inference_mode()
def test_greedy_codes_are_those_of_the_uncached_decoder(decoder: Decoder) -> None:
    greedy = request(3, params=SamplingParams(temperature=0), kept=None)
    codes = torch.zeros(1, 16, dtype=torch.int64)
    for place in range(16):
        _, logits = decoder.teacher_forced(greedy.text_ids[None], codes)
        codes[0, place] = logits[0, place].argmax()
    assert torch.equal(draw(decoder, greedy)[0], codes[0])
    assert len(set(codes[0].tolist())) > 4  # or the test would prove little


@torch.inference_mode()
def test_greedy_guidance_is_that_of_the_uncached_decoder(decoder: Decoder) -> None:
    params = SamplingParams(temperature=0, guidance_scale=4, guidance_schedule="linear")
    guided = request(5, params=params, kept=None)
    codes = torch.zeros(2, 16, dtype=torch.int64)
    for place in range(16):
        _, logits = decoder.teacher_forced(torch.stack([guided.text_ids, NULL]), codes)
        conditional, unconditional = logits[:, place]
        scale = params.guidance_at(place, 16)
        codes[:, place] = (unconditional + scale * (conditional - unconditional)).argmax()
    assert torch.equal(draw(decoder, guided)[0], codes[0])


def test_guidance_moves_logits_away_from_the_null_caption(decoder: Decoder) -> None:
    plain, guided = (request(1, params=SamplingParams(guidance_scale=s), kept=None) for s in (1.0, 6.0))
    other = request(1, params=SamplingParams(guidance_scale=6.0), kept=None, null_ids=request(9).text_ids)
    codes = draw(decoder, plain, guided, other)
    assert len({tuple(c.tolist()) for c in codes}) == 3


@pytest.mark.parametrize("changes", [{}, *FAMILIES.values()], ids=["ours", *FAMILIES])
def test_codes_do_not_depend_on_other_requests(changes: dict[str, object]) -> None:
    """Requests join and are cancelled at random; every one that finishes has the codes it has alone."""
    decoder = lively_decoder(**changes)
    num_requests = 24 if not changes else 10
    requests = [fitted(decoder, request(number)) for number in range(num_requests)]
    alone = [draw(decoder, one)[0] for one in requests]
    for trial in range(4 if not changes else 2):
        chance = random.Random(trial)
        engine = Engine(decoder, num_slots=8)
        order = chance.sample(range(num_requests), num_requests)
        numbers: dict[int, int] = {}
        cancelled: set[int] = set()
        finished: dict[int, Tensor] = {}
        while order or engine.num_active or engine.num_waiting:
            for _ in range(chance.randrange(3)):
                if order:
                    number = order.pop()
                    numbers[engine.add(requests[number])] = number
            candidates = sorted(set(numbers) - set(finished) - cancelled)
            if candidates and chance.random() < 0.1:
                victim = chance.choice(candidates)
                assert engine.cancel(victim)
                cancelled.add(victim)
            finished |= engine.step().finished
        assert set(finished) | cancelled == set(numbers)
        assert len(finished) > num_requests // 3
        for request_id, codes in finished.items():
            assert torch.equal(codes, alone[numbers[request_id]])
        assert engine.num_free_slots == 8


@pytest.mark.parametrize("changes", FAMILIES.values(), ids=FAMILIES.keys())
@torch.inference_mode()
def test_greedy_codes_of_every_family_are_those_of_the_uncached_decoder(changes: dict[str, object]) -> None:
    """Alone and in company, guided and not, with codes that are given and without."""
    decoder = lively_decoder(**changes)
    scales = {1.0: None, 3.0: None, 2.0: torch.tensor([5, 3, 9, 2, 7, 1, *[-1] * 10])}
    requests = [
        fitted(decoder, request(2 * i, kept=kept, params=SamplingParams(temperature=0, guidance_scale=scale)))
        for i, (scale, kept) in enumerate(scales.items())
    ]
    drawn = draw(decoder, *requests)
    for one, codes in zip(requests, drawn, strict=True):
        expected = torch.full((1, 16), 0) if one.kept is None else one.kept[None].clamp_min(0)
        for place in range(16):
            if one.kept is None or one.kept[place] < 0:
                logits = [
                    decoder.teacher_forced(ids[None], expected, None if features is None else features[None])[1][
                        0, place
                    ]
                    for ids, features in one.conditions
                ]
                guided = logits[-1] + one.params.guidance_scale * (logits[0] - logits[-1])
                expected[0, place] = guided.argmax()
        assert torch.equal(codes, expected[0])
    assert len({tuple(codes.tolist()) for codes in drawn}) == 3


def test_features_are_checked() -> None:
    decoder = lively_decoder(**FAMILIES["features"])
    one = fitted(decoder, request(0))
    for features in (None, torch.zeros(12, 5), torch.full((12, 6), torch.nan)):
        with pytest.raises(EngineError, match=r"features have shape .*; expected \(12, 6\), of finite numbers"):
            Engine(decoder, num_slots=2).add(dataclasses.replace(one, features=features))
    with pytest.raises(EngineError, match=r"features have shape \(12, 6\); expected None"):
        Engine(lively_decoder(), num_slots=2).add(request(0, features=one.features))


def test_finish_is_known_at_admission(decoder: Decoder) -> None:
    engine = Engine(decoder, num_slots=5)
    ids = [engine.add(request(number)) for number in range(12)]
    expected = {request_id: engine.steps_until_finished(request_id) for request_id in ids}
    done: dict[int, int] = {}
    while len(done) < len(ids):
        for request_id in engine.step().finished:
            done[request_id] = engine.num_steps
    assert done == expected
    with pytest.raises(EngineError, match="not in the engine"):
        engine.steps_until_finished(ids[0])


def test_finish_is_known_in_mid_flight(decoder: Decoder) -> None:
    engine = Engine(decoder, num_slots=4)
    for number in range(6):
        engine.add(request(number))
    for _ in range(5):
        engine.step()
    late = engine.add(request(7))
    expected = engine.num_steps + engine.steps_until_finished(late)
    while late not in engine.step().finished:
        pass
    assert engine.num_steps == expected


def test_kept_codes_are_kept_and_the_first_of_them_cost_no_step(decoder: Decoder) -> None:
    whole = draw(decoder, request(2, kept=None))[0]
    places = torch.arange(16)
    for drawn, num_steps in ((places >= 10, 6), (places % 3 == 2, 14), (places == 15, 1), (places >= 0, 16)):
        engine = Engine(decoder, num_slots=4)
        again = engine.run([request(2, kept=whole.masked_fill(drawn, -1))])[0]
        assert torch.equal(again, whole), "noise and codes before it are the same, so what is drawn is too"
        assert engine.num_steps == num_steps
    other = (whole + 1) % 32
    changed = draw(decoder, request(2, kept=other.masked_fill(places % 4 != 1, -1)))[0]
    assert torch.equal(changed[places % 4 == 1], other[places % 4 == 1])
    assert (changed != whole)[places % 4 != 1].any(), "what is drawn follows what is kept before it"
    assert changed[0] == whole[0]


def test_index_and_seed_make_different_pictures(decoder: Decoder) -> None:
    free = SamplingParams()
    kinds = [request(4, params=free, kept=None, seed=s, index=i) for s, i in ((1, 0), (1, 1), (2, 0), (1, 0))]
    first, second, third, fourth = draw(decoder, *kinds)
    assert torch.equal(first, fourth)
    assert not torch.equal(first, second)
    assert not torch.equal(first, third)


def test_cancelled_slots_are_free_at_once(decoder: Decoder) -> None:
    engine = Engine(decoder, num_slots=2)
    running, waiting, last = (engine.add(request(n, params=SamplingParams(guidance_scale=2))) for n in range(3))
    engine.step()
    assert (engine.num_active, engine.num_waiting, engine.num_free_slots) == (1, 2, 0)
    assert engine.codes_so_far(running).shape[0] >= 1
    assert engine.cancel(waiting)
    assert engine.cancel(running)
    assert not engine.cancel(running)
    assert (engine.num_active, engine.num_waiting, engine.num_free_slots) == (0, 1, 2)
    assert last in engine.step().drawn


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_ids": torch.zeros(5, dtype=torch.int64)}, r"text_ids has shape \(5,\); expected \(12,\)"),
        ({"text_ids": torch.full((12,), 300)}, r"text_ids has ids outside \[0, 300\)"),
        ({"null_ids": None, "params": SamplingParams(guidance_scale=2)}, "no null_ids"),
        ({"kept": torch.zeros(16, dtype=torch.int64)}, "nothing to draw"),
        ({"kept": torch.zeros(15, dtype=torch.int64)}, r"kept has shape \(15,\); expected \(16,\)"),
        ({"kept": torch.tensor([32] + [-1] * 15)}, r"codes outside \[0, 32\)"),
        ({"index": -1}, "index is -1"),
        ({"index": 2**63}, "index is 9223372036854775808"),
        ({"text_ids": torch.zeros(12)}, "text_ids has dtype torch.float32; expected torch.int64"),
        ({"kept": torch.zeros(16)}, "kept has dtype torch.float32; expected torch.int64"),
    ],
)
def test_impossible_requests_are_refused(decoder: Decoder, changes: dict[str, object], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Engine(decoder, num_slots=2).add(request(0, **changes))


def test_bad_seed_and_too_few_slots_are_refused(decoder: Decoder) -> None:
    with pytest.raises(ParameterError, match="seed is -1"):
        Engine(decoder, num_slots=2).add(request(0, seed=-1))
    with pytest.raises(EngineError, match="num_slots is 1"):
        Engine(decoder, num_slots=1)


def test_buckets_change_no_greedy_code_and_run_fewer_rows(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [request(i, params=SamplingParams(temperature=0)) for i in range(5)]
    expected = draw(decoder, *requests)
    engine = Engine(decoder, num_slots=8, buckets=(1, 2, 4))
    sizes: list[int] = []
    forward = engine._step.forward

    def counted(num_slots: int, length: int, keys: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(num_slots)
        return forward(num_slots, length, keys)

    monkeypatch.setattr(engine._step, "forward", counted)
    assert all(map(torch.equal, engine.run(requests), expected))
    assert torch.equal(engine.run(requests[:1])[0], expected[0])
    assert sizes[0] == 8 and sizes[-1] == 1
    with pytest.raises(EngineError, match=r"buckets are \(9,\); they must be in 1..8"):
        Engine(decoder, num_slots=8, buckets=(9,))


def test_finish_steps_by_hand() -> None:
    assert finish_steps([], [(5, 2), (5, 2), (3, 1)], 4) == [5, 5, 8]
    assert finish_steps([(2, 2), (7, 1)], [(10, 2), (4, 1)], 0) == [12, 11]
    assert finish_steps([(2, 1), (3, 1)], [(4, 2)], 0) == [7]
    assert finish_steps([(9, 2)], [], 0) == []


def test_a_stream_yields_each_request_as_soon_as_it_is_finished(decoder: Decoder) -> None:
    slow, quick = request(0, kept=None), request(1, kept=torch.tensor([3] * 12 + [-1] * 4))
    engine = Engine(decoder, num_slots=8)
    num_steps = []
    drawn = []
    for one, codes in engine.stream([slow, quick], on_step=lambda result: num_steps.append(engine.num_steps)):
        drawn.append((one, codes, len(num_steps)))
    assert [(one, at) for one, _, at in drawn] == [(quick, 4), (slow, 16)]
    for one, codes, _ in drawn:
        assert torch.equal(codes, draw(decoder, one)[0])


def test_a_stream_that_is_closed_leaves_nothing_in_the_engine(decoder: Decoder) -> None:
    engine = Engine(decoder, num_slots=4)
    other = engine.add(request(9, kept=None))
    drawing = engine.stream([request(number, kept=None) for number in range(8)])
    next(drawing)
    drawing.close()
    assert engine.num_active + engine.num_waiting <= 1
    engine.cancel(other)
    assert engine.num_free_slots == 4 and not engine.num_waiting


def test_a_mistake_in_one_request_of_a_stream_leaves_nothing_in_the_engine(decoder: Decoder) -> None:
    engine = Engine(decoder, num_slots=4)
    with pytest.raises(EngineError, match="index is -1"):
        engine.run([request(0), request(1, index=-1)])
    assert (engine.num_active, engine.num_waiting, engine.num_steps) == (0, 0, 0)


@pytest.mark.parametrize("num_bytes", [0, 10_000])
def test_prefills_are_kept_within_a_number_of_bytes(
    num_bytes: int, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [request(prompt) for prompt in (1, 2, 1, 3, 2, 1)]
    expected = draw(decoder, *requests, num_slots=2)
    monkeypatch.setattr(prefill, "BYTES_KEPT", num_bytes)
    filled = prefill.Prefill(decoder, decoder.new_cache(2))
    for one in requests:
        filled.fill(0, one.text_ids, None, [])
        assert filled.num_bytes <= num_bytes
    assert all(map(torch.equal, draw(decoder, *requests, num_slots=2), expected))
