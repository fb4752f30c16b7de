"""Admission control: which pictures hold slots, which are queued, and when a new job would finish.

The module has no thread, no clock and no tensor. Every picture takes a known number of steps and is never preempted, so
finish times are computed, not guessed. A job is accepted if the queue has room, if all its pictures will be finished by
its deadline, and if no job that was accepted before would miss its deadline because of it. A job that could never be
accepted is refused with status 400, any other with 429 and a time after which to retry.

Spare pictures are the exception: candidates, of which a job sends the best, and pictures of batches. They get slots
that no ordinary picture wants, candidates first, and give them up when one does, so that the others' times are what
they would be without them. A picture of a batch is then queued again. A candidate is given up, and so are those that
have no slots then (`unreachable`): a job waits for its candidates while slots are idle, and not while others are
served.

Callers take turns (`FairQueue`). The queue's room is shared by dynamic thresholds (Choudhury and Hahne 1998): a caller
can have as many pictures queued as there is room left for others, so that no caller fills the queue alone.
"""

import dataclasses
import itertools
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from typing import Generic, TypeVar

from dalle.decoder.engine import finish_steps
from serving.engine.fair_queue import FairQueue
from serving.jobs import Refused

__all__ = ["Schedule", "Scheduled"]


@dataclasses.dataclass(eq=False, kw_only=True)
class Scheduled:
    """A picture that is queued or being drawn, with everything that decides when it will be finished."""

    caller: str
    deadline: float
    """Time by which it must be finished, in seconds since the epoch."""
    num_slots: int
    """Slots that it takes: 2 with guidance, else 1."""
    num_codes: int
    """Codes that it has so far, including codes kept in front of the first one to draw."""
    total_codes: int
    """Codes of the finished picture."""
    previews: list[int]
    """Numbers of codes at which a preview is due, in rising order."""
    spare: bool = False
    """Whether it is drawn in slots that no ordinary picture wants."""
    candidate: bool = False
    """Whether a spare picture is a candidate of a job, and not of a batch."""
    judged: bool = False
    """Whether it is compared with others before it is decoded. Both run beside the steps, not between them."""
    job: object = None
    """What it belongs to."""

    @property
    def priority(self) -> int:
        """0 for an ordinary picture, 1 for a candidate, 2 for one of a batch. Lower ones get slots first, and take them
        from higher ones."""
        return 0 if not self.spare else 1 if self.candidate else 2

    @property
    def steps_left(self) -> int:
        return self.total_codes - self.num_codes

    @property
    def decodes_left(self) -> list[int]:
        """Numbers of its own steps after which it is decoded: for each preview, and at the end."""
        end = [] if self.judged else [self.steps_left]
        return [*(preview - self.num_codes for preview in self.previews), *end]


S = TypeVar("S", bound=Scheduled)


class Schedule(Generic[S]):
    """The pictures of one engine."""

    def __init__(self, *, num_slots: int, max_queue: int) -> None:
        self.num_slots = num_slots
        self.max_queue = max_queue
        """Largest number of queued pictures."""
        self.queue: FairQueue[S] = FairQueue()
        self.candidates: FairQueue[S] = FairQueue()
        """Queued candidates: they get slots while `queue` is empty."""
        self.spare: FairQueue[S] = FairQueue()
        """Queued pictures of batches: they get slots while both others are empty."""
        self.active: dict[int, S] = {}
        """Pictures that hold slots, by the engine's id."""
        self.step_seconds = 0.0
        """Seconds of a step, as the owner of the schedule measures them."""
        self.decode_seconds = 0.0
        """Seconds to decode a picture, measured likewise."""

    @property
    def num_free_slots(self) -> int:
        return self.num_slots - sum(picture.num_slots for picture in self.active.values())

    @property
    def num_slots_wanted(self) -> int:
        """Slots that pictures hold or are queued for, without spare ones: they are worth no replica."""
        return sum(picture.num_slots for picture in [*self.active.values(), *self.queue] if not picture.spare)

    @property
    def _queues(self) -> tuple[FairQueue[S], FairQueue[S], FairQueue[S]]:
        """The queues, by priority."""
        return self.queue, self.candidates, self.spare

    @property
    def is_idle(self) -> bool:
        """Whether no picture holds slots or is queued."""
        return not self.active and not any(map(len, self._queues))

    def push(self, picture: S) -> None:
        """Queue a picture."""
        self._queues[picture.priority].push(picture.caller, picture)

    def pop(self) -> S | None:
        """Remove the next picture from its queue, if it fits into the free slots, and return it."""
        queue = next(filter(len, self._queues), None)
        return queue.pop() if queue is not None and queue.peek().num_slots <= self.num_free_slots else None

    def evicted(self) -> list[int]:
        """Ids of the spare pictures whose slots the next picture needs: those of the highest priority number, and of
        these those with the fewest codes."""
        queue = next(filter(len, self._queues), None)
        if queue is None:
            return []
        new = queue.peek()
        missing = new.num_slots - self.num_free_slots
        spare = {key: picture for key, picture in self.active.items() if picture.priority > new.priority}
        if missing <= 0 or missing > sum(picture.num_slots for picture in spare.values()):
            return []
        found: list[int] = []
        for key in sorted(spare, key=lambda key: (-spare[key].priority, spare[key].num_codes)):
            if missing > 0:
                found.append(key)
                missing -= spare[key].num_slots
        return found

    def unreachable(self, served: Collection[object]) -> list[S]:
        """Remove and return the queued candidates that are given up: those that no slots are left for because ordinary
        pictures of other jobs have just got slots, or are queued. `served`: the jobs whose pictures got slots."""
        wanting = {*served, *(picture.job for picture in self.queue)}
        if not wanting or not len(self.candidates):
            return []
        free = 0 if len(self.queue) else self.num_free_slots
        found: set[int] = set()
        for picture in self.candidates:
            if picture.num_slots <= free:
                free -= picture.num_slots
            elif wanting - {picture.job}:
                found.add(id(picture))
        return self.candidates.remove(lambda picture: id(picture) in found)

    def remove(self, unwanted: Callable[[S], bool]) -> list[S]:
        """Remove and return all queued pictures for which `unwanted` is true."""
        return [picture for queue in self._queues for picture in queue.remove(unwanted)]

    def consider(
        self, new: Sequence[S], now: float, *, promised: bool = False, judging: float = 0.0
    ) -> Refused | tuple[int, float]:
        """Decide on a job with these pictures, which are not queued yet: why it is refused, or (number of pictures that
        get slots before its first, seconds until all are finished). Candidates are none of these pictures: a job is
        answered without them if need be. `now` is in seconds since the epoch. A job that was `promised` by another
        engine, which has died, is never refused. `judging`: seconds that it takes after its last step."""
        order = self._order(new)
        times = self._times(order)
        estimate = judging + max(end for picture, (_, end) in zip(order, times, strict=True) if picture in new)
        if not promised and new[0].spare:
            if (refused := self._no_spare_room(new)) is not None:
                return refused
        elif not promised:
            refused = self._impossible(new, now, judging) or self._no_room(new, order, times)
            refused = refused or self._too_late(estimate, new[0].deadline - now) or self._others_late(order, times, now)
            if refused is not None:
                return refused
        return order.index(new[0]), estimate

    def seconds_of_candidates(self, job: object) -> float:
        """Seconds until all queued candidates of a job are drawn, if no other job arrives; 0 if there are none, or if
        they will be given up, since other jobs' pictures are queued."""
        order = [*self.queue, *self.candidates]
        mine = [picture.candidate and picture.job is job for picture in order]
        if not any(mine) or any(picture.job is not job for picture in self.queue):
            return 0.0
        return max(end for (_, end), counts in zip(self._times(order), mine, strict=True) if counts)

    def _order(self, new: Sequence[S]) -> list[S]:
        """All queued pictures in the order in which they would get slots, if these were queued too; without those that
        come after these in any case."""
        priority = new[0].priority
        trial: FairQueue[S] = FairQueue(self._queues[priority])
        for picture in new:
            trial.push(picture.caller, picture)
        return [*itertools.chain(*self._queues[:priority]), *trial]

    def _times(self, order: Sequence[S], *, alone: bool = False) -> list[tuple[float, float]]:
        """(start, end) of each picture in seconds from now, if they get slots in this order. `alone` assumes that no
        other picture holds slots. Pictures hold them against those alone that do not come before them."""
        everyone = [] if alone else list(self.active.values())
        priority = order[-1].priority if order else 0
        active = [picture for picture in everyone if picture.priority <= priority]
        waiting = [(picture.steps_left, picture.num_slots) for picture in order]
        free = self.num_slots - sum(picture.num_slots for picture in active)
        ends = finish_steps([(picture.steps_left, picture.num_slots) for picture in active], waiting, free)
        starts = [end - picture.steps_left for picture, end in zip(order, ends, strict=True)]
        # decoding runs between two steps and delays every picture
        decodes = [step for picture in active for step in picture.decodes_left]
        decodes += [start + step for picture, start in zip(order, starts, strict=True) for step in picture.decodes_left]
        for one in everyone:  # so does decoding spare pictures, which follow each other in the slots that they have
            if one.priority > priority and not one.judged:
                decodes += range(one.steps_left, max(ends, default=0) + 1, one.total_codes)
        decodes.sort()

        def seconds(step: int) -> float:
            return step * self.step_seconds + bisect_right(decodes, step) * self.decode_seconds

        return [(seconds(start), seconds(end)) for start, end in zip(starts, ends, strict=True)]

    def _impossible(self, new: Sequence[S], now: float, judging: float) -> Refused | None:
        """The refusal of a job that could not be accepted even on an idle engine."""
        most = self.num_slots // new[0].num_slots + self._share(0)
        if len(new) > most:
            message = f"n is {len(new)}; one caller can have at most {most} pictures drawn or queued at once"
            return Refused(status=400, code="invalid_value", message=message, param="n")
        seconds, left = judging + max(end for _, end in self._times(new, alone=True)), new[0].deadline - now
        if seconds > left:
            message = (
                f"the request takes {seconds:.1f} s, and its deadline is in {left:.1f} s: "
                "ask for fewer pictures or previews, or set a later deadline"
            )
            return Refused(status=400, code="deadline_unreachable", message=message, param="deadline")
        return None

    def _share(self, num_others: int) -> int:
        """Most queued pictures of a caller beside those of others: half of the room that they leave, rounded up."""
        return (self.max_queue - num_others + 1) // 2

    def _no_room(self, new: Sequence[S], order: Sequence[S], times: Sequence[tuple[float, float]]) -> Refused | None:
        """The refusal of a job whose caller would exceed its share of the queue."""
        waiting = [(picture, start) for picture, (start, _) in zip(order, times, strict=True) if start > 0]
        mine = [start for picture, start in waiting if picture.caller == new[0].caller]
        num_others = len(waiting) - len(mine)
        share = self._share(num_others)
        if len(mine) <= share:
            return None
        retry = max(1.0, mine[len(mine) - share - 1])
        others = f", and {num_others} of others" if num_others else ""
        message = (
            f"{len(mine)} of your pictures would be queued{others}; your limit is {share} of {self.max_queue} now; "
            f"try again in {retry:.0f} s"
        )
        return Refused(status=429, code="queue_full", message=message, retry_after=retry)

    def _no_spare_room(self, new: Sequence[S]) -> Refused | None:
        """The refusal of a spare job that the queue of spare pictures has no room for. An empty one takes any job."""
        waiting, limit = len(self.spare), max(self.max_queue, self.num_slots)
        if not waiting or waiting + len(new) <= limit:
            return None
        message = f"{waiting} pictures of batches are queued, and the limit is {limit}"
        retry = max(1.0, new[0].steps_left * self.step_seconds)
        return Refused(status=429, code="queue_full", message=message, retry_after=retry)

    @staticmethod
    def _too_late(estimate: float, left: float) -> Refused | None:
        """The refusal of a job that would finish after its deadline."""
        if estimate <= left:
            return None
        retry = max(1.0, estimate - left)
        message = (
            f"the request would be finished in {estimate:.1f} s, and its deadline is in {left:.1f} s; "
            f"try again in {retry:.0f} s, or ask for fewer pictures or a later deadline"
        )
        return Refused(status=429, code="deadline_unreachable", message=message, retry_after=retry)

    def _others_late(self, order: Sequence[S], times: Sequence[tuple[float, float]], now: float) -> Refused | None:
        """The refusal of a job that would make an accepted picture miss its deadline."""
        after = {id(picture): end for picture, (_, end) in zip(order, times, strict=True)}
        accepted = list(self.queue)
        lateness = [
            now + after[id(picture)] - picture.deadline
            for picture, (_, before) in zip(accepted, self._times(accepted), strict=True)
            if now + before <= picture.deadline < now + after[id(picture)]
        ]
        if not lateness:
            return None
        retry = max(1.0, *lateness)
        message = f"accepted pictures of others would miss their deadlines; try again in {retry:.0f} s"
        return Refused(status=429, code="queue_full", message=message, retry_after=retry)
