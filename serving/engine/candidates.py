"""`Candidates`: what happens to the candidates of jobs between two steps, on the engine's thread.

A job with candidates waits until each is drawn or given up; then the `Chooser` compares those that are drawn.
"""

import time
from collections.abc import Callable, Collection, Iterable

from torch import Tensor

from dalle.decoder.engine import Engine
from serving.attributes import CODES, STEPS, WAIT
from serving.engine.chooser import Chooser
from serving.engine.open_jobs import OpenJob, OpenPicture
from serving.engine.schedule import Schedule
from serving.metrics import EngineMetrics

__all__ = ["Candidates"]

GIVEN_UP = "given_up"
"""Error type of the spans of a candidate that was given up."""
SPARE_SECONDS = 0.2
"""Time before a job's deadline, besides that of the choice, at which its candidates are given up."""


class Candidates:
    """Finishes and gives up the candidates of one engine.

    done: called with a job when all its candidates are drawn or given up.
    """

    def __init__(
        self,
        engine: Engine,
        schedule: Schedule[OpenPicture],
        chooser: Chooser,
        metrics: EngineMetrics,
        done: Callable[[OpenJob], None],
    ) -> None:
        self._engine = engine
        self._schedule = schedule
        self._chooser = chooser
        self._metrics = metrics
        self._done = done

    def expect(self, open_job: OpenJob) -> None:
        """Prepare the choice of a job that is queued."""
        if open_job.job.num_candidates is not None:
            self._chooser.prepare(open_job.job.rerank)

    def judging_seconds(self, open_job: OpenJob) -> float:
        """Predicted seconds to compare the ordinary pictures of a job; 0 if it compares none."""
        if open_job.job.num_candidates is None:
            return 0.0
        return self._chooser.seconds(len(open_job.job.indices), self._schedule.decode_seconds)

    def estimate(self, open_job: OpenJob, plain: float, now: float) -> float:
        """Predicted seconds until a job that is queued is answered, if no other job arrives. `plain`: those without its
        candidates, which are given up in time for its deadline."""
        drawn = self._schedule.seconds_of_candidates(open_job)
        if not drawn:
            return plain
        judging = self._chooser.seconds(open_job.num_open, self._schedule.decode_seconds)
        return max(plain, min(drawn + judging, open_job.job.deadline - now))

    def finish(self, picture: OpenPicture, codes: Tensor) -> None:
        """Take the codes (N,) of a picture that is compared with others."""
        open_job = picture.open_job
        open_job.finished[picture.request.index] = picture, codes
        if picture.request.index not in open_job.job.indices:
            self._metrics.candidates.inc()
        self._close(open_job, 1)

    def give_way(self, served: Collection[OpenJob]) -> None:
        """Give up the queued candidates that no slots are left for, after pictures of these jobs have got slots."""
        self._give_up(self._schedule.unreachable(served))

    def evict(self, key: int) -> None:
        """Give up a candidate that holds slots, which another picture needs."""
        picture = self._schedule.active.pop(key)
        self._engine.cancel(key)
        num_drawn = picture.num_codes - picture.num_kept
        picture.add_span(STEPS, picture.prefilled, time.monotonic(), {CODES: num_drawn}, GIVEN_UP)
        self._metrics.discarded_steps.inc(num_drawn)
        self._metrics.candidates_given_up.inc()
        self._close(picture.open_job, 1)

    def give_up_late(self, jobs: Iterable[OpenJob], *, closing: bool) -> None:
        """Give up the candidates of jobs whose deadline is near, or of all if the engine closes."""
        now = time.time()
        late: set[OpenJob] = set()
        for open_job in jobs:
            if open_job.job.num_candidates and not open_job.job.spare:
                judging = self._chooser.seconds(len(open_job.finished), self._schedule.decode_seconds)
                if closing or now + judging + SPARE_SECONDS > open_job.job.deadline:
                    late.add(open_job)
        if late:
            active = self._schedule.active.items()
            for key in [key for key, picture in active if picture.candidate and picture.open_job in late]:
                self.evict(key)
            self._give_up(self._schedule.candidates.remove(lambda picture: picture.open_job in late))

    def _give_up(self, queued: list[OpenPicture]) -> None:
        """Give up candidates that were removed from their queue."""
        now = time.monotonic()
        for picture in queued:
            picture.add_span(WAIT, picture.queued, now, error=GIVEN_UP)
            self._metrics.candidates_given_up.inc()
            self._close(picture.open_job, 1)

    def _close(self, open_job: OpenJob, num: int) -> None:
        """Count pictures of a job as drawn or given up. The last ones end the drawing."""
        open_job.num_open -= num
        if not open_job.num_open:
            self._done(open_job)
            self._chooser.submit(open_job)
