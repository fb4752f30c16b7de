"""The engine with its thread: events in order, a queue with limits and deadlines, cancellation that can be proved."""

import asyncio
import dataclasses
import io
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dalle import DALLE
from dalle.images import encode_image
from dalle.receipt import Receipt
from dalle.sampling import SamplingParams
from serving.async_engine import AsyncEngine
from serving.jobs import Accepted, Drawn, EngineFailedError, Event, Given, Job, Preview, Refused
from serving.settings import ModelSettings

NUM_CODES = 16


@pytest.fixture(scope="module")
def model(model_folder: Path) -> DALLE:
    return DALLE.load(model_folder)


@pytest.fixture
def start(model: DALLE) -> Iterator[Callable[..., AsyncEngine]]:
    engines: list[AsyncEngine] = []

    def started(**settings: Any) -> AsyncEngine:
        values: dict[str, Any] = {"path": "lively", "num_slots": 4, "threads": 1, "max_queue": 8} | settings
        engines.append(AsyncEngine(model, ModelSettings(**values)).start())
        return engines[-1]

    yield started
    for engine in engines:
        engine.close()


def job(name: str = "one", **changes: Any) -> Job:
    values: dict[str, Any] = {
        "id": name,
        "owner": "somebody",
        "caller": "somebody",
        "prompt": "a red panda",
        "seed": 7,
        "indices": (0,),
        "deadline": time.time() + 60,
    }
    return Job(**(values | changes))


async def collect(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


def run(engine: AsyncEngine, *jobs: Job) -> list[list[Event]]:
    """The events of jobs that come at the same time."""

    async def all_of_them() -> list[list[Event]]:
        return await asyncio.gather(*(collect(engine.draw(one)) for one in jobs))

    return asyncio.run(all_of_them())


def images(events: list[Event]) -> dict[int, bytes]:
    return {event.index: event.image for event in events if isinstance(event, Drawn)}


def hold(engine: AsyncEngine) -> tuple[threading.Event, threading.Event]:
    """Stop the engine's thread between two steps: (it stands, let it go)."""
    stands, go = threading.Event(), threading.Event()
    stop_unwanted = engine._stop_unwanted

    def wait() -> None:
        engine._stop_unwanted = stop_unwanted  # type: ignore[method-assign]
        stands.set()
        assert go.wait(30)

    engine._stop_unwanted = wait  # type: ignore[method-assign]
    engine._arrivals.put(None)
    return stands, go


def test_a_job_gives_what_the_library_draws(start: Callable[..., AsyncEngine], model: DALLE) -> None:
    params = SamplingParams(temperature=0.8, guidance_scale=3.0)
    (events,) = run(start(num_slots=8), job(indices=(0, 1, 5), params=params.to_dict(), negative_prompt="rain"))
    accepted, *drawn = events
    assert isinstance(accepted, Accepted)
    assert accepted.position == 0 and accepted.num_kept_codes == 0
    assert model.text_tokenizer is not None
    assert accepted.num_text_tokens == len(model.text_tokenizer.tokenize("a red panda"))
    expected = {
        picture.index: picture for picture in model.generate("a red panda", params, n=6, seed=7, negative_prompt="rain")
    }
    assert {one.index for one in drawn if isinstance(one, Drawn)} == {0, 1, 5}
    for one in drawn:
        assert isinstance(one, Drawn)
        picture = expected[one.index]
        assert one.image == encode_image(picture.image, format="png", text=picture.receipt.to_text()), "byte for byte"
        assert [list(row) for row in picture.receipt.codes] == one.codes


def test_the_same_seed_gives_the_same_bytes_in_any_company(start: Callable[..., AsyncEngine]) -> None:
    engine = start(max_queue=100)
    alone = images(run(engine, job())[0])[0]
    crowd = [job(f"other {i}", seed=i, caller=str(i % 3), indices=(0, 1)) for i in range(12)]
    together = run(engine, *crowd[:7], job(), *crowd[7:])
    assert images(together[7])[0] == alone
    assert all(len(images(events)) == 2 for i, events in enumerate(together) if i != 7)


def test_previews_come_in_order_and_change_nothing(start: Callable[..., AsyncEngine]) -> None:
    engine = start()
    plain = images(run(engine, job(indices=(0, 1)))[0])
    (events,) = run(engine, job(indices=(0, 1), num_previews=3))
    assert images(events) == plain
    for index in (0, 1):
        mine = [one for one in events if isinstance(one, Preview | Drawn) and one.index == index]
        assert [type(one) for one in mine] == [Preview, Preview, Preview, Drawn]
        previews = [one for one in mine if isinstance(one, Preview)]
        assert [one.number for one in previews] == [0, 1, 2]
        counts = [one.num_codes for one in previews]
        assert counts == sorted(set(counts)) and 0 < counts[0] < NUM_CODES / 2 and counts[-1] < NUM_CODES
        final = Image.open(io.BytesIO(plain[index]))
        for one in previews:
            whole_rows = one.num_codes // 4 * 4
            preview = Image.open(io.BytesIO(one.image))
            assert preview.size == final.size
            assert preview.getpixel((15, 15)) == (235, 235, 235), "what is to come is blank"
            if whole_rows:
                assert preview.getpixel((0, 0)) != (235, 235, 235)


def test_as_many_previews_as_there_are_rows(start: Callable[..., AsyncEngine]) -> None:
    (events,) = run(start(), job(num_previews=4))
    assert sum(isinstance(event, Preview) for event in events) == 4


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
def test_a_mistake_is_refused_in_words(
    start: Callable[..., AsyncEngine], changes: dict[str, Any], code: str, message: str
) -> None:
    engine = start()
    (events,) = run(engine, job(**changes))
    (refused,) = events
    assert isinstance(refused, Refused)
    assert (refused.status, refused.code) == (400, code)
    assert message in refused.message
    assert len(images(run(engine, job())[0])) == 1, "and the engine goes on"


def test_a_full_queue_refuses_exactly_what_does_not_fit(start: Callable[..., AsyncEngine]) -> None:
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


def test_a_deadline_that_cannot_be_met_is_refused_at_once(start: Callable[..., AsyncEngine]) -> None:
    engine = start(max_queue=1000)
    engine._schedule.step_seconds = 1.0  # so it says
    (events,) = run(engine, job(deadline=time.time() + 10))
    (refused,) = events
    assert isinstance(refused, Refused)
    assert (refused.status, refused.code, refused.param) == (400, "deadline_unreachable", "deadline")
    assert refused.retry_after is None, "16 steps, and 10 seconds are left: trying again is of no use"


def test_a_deadline_that_passes_stops_the_job(start: Callable[..., AsyncEngine]) -> None:
    engine = start()
    stands, go = hold(engine)
    assert stands.wait(10)
    threading.Timer(0.6, go.set).start()
    late, fine = run(engine, job("late", deadline=time.time() + 0.3), job("fine"))
    # it was taken from the mailbox only after its deadline
    assert isinstance(late[-1], Refused) and late[-1].code in ("deadline_exceeded", "deadline_unreachable")
    assert len(images(fine)) == 1
    assert engine._engine.num_free_slots == 4


def test_callers_take_turns(start: Callable[..., AsyncEngine]) -> None:
    engine = start(max_queue=100)
    done: list[str] = []

    async def draw(one: Job) -> None:
        async for event in engine.draw(one):
            if isinstance(event, Drawn):
                done.append(one.caller)

    async def both() -> None:
        stands, go = hold(engine)
        await asyncio.to_thread(stands.wait, 10)
        assert not engine._schedule.active
        greedy = asyncio.create_task(draw(job("greedy", caller="greedy", indices=tuple(range(20)))))
        await asyncio.sleep(0.05)
        modest = asyncio.create_task(draw(job("modest", caller="modest", indices=(0, 1))))
        await asyncio.sleep(0.05)
        go.set()
        await asyncio.gather(greedy, modest)

    asyncio.run(both())
    assert done.index("modest") < 4 and len(done) == 22


def test_leaving_early_frees_the_slots_within_a_step(start: Callable[..., AsyncEngine]) -> None:
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
    assert engine._engine.num_free_slots == 4 and not engine._jobs and not engine._schedule.active
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


def test_a_job_can_be_cancelled_by_its_id(start: Callable[..., AsyncEngine]) -> None:
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


def test_a_failed_step_is_told_to_everybody(model: DALLE) -> None:
    engine = AsyncEngine(model, ModelSettings(path="lively", num_slots=4, threads=1)).start()

    def fail() -> None:
        raise ZeroDivisionError("on purpose")

    engine._engine.step = fail  # type: ignore[method-assign, assignment]
    for _ in range(2):  # those who are there, and those who come later
        with pytest.raises(EngineFailedError, match="on purpose"):
            run(engine, job())
    engine._thread.join()
    for ask in (engine.check, engine.info):
        with pytest.raises(EngineFailedError, match="has failed"):
            ask()


def test_a_stuck_step_is_noticed(start: Callable[..., AsyncEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start()
    monkeypatch.setattr("serving.async_engine.STUCK_SECONDS", 2.0)
    time.sleep(2.5)
    engine.check()  # at rest it turns once a second
    stands, go = hold(engine)
    assert stands.wait(10)
    time.sleep(2.5)
    with pytest.raises(EngineFailedError, match="not finished a step"):
        engine.check()
    go.set()
    time.sleep(0.5)
    assert len(images(run(engine, job())[0])) == 1


def test_a_picture_that_cannot_be_made_is_not_everybodys(start: Callable[..., AsyncEngine], model: DALLE) -> None:
    engine = start()
    make = model.picture

    def fail(prompt: str | None, *rest: Any) -> Any:
        if prompt == "a green heart":
            raise ZeroDivisionError("on purpose")
        return make(prompt, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "picture", fail)
        broken, fine = run(engine, job("broken", prompt="a green heart", indices=(0, 1)), job("fine"))
    assert isinstance(broken[-1], Refused) and broken[-1].code == "engine_failed"
    assert len(images(fine)) == 1
    assert len(images(run(engine, job())[0])) == 1 and not engine._jobs


def test_two_jobs_may_have_one_id(start: Callable[..., AsyncEngine]) -> None:
    """A replica that seemed lost may be sent what it is drawing already."""
    first, second = run(start(), job(), job())
    assert images(first) == images(second) and len(images(first)) == 1


def test_the_estimate_knows_previews(start: Callable[..., AsyncEngine]) -> None:
    engine = start()
    engine._schedule.step_seconds, engine._schedule.decode_seconds = 0.01, 1.0
    plain, watched = (run(engine, job(num_previews=num))[0][0] for num in (0, 4))
    assert isinstance(plain, Accepted) and isinstance(watched, Accepted)
    assert watched.estimate > plain.estimate + 2


def test_a_mistake_of_ours_in_one_job_is_not_everybodys(
    start: Callable[..., AsyncEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start()

    def fail(*_: object) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr("serving.open_jobs.kept_codes", fail)
    given = Given(pixels=given_picture().tobytes(), keep=(True,) * 12 + (False,) * 4)
    broken, fine = run(engine, job("broken", given=given), job("fine"))
    (refused,) = broken
    assert isinstance(refused, Refused) and refused.status == 500
    assert len(images(fine)) == 1


def test_fast_mode_draws_too(start: Callable[..., AsyncEngine]) -> None:
    (events,) = run(start(mode="fast"), job(params=dataclasses.asdict(SamplingParams(temperature=0))))
    strict = run(start(), job(params=dataclasses.asdict(SamplingParams(temperature=0))))[0]
    assert isinstance(events[-1], Drawn) and isinstance(strict[-1], Drawn)
    assert events[-1].codes == strict[-1].codes


def given_picture() -> Image.Image:
    torch.manual_seed(1)
    pixels = (torch.rand(16, 16, 3) * 255).byte()
    return Image.fromarray(pixels.numpy())


def test_rows_of_a_given_picture_are_kept(start: Callable[..., AsyncEngine], model: DALLE) -> None:
    picture = given_picture()
    codes = model.encode(picture).tolist()
    given = Given(pixels=picture.tobytes(), keep=(True,) * 12 + (False,) * 4)
    (events,) = run(start(), job(given=given))
    accepted, drawn = events
    assert isinstance(accepted, Accepted) and accepted.num_kept_codes == 12
    assert isinstance(drawn, Drawn)
    assert drawn.codes[:3] == codes[:3]
    receipt = Receipt.from_text(Image.open(io.BytesIO(drawn.image)).text)  # type: ignore[attr-defined]
    assert receipt.parameters["kept"] == "fff0"


def test_only_what_is_not_kept_is_drawn(start: Callable[..., AsyncEngine], model: DALLE) -> None:
    picture = given_picture()
    codes = model.encode(picture)
    given = Given(pixels=picture.tobytes(), keep=tuple(place not in (3, 5) for place in range(16)))
    drawn = [run(start(), job(given=given, seed=seed))[0][-1] for seed in range(6)]
    changed = torch.zeros(4, 4, dtype=torch.bool)
    for one in drawn:
        assert isinstance(one, Drawn)
        changed |= torch.tensor(one.codes) != codes
    assert changed.nonzero().tolist() == [[0, 3], [1, 1]]
