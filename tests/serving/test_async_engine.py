"""AsyncEngine: the order of events, the same bytes in any batch, and callers in turn."""

import asyncio
import dataclasses
import io
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from PIL import Image

from dalle import DALLE
from dalle.decoder.sampling import SamplingParams
from dalle.images import encode_image
from dalle.receipt import Receipt
from serving.jobs import Accepted, Drawn, Given, Job, Preview
from tests.support.engines import Start, engines_of, given_picture, hold, images, job, run

NUM_CODES = 16


@pytest.fixture
def start(model: DALLE) -> Iterator[Start]:
    with engines_of(model) as start:
        yield start


def test_a_job_gives_what_the_library_draws(start: Start, model: DALLE) -> None:
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


def test_a_seed_gives_the_same_bytes_beside_any_other_requests(start: Start) -> None:
    engine = start(max_queue=100)
    alone = images(run(engine, job())[0])[0]
    crowd = [job(f"other {i}", seed=i, caller=str(i % 3), indices=(0, 1)) for i in range(12)]
    together = run(engine, *crowd[:7], job(), *crowd[7:])
    assert images(together[7])[0] == alone
    assert all(len(images(events)) == 2 for i, events in enumerate(together) if i != 7)


def test_previews_come_in_order_and_change_nothing(start: Start) -> None:
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


def test_as_many_previews_as_there_are_rows(start: Start) -> None:
    (events,) = run(start(), job(num_previews=4))
    assert sum(isinstance(event, Preview) for event in events) == 4


def test_callers_take_turns(start: Start) -> None:
    engine = start(max_queue=100)
    done: list[str] = []

    async def draw(one: Job) -> None:
        async for event in engine.draw(one):
            if isinstance(event, Drawn):
                done.append(one.caller)

    async def both() -> None:
        stands, go = hold(engine)
        await asyncio.to_thread(stands.wait, 10)
        assert not engine.thread.schedule.active
        greedy = asyncio.create_task(draw(job("greedy", caller="greedy", indices=tuple(range(20)))))
        await asyncio.sleep(0.05)
        modest = asyncio.create_task(draw(job("modest", caller="modest", indices=(0, 1))))
        await asyncio.sleep(0.05)
        go.set()
        await asyncio.gather(greedy, modest)

    asyncio.run(both())
    assert done.index("modest") < 4 and len(done) == 22


def test_two_jobs_may_have_one_id(start: Start) -> None:
    """A replica that seemed lost can receive a job that it is drawing already."""
    first, second = run(start(), job(), job())
    assert images(first) == images(second) and len(images(first)) == 1


def test_the_estimate_knows_previews(start: Start) -> None:
    engine = start()
    engine.thread.schedule.step_seconds, engine.thread.schedule.decode_seconds = 0.01, 1.0
    plain, watched = (run(engine, job(num_previews=num))[0][0] for num in (0, 4))
    assert isinstance(plain, Accepted) and isinstance(watched, Accepted)
    assert watched.estimate > plain.estimate + 2


def test_fast_mode_draws_too(start: Start) -> None:
    (events,) = run(start(mode="fast"), job(params=dataclasses.asdict(SamplingParams(temperature=0))))
    strict = run(start(), job(params=dataclasses.asdict(SamplingParams(temperature=0))))[0]
    assert isinstance(events[-1], Drawn) and isinstance(strict[-1], Drawn)
    assert events[-1].codes == strict[-1].codes


def test_rows_of_a_given_picture_are_kept(start: Start, model: DALLE) -> None:
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


def test_only_what_is_not_kept_is_drawn(start: Start, model: DALLE) -> None:
    picture = given_picture()
    codes = model.encode(picture)
    given = Given(pixels=picture.tobytes(), keep=tuple(place not in (3, 5) for place in range(16)))
    drawn = [run(start(), job(given=given, seed=seed))[0][-1] for seed in range(6)]
    changed = torch.zeros(4, 4, dtype=torch.bool)
    for one in drawn:
        assert isinstance(one, Drawn)
        changed |= torch.tensor(one.codes) != codes
    assert changed.nonzero().tolist() == [[0, 3], [1, 1]]


def test_a_prompt_is_tokenized_once_and_not_on_the_engines_thread(
    start: Start, model: DALLE, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenized: list[tuple[str, str]] = []
    tokenizer = model.text_tokenizer
    assert tokenizer is not None
    tokenize = tokenizer.tokenize

    def noted(text: str) -> list[int]:
        tokenized.append((text, threading.current_thread().name))
        return tokenize(text)

    engine = start()
    monkeypatch.setattr(tokenizer, "tokenize", noted)
    (events,) = run(engine, job(indices=(0, 1, 2), num_previews=2))
    assert len(images(events)) == 3
    assert [text for text, _ in tokenized if text] == ["a red panda"]
    assert "engine" not in {thread for _, thread in tokenized}


def test_jobs_are_drawn_in_the_order_in_which_they_arrive(
    start: Start, model: DALLE, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = model.text_tokenizer
    assert tokenizer is not None
    tokenize = tokenizer.tokenize

    def slow_at_first(text: str) -> list[int]:
        time.sleep(0.1 if text == "number 0" else 0)
        return tokenize(text)

    engine = start(max_queue=100)
    monkeypatch.setattr(tokenizer, "tokenize", slow_at_first)
    done: list[str] = []

    async def draw(one: Job) -> None:
        async for event in engine.draw(one):
            if isinstance(event, Drawn):
                done.append(one.id)

    async def all_of_them() -> None:
        await asyncio.gather(*(draw(job(f"number {i}", prompt=f"number {i}", indices=(0, 1))) for i in range(6)))

    asyncio.run(all_of_them())
    assert done == [f"number {i}" for i in range(6) for _ in range(2)]
