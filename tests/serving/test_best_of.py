"""Candidates in the engine: the library's choice when it is idle, and nobody who waits for them when it is not."""

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dalle import DALLE
from dalle.images import encode_image
from dalle.ranking import Ranking
from serving.engine.async_engine import AsyncEngine
from serving.engine.schedule import Schedule, Scheduled
from serving.jobs import Accepted, Drawn, Event, Given, Preview, Refused
from tests.serving.test_schedule import picture, schedule
from tests.support.engines import Start, collect, engines_of, given_picture, hold, job, run

NUM_CODES = 16


@pytest.fixture
def start(model: DALLE) -> Iterator[Start]:
    with engines_of(model) as start:
        yield start


def drawn(events: list[Event]) -> list[Drawn]:
    assert not any(isinstance(event, Refused) for event in events), events
    return [event for event in events if isinstance(event, Drawn)]


def ranking(one: Drawn) -> Ranking:
    assert one.ranking is not None
    return one.ranking


def value(engine: AsyncEngine, name: str) -> float:
    found = engine.metrics.registry.get_sample_value(f"dalle_{name}_total", {"model": "lively"})
    assert found is not None
    return found


def hold_at(engine: AsyncEngine, num_steps: int) -> tuple[threading.Event, threading.Event]:
    """Hold an engine after so many steps from now, before it takes the jobs that have arrived meanwhile: see `hold`."""
    stands, go = threading.Event(), threading.Event()
    take, at = engine.thread._take_arrivals, engine.thread.engine.num_steps + num_steps

    def wait() -> None:
        if engine.thread.engine.num_steps == at and not stands.is_set():
            stands.set()
            assert go.wait(60)
        take()

    engine.thread._take_arrivals = wait  # type: ignore[method-assign]
    return stands, go


# -- an idle engine


@pytest.mark.parametrize("rerank", ["likelihood", "clip"])
def test_a_lone_caller_gets_the_choice_of_the_library(start: Start, model: DALLE, rerank: Any) -> None:
    expected = list(model.generate("a red panda", n=2, best_of=9, rerank=rerank, seed=7))
    engine = start()
    (events,) = run(engine, job(indices=(0, 1), num_candidates=7, rerank=rerank))
    found = drawn(events)
    assert [one.index for one in found] == [picture.index for picture in expected], "the best first"
    for one, other in zip(found, expected, strict=True):
        assert one.ranking == other.receipt.ranking
        assert one.image == encode_image(other.image, format="png", text=other.receipt.to_text()), "byte for byte"
    assert [ranking(one).best_of for one in found] == [9, 9]
    assert (value(engine, "candidates"), value(engine, "candidates_given_up")) == (7, 0)
    assert value(engine, "pictures") == 2, "the others are not decoded to files"


def test_candidates_of_a_given_picture_and_previews_of_the_first(start: Start) -> None:
    given = Given(pixels=given_picture().tobytes(), keep=(True,) * 8 + (False,) * 8)
    changes: dict[str, Any] = {"given": given, "num_candidates": 5, "rerank": "likelihood", "num_previews": 2}
    (events,) = run(start(), job(**changes))
    assert [type(event) for event in events] == [Accepted, Preview, Preview, Drawn]
    assert {event.index for event in events if isinstance(event, Preview)} == {0}
    assert ranking(drawn(events)[0]).best_of == 6


def test_best_of_n_itself_is_an_order_of_plain_pictures(start: Start, model: DALLE) -> None:
    (events,) = run(start(), job(indices=(0, 1, 2), num_candidates=0))
    assert [ranking(one).rank for one in drawn(events)] == [1, 2, 3]
    assert {one.index for one in drawn(events)} == {0, 1, 2}


# -- others


def test_a_second_caller_starts_as_if_there_were_no_candidates(start: Start) -> None:
    """There is room for two pictures: the first one has half of it, and one candidate after another the other half."""
    engine = start(parallel=1)
    stands, go = hold_at(engine, NUM_CODES + 4)
    steps: dict[str, int] = {}

    async def other() -> list[Event]:
        await asyncio.to_thread(stands.wait, 60)
        arrived = engine.thread.engine.num_steps
        task = asyncio.create_task(collect(engine.draw(job("other", caller="other", seed=1))))
        while engine.thread.arrivals.empty():
            await asyncio.sleep(0.01)
        go.set()
        found = await task
        steps["other"] = engine.thread.engine.num_steps - arrived
        return found

    async def both() -> tuple[list[Event], list[Event]]:
        first = collect(engine.draw(job("first", num_candidates=15, rerank="likelihood")))
        return await asyncio.gather(first, other())

    mine, others = asyncio.run(both())
    (accepted, *_), (best,) = others, drawn(mine)
    assert isinstance(accepted, Accepted) and accepted.position == 0
    # 16 steps draw two pictures; the next two candidates have 4 codes each when one of them gives its slots up
    assert ranking(best).best_of == 3
    assert (value(engine, "candidates"), value(engine, "candidates_given_up")) == (2, 13)
    assert value(engine, "discarded_steps") == 4
    assert steps["other"] == NUM_CODES, "and it takes slots at once"
    alone = drawn(run(start(), job("other", seed=1))[0])
    assert drawn(others)[0].image == alone[0].image


def test_candidates_wait_for_slots_that_are_busy_and_not_for_a_queue(start: Start) -> None:
    engine = start(max_queue=100)
    stands, go = hold(engine)
    assert stands.wait(10)
    threading.Timer(0.3, go.set).start()
    crowd = [job(f"{i}", seed=i, caller=f"{i}", num_candidates=8, rerank="likelihood") for i in range(6)]
    results = [drawn(events) for events in run(engine, *crowd)]
    compared = [ranking(one).best_of for (one,) in results]
    assert len(compared) == 6 and min(compared) == 1, "everybody is answered, some without any candidate"
    assert value(engine, "candidates") + value(engine, "candidates_given_up") == 6 * 8
    assert sum(compared) == 6 + value(engine, "candidates")


def test_a_batch_draws_all_candidates_and_comes_after_those_of_others(start: Start, model: DALLE) -> None:
    engine = start()
    batch = job("batch", caller="b", spare=True, indices=(0, 1), num_candidates=4, rerank="likelihood")
    found, other = run(engine, batch, job("other", seed=1, num_candidates=3, rerank="likelihood"))
    expected = model.generate("a red panda", n=2, best_of=6, rerank="likelihood", seed=7)
    assert [(one.index, one.ranking) for one in drawn(found)] == [(p.index, p.receipt.ranking) for p in expected]
    assert ranking(drawn(other)[0]).best_of == 4, "pictures of a batch make nobody give up candidates"


# -- the end of a job


def test_the_deadline_ends_candidates_and_not_the_job(start: Start) -> None:
    engine = start(parallel=1)
    step = engine.thread.engine.step

    def slowly() -> Any:
        time.sleep(0.02)
        return step()

    engine.thread.engine.step = slowly  # type: ignore[method-assign]
    one = job(num_candidates=400, rerank="likelihood", deadline=time.time() + 3)
    (events,) = run(engine, one)
    accepted, best = events
    assert isinstance(accepted, Accepted) and 2 < accepted.estimate <= 3, "candidates take what time there is"
    assert isinstance(best, Drawn) and 1 <= ranking(best).best_of < 400
    assert value(engine, "candidates_given_up") == 401 - ranking(best).best_of


def test_a_caller_that_leaves_frees_all_slots_within_a_step(start: Start) -> None:
    engine = start(parallel=1)
    stands, go = hold_at(engine, 3)

    async def leave() -> None:
        events = engine.draw(job(num_candidates=15))
        assert isinstance(await anext(events), Accepted)
        await asyncio.to_thread(stands.wait, 60)
        await events.aclose()
        go.set()
        while engine.thread.jobs:
            await asyncio.sleep(0.01)

    asyncio.run(leave())
    assert engine.thread.schedule.is_idle and engine.thread.engine.num_free_slots == 4
    assert value(engine, "wasted_steps") <= 1


def test_a_job_is_cancelled_while_it_is_judged(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start()
    compared = engine.thread.chooser._compared
    judging, go = threading.Event(), threading.Event()

    def wait(open_job: Any) -> Any:
        judging.set()
        assert go.wait(30)
        return compared(open_job)

    monkeypatch.setattr(engine.thread.chooser, "_compared", wait)

    async def cancelled() -> list[Event]:
        task = asyncio.create_task(collect(engine.draw(job("victim", num_candidates=2, rerank="likelihood"))))
        await asyncio.to_thread(judging.wait, 30)
        assert engine.cancel("victim", "somebody")
        go.set()
        return await task

    *_, last = asyncio.run(cancelled())
    assert isinstance(last, Refused) and last.code == "request_cancelled"


def test_a_judge_that_fails_fails_its_job_alone(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start()
    monkeypatch.setattr(engine.thread.chooser, "_clip", "/nowhere")
    (failed,), (works,) = (
        run(engine, job(num_candidates=1, rerank=rerank))[0][-1:] for rerank in ("clip", "likelihood")
    )
    assert isinstance(failed, Refused) and (failed.status, failed.code) == (500, "engine_failed")
    assert isinstance(works, Drawn)


def test_closing_gives_candidates_up_and_answers(model: DALLE) -> None:
    with engines_of(model) as start:
        engine = start(parallel=1)
        stands, go = hold_at(engine, 3)
        found: list[Event] = []
        calling = threading.Thread(
            target=lambda: found.extend(run(engine, job(num_candidates=50, rerank="likelihood"))[0])
        )
        calling.start()
        assert stands.wait(60)
        engine.thread.closing = True
        go.set()
        calling.join()
    assert ranking(drawn(found)[0]).best_of == 1


# -- the schedule


def candidate(of: str, **changes: Any) -> Scheduled:
    return picture(of, job=of, spare=True, candidate=True, judged=True, **changes)


def filled(*active: Scheduled, num_slots: int = 4) -> Schedule[Scheduled]:
    one = schedule(num_slots=num_slots)
    one.active = dict(enumerate(active))
    return one


def test_slots_go_to_pictures_then_candidates_then_batches() -> None:
    one = filled(picture("b", spare=True, num_codes=8), candidate("a", num_codes=2))
    assert one.num_slots_wanted == 0 and one.evicted() == []
    one.push(candidate("a"))
    assert one.evicted() == [0], "a candidate takes the slots of a batch's picture, and of no other candidate"
    one.push(picture("c"))
    assert one.evicted() == [0], "and so does a picture, although the candidate has fewer codes"
    del one.active[0]
    served = one.pop()
    assert served is not None and served.caller == "c"
    one.active[2] = served
    assert one.evicted() == []
    one.push(picture("d"))
    assert one.evicted() == [1]


def test_candidates_are_given_up_for_others_and_not_for_their_own_job() -> None:
    one = filled(picture("a", job="a"), num_slots=6)
    queued = [candidate("a") for _ in range(4)]
    for each in queued:
        one.push(each)
    one.push(picture("a", job="a"))
    assert one.unreachable({"a"}) == [], "its own pictures come first, and it waits"
    one.queue.pop()
    assert one.unreachable(set()) == [], "slots are busy, but nobody else wants them"
    assert one.unreachable({"b"}) == queued[2:], "two still find free slots"
    one.push(picture("b", job="b"))
    assert one.unreachable(set()) == queued[:2], "those are the queued picture's now"


def test_candidates_count_in_no_promise_to_others() -> None:
    one = filled(candidate("a", num_codes=5), candidate("a"))
    one.decode_seconds = 0.5
    for _ in range(9):
        one.push(candidate("a"))
    assert one.consider([picture("b", deadline=10.5)], 1000.0) == (0, 10.5), "candidates are not decoded between steps"
    assert one.consider([picture("b", deadline=11.5)], 1000.0, judging=1.0) == (0, 11.5)
    late = one.consider([picture("b", deadline=11.0)], 1000.0, judging=1.0)
    assert isinstance(late, Refused) and late.code == "deadline_unreachable"


def test_the_estimate_of_candidates_by_hand() -> None:
    one = filled(picture("a", job="a"))
    assert one.seconds_of_candidates("a") == 0.0
    for _ in range(3):
        one.push(candidate("a"))
    assert one.seconds_of_candidates("a") == 20.0, "one beside the picture, and two after it"
    one.push(picture("b", job="b"))
    assert one.seconds_of_candidates("a") == 0.0, "they will be given up"
