"""FairQueue: callers take turns, each caller's items stay in order, and iteration predicts the order."""

import random

from serving.engine.fair_queue import FairQueue


def filled(items: str) -> FairQueue[str]:
    """Items such as `a1 a2 b1`, pushed in this order; the letter is the caller."""
    queue: FairQueue[str] = FairQueue()
    for item in items.split():
        queue.push(item[0], item)
    return queue


def drained(queue: FairQueue[str]) -> str:
    items = []
    while len(queue):
        assert queue.peek() == next(iter(queue))
        items.append(queue.pop())
    return " ".join(items)


def test_callers_are_served_in_turn() -> None:
    assert drained(filled("a1 a2 a3 a4 b1 b2 c1")) == "a1 b1 c1 a2 b2 a3 a4"


def test_a_returning_caller_queues_behind_the_others() -> None:
    queue = filled("a1 b1 b2")
    assert queue.pop() == "a1"
    queue.push("a", "a2")
    assert drained(queue) == "b1 a2 b2"


def test_iteration_predicts_the_order() -> None:
    chance = random.Random(0)
    for _ in range(100):
        queue = filled(" ".join(f"{chance.choice('abcd')}{i}" for i in range(chance.randrange(20))))
        for _ in range(chance.randrange(5)):
            if len(queue):
                queue.pop()
        assert list(queue) == drained(queue).split()


def test_removed_items_leave_the_turns_alone() -> None:
    queue = filled("a1 a2 b1 b2 c1")
    queue.remove(lambda item: item in ("b1", "b2", "a1"))
    assert len(queue) == 2
    assert drained(queue) == "a2 c1"


def test_a_copy_is_independent() -> None:
    queue = filled("a1 a2 b1")
    copy: FairQueue[str] = FairQueue(queue)
    copy.push("c", "c1")
    assert drained(copy) == "a1 b1 c1 a2"
    assert drained(queue) == "a1 b1 a2"
