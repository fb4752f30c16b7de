"""Schedule: finish times computed by hand, reasons of refusals, and deadlines that hold for every later job."""

import random
from typing import Any

import pytest

from serving.engine.schedule import Schedule, Scheduled
from serving.jobs import Refused

NOW = 1000.0
STEPS = 10


def picture(caller: str = "a", *, deadline: float = 1000.0, **changes: Any) -> Scheduled:
    """A picture of 10 codes in two slots; `deadline` in seconds from now."""
    values: dict[str, Any] = {"num_slots": 2, "num_codes": 0, "total_codes": STEPS, "previews": []} | changes
    return Scheduled(caller=caller, deadline=NOW + deadline, **values)


def schedule(*, num_slots: int = 4, max_queue: int = 8) -> Schedule[Scheduled]:
    """A schedule for two pictures at once; a step takes a second, decoding no time."""
    one: Schedule[Scheduled] = Schedule(num_slots=num_slots, max_queue=max_queue)
    one.step_seconds = 1.0
    return one


def accept(one: Schedule[Scheduled], *pictures: Scheduled) -> tuple[int, float]:
    outcome = one.consider(pictures, NOW)
    assert not isinstance(outcome, Refused), outcome
    for new in pictures:
        one.queue.push(new.caller, new)
    return outcome


def refusal(one: Schedule[Scheduled], *pictures: Scheduled) -> Refused:
    outcome = one.consider(pictures, NOW)
    assert isinstance(outcome, Refused), outcome
    return outcome


def test_times_by_hand() -> None:
    one = schedule()
    assert accept(one, picture()) == (0, 10.0)
    assert accept(one, picture(), picture()) == (1, 20.0)
    assert one.num_slots_wanted == 6
    one.active[1] = one.queue.pop()
    one.active[1].num_codes = 7
    assert one.num_slots_wanted == 6
    assert accept(one, picture(num_codes=6)) == (2, 14.0), "the others from 0 to 10 and from 3 to 13"


def test_what_another_engine_promised_is_never_refused() -> None:
    one = schedule(max_queue=4)
    accept(one, *(picture(str(caller)) for caller in range(4)))
    assert refusal(one, picture(deadline=15.0)).code == "deadline_unreachable"
    assert refusal(one, picture(), picture(), picture()).code == "queue_full"
    assert one.consider([picture(deadline=15.0)], NOW, promised=True) == (4, 30.0)
    assert one.consider([picture(), picture(), picture()], NOW, promised=True) == (4, 40.0)


def test_decoding_takes_its_time() -> None:
    one = schedule()
    one.decode_seconds = 0.5
    assert accept(one, picture()) == (0, 10.5)
    # 5 decodes by then: its own four, and the other's one
    assert accept(one, picture(previews=[2, 5, 8])) == (1, 12.5)


def test_one_caller_fills_at_most_half_of_the_free_queue() -> None:
    one = schedule(max_queue=8)
    for number in range(6):  # two have slots, four wait: half of the queue
        accept(one, picture("greedy"))
        if number < 2:
            one.active[number] = one.queue.pop()
    full = refusal(one, picture("greedy"))
    assert (full.status, full.code, full.retry_after) == (429, "queue_full", 10.0)
    assert "5 of your pictures would be queued; your limit is 4 of 8 now" in full.message
    for caller, share in (("b", 2), ("c", 1), ("d", 1)):
        for _ in range(share):
            accept(one, picture(caller))
        assert refusal(one, picture(caller)).code == "queue_full"
    assert "and 8 of others; your limit is 0" in refusal(one, picture("e")).message


def test_an_impossible_job_gets_400_and_one_for_a_busy_engine_429() -> None:
    one = schedule(max_queue=4)
    never = refusal(one, *(picture() for _ in range(5)))
    assert (never.status, never.param, never.retry_after) == (400, "n", None)
    assert "n is 5; one caller can have at most 4 pictures" in never.message
    late = refusal(one, picture(deadline=9))
    assert (late.status, late.code, late.param) == (400, "deadline_unreachable", "deadline")
    accept(one, picture(), picture())
    busy = refusal(one, picture(deadline=12))
    assert (busy.status, busy.code, busy.retry_after) == (429, "deadline_unreachable", 8.0)


def test_a_job_that_would_break_accepted_deadlines_is_refused() -> None:
    one = schedule(max_queue=100)
    for _ in range(2):
        accept(one, picture("a"))
    accept(one, picture("a", deadline=25))
    accept(one, picture("a", deadline=25))
    # b's turn comes before a's third picture, which would then be done after 30 seconds
    refused = refusal(one, picture("b"), picture("b"))
    assert (refused.status, refused.code) == (429, "queue_full")
    assert "accepted pictures of others would miss their deadlines" in refused.message and refused.retry_after == 5.0


@pytest.mark.parametrize("seed", range(20))
def test_accepted_jobs_finish_by_their_deadlines(seed: int) -> None:
    """Jobs arrive at random while pictures are drawn; every step takes as long as predicted."""
    chance = random.Random(seed)
    one = schedule(num_slots=6, max_queue=12)
    now, key, finished, refused = NOW, 0, 0, 0
    for _ in range(600):
        if chance.random() < 0.25:
            caller, deadline = chance.choice("abc"), now - NOW + chance.choice([12, 25, 40, 80])
            slots, kept = chance.choice([1, 2]), chance.choice([0, 0, 5])
            new = [
                picture(caller, deadline=deadline, num_slots=slots, num_codes=kept)
                for _ in range(chance.randrange(1, 5))
            ]
            outcome = one.consider(new, now)
            refused += isinstance(outcome, Refused)
            if not isinstance(outcome, Refused):
                for each in new:
                    one.queue.push(caller, each)
        while len(one.queue) and one.queue.peek().num_slots <= one.num_free_slots:
            key += 1
            one.active[key] = one.queue.pop()
        now += 1.0
        for number, drawn in list(one.active.items()):
            drawn.num_codes += 1
            if not drawn.steps_left:
                del one.active[number]
                finished += 1
                assert now <= drawn.deadline
    assert finished > 50 and refused > 20


# -- spare pictures


def test_spare_pictures_get_what_others_leave_and_give_it_up() -> None:
    one = schedule()
    for caller in "aab":
        one.push(picture(caller, spare=True))
    first, second = one.pop(), one.pop()
    assert first is not None and second is not None and (first.caller, second.caller) == ("a", "b")
    one.active = {1: first, 2: second}
    first.num_codes = 4
    assert one.pop() is None and one.evicted() == [], "spare pictures take nothing from each other"
    assert one.num_slots_wanted == 0
    one.push(picture("c"))
    assert one.evicted() == [2], "the one with the fewest codes"
    one.push(picture("d", num_slots=4))
    del one.active[2]
    served = one.pop()
    assert served is not None and served.caller == "c" and one.num_slots_wanted == 4
    one.active[3] = served
    assert one.evicted() == [], "one spare picture less is not enough for all four slots"
    assert one.pop() is None, "a spare picture does not overtake"
    one.remove(lambda queued: True)
    assert not len(one.queue) and not len(one.spare)


def test_spare_pictures_count_in_no_promise() -> None:
    one = schedule(max_queue=4)
    one.active = {key: picture(spare=True) for key in range(2)}
    for _ in range(4):
        one.push(picture(spare=True))
    assert accept(one, picture("b", deadline=10.0)) == (0, 10.0)
    assert accept(one, picture("b", deadline=20.0), picture("b", deadline=20.0)) == (1, 20.0)
    full = refusal(one, picture(spare=True))
    assert full.status == 429 and full.message == "4 pictures of batches are queued, and the limit is 4"
    one.spare.remove(lambda queued: True)
    alone = one.consider([picture("b", spare=True) for _ in range(6)], NOW)
    assert alone == (3, 60.0), "any spare job is taken alone; it comes after all others"


def test_decoding_spare_pictures_takes_time_from_others() -> None:
    one = schedule()
    one.decode_seconds = 0.5
    one.active[1] = picture(spare=True, num_codes=6)
    assert accept(one, picture("b")) == (0, 11.0), "one decode after 4 steps, and its own"
