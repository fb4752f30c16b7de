"""Jobs that are refused, late, cancelled or failed, and the jobs beside them."""

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dalle import DALLE
from dalle.pipeline import PromptRequest
from serving.engine.async_engine import AsyncEngine
from serving.jobs import EngineFailedError, Event, Given, Preview, Refused
from serving.model_settings import ModelSettings
from tests.support.engines import Start, collect, engines_of, given_picture, hold, images, job, run


@pytest.fixture
def start(model: DALLE) -> Iterator[Start]:
    with engines_of(model) as start:
        yield start


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"prompt": "word " * 40}, "invalid_prompt", "tokens"),
        ({"prompt": " "}, "invalid_prompt", "the prompt is empty"),
        ({"negative_prompt": "word " * 40}, "invalid_prompt", "the negative prompt has"),
        ({"params": {"temperature": -1.0}}, "invalid_value", "temperature is -1.0"),
        ({"params": {"guidance_scale": 1.0}, "negative_prompt": "rain"}, "invalid_value", "guidance_scale must be"),
    ],
)
def test_an_invalid_job_is_refused_with_code_and_message(
    start: Start, changes: dict[str, Any], code: str, message: str
) -> None:
    engine = start()
    (events,) = run(engine, job(**changes))
    (refused,) = events
    assert isinstance(refused, Refused)
    assert (refused.status, refused.code) == (400, code)
    assert message in refused.message
    assert len(images(run(engine, job())[0])) == 1, "and the engine goes on"


def test_a_full_queue_refuses_exactly_what_does_not_fit(start: Start) -> None:
    engine = start(max_queue=5)  # two guided pictures in slots, three waiting: half the queue is for others
    stands, go = hold(engine)
    assert stands.wait(10)
    threading.Timer(0.5, go.set).start()
    results = run(engine, *(job(str(i), seed=i) for i in range(9)))
    refused = [event for events in results for event in events if isinstance(event, Refused)]
    assert len(refused) == 4 and sum(len(images(events)) for events in results) == 5
    for one in refused:
        assert (one.status, one.code) == (429, "queue_full")
        assert one.retry_after is not None and one.retry_after >= 1


def test_a_deadline_that_cannot_be_met_is_refused_at_once(start: Start) -> None:
    engine = start(max_queue=1000)
    engine.thread.schedule.step_seconds = 1.0  # pretended
    (events,) = run(engine, job(deadline=time.time() + 10))
    (refused,) = events
    assert isinstance(refused, Refused)
    assert (refused.status, refused.code, refused.param) == (400, "deadline_unreachable", "deadline")
    assert refused.retry_after is None, "16 steps, and 10 seconds are left: trying again is of no use"


def test_a_deadline_that_passes_stops_the_job(start: Start) -> None:
    engine = start()
    stands, go = hold(engine)
    assert stands.wait(10)
    threading.Timer(0.6, go.set).start()
    late, fine = run(engine, job("late", deadline=time.time() + 0.3), job("fine"))
    # the engine read it only after its deadline
    assert isinstance(late[-1], Refused) and late[-1].code in ("deadline_exceeded", "deadline_unreachable")
    assert len(images(fine)) == 1
    assert engine.thread.engine.num_free_slots == 4


def test_leaving_early_frees_the_slots_within_a_step(start: Start) -> None:
    engine = start()

    async def leave(name: str) -> None:
        events = engine.draw(job(name, indices=(0, 1), num_previews=4))
        async for event in events:
            if isinstance(event, Preview):
                break
        await events.aclose()

    async def everything() -> list[Event]:
        neighbour = asyncio.create_task(collect(engine.draw(job("neighbour", seed=3, params={"guidance_scale": 1.0}))))
        for i in range(5):
            await leave(f"leaver {i}")
        return await neighbour

    alone = images(run(engine, job(seed=3, params={"guidance_scale": 1.0}))[0])
    assert images(asyncio.run(everything())) == alone
    run(engine, job("last"))
    stands, go = hold(engine)
    go.set()
    assert stands.wait(10)
    assert engine.thread.engine.num_free_slots == 4 and not engine.thread.jobs and not engine.thread.schedule.active
    values = {
        sample.name: sample.value
        for family in engine.metrics.registry.collect()
        for sample in family.samples
        if "bucket" not in sample.name
    }
    assert values["dalle_cancellations_total"] == 5
    assert values["dalle_wasted_steps_total"] <= 5, "at most one step for each"
    assert values["dalle_discarded_steps_total"] > 0
    assert values["dalle_queue_length"] == values["dalle_slots_used"] == 0


def test_a_job_can_be_cancelled_by_its_id(start: Start) -> None:
    engine = start()

    async def cancelled() -> list[Event]:
        events: list[Event] = []
        async for event in engine.draw(job("victim", indices=tuple(range(6)), num_previews=2)):
            events.append(event)
            if isinstance(event, Preview):
                assert not engine.cancel("victim", "somebody else")
                assert engine.cancel("victim", "somebody")
        return events

    events = asyncio.run(cancelled())
    assert isinstance(events[-1], Refused) and events[-1].code == "request_cancelled"
    assert not engine.cancel("victim", "somebody")


def test_closing_finishes_what_was_accepted(model: DALLE) -> None:
    engine = AsyncEngine(model, ModelSettings(path="lively", num_slots=4, threads=1)).start()

    async def close_in_the_middle() -> tuple[list[Event], list[Event]]:
        accepted = asyncio.Event()

        async def draw() -> list[Event]:
            events = []
            async for event in engine.draw(job(indices=(0, 1, 2))):
                events.append(event)
                accepted.set()
            return events

        task = asyncio.create_task(draw())
        await accepted.wait()
        await asyncio.to_thread(engine.close)
        return await task, await collect(engine.draw(job("late")))

    events, late = asyncio.run(close_in_the_middle())
    assert len(images(events)) == 3
    assert isinstance(late[0], Refused) and late[0].status == 503


def test_a_failed_step_is_reported_to_every_job(model: DALLE) -> None:
    engine = AsyncEngine(model, ModelSettings(path="lively", num_slots=4, threads=1)).start()

    def fail() -> None:
        raise ZeroDivisionError("on purpose")

    engine.thread.engine.step = fail  # type: ignore[method-assign, assignment]
    for _ in range(2):  # open jobs, and later ones
        with pytest.raises(EngineFailedError, match="on purpose"):
            run(engine, job())
    engine.thread.join()
    for ask in (engine.check, engine.info):
        with pytest.raises(EngineFailedError, match="has failed"):
            ask()


def test_a_stuck_step_is_noticed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start()
    monkeypatch.setattr("serving.engine.engine_thread.STUCK_SECONDS", 2.0)
    time.sleep(2.5)
    engine.check()  # an idle engine wakes once a second
    stands, go = hold(engine)
    assert stands.wait(10)
    time.sleep(2.5)
    with pytest.raises(EngineFailedError, match="not finished a step"):
        engine.check()
    go.set()
    time.sleep(0.5)
    assert len(images(run(engine, job())[0])) == 1


def test_a_picture_that_cannot_be_made_is_not_everybodys(start: Start, model: DALLE) -> None:
    engine = start()
    make = model.picture

    def fail(request: PromptRequest, *rest: Any, **options: Any) -> Any:
        if request.prompt == "a green heart":
            raise ZeroDivisionError("on purpose")
        return make(request, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "picture", fail)
        broken, fine = run(engine, job("broken", prompt="a green heart", indices=(0, 1)), job("fine"))
    assert isinstance(broken[-1], Refused) and broken[-1].code == "engine_failed"
    assert len(images(fine)) == 1
    assert len(images(run(engine, job())[0])) == 1 and not engine.thread.jobs


def test_a_mistake_of_ours_in_one_job_is_not_everybodys(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start()

    def fail(*_: object) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr("serving.engine.open_jobs.kept_codes", fail)
    given = Given(pixels=given_picture().tobytes(), keep=(True,) * 12 + (False,) * 4)
    broken, fine = run(engine, job("broken", given=given), job("fine"))
    (refused,) = broken
    assert isinstance(refused, Refused) and refused.status == 500
    assert len(images(fine)) == 1
