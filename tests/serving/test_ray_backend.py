"""RayBackend when replicas die, do not answer or are replaced, over a scripted handle. test_ray.py kills replicas
on a real Ray."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

from dalle.ranking import Ranking
from serving.cluster import ray_backend
from serving.cluster.ray_backend import RayBackend
from serving.jobs import Accepted, Drawn, Event, Job, ModelInfo, Preview, Refused

Script = list[Event | Exception | None]
"""The response of a replica to a job: events, and an exception that ends it; None never answers."""


class Stream:
    """A scripted streaming response of Ray."""

    def __init__(self, script: Script) -> None:
        self._script = iter(script)
        self.cancelled = False

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        try:
            step = next(self._script)
        except StopIteration:
            raise StopAsyncIteration from None
        if step is None:
            await asyncio.sleep(60)
        if isinstance(step, Exception):
            raise step
        assert step is not None
        return step

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A deployment whose replicas take one job after the other, each with its script."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.jobs: list[Job] = []
        self.streams: list[Stream] = []
        self.draw = self

    def options(self, *, stream: bool) -> "Handle":
        assert stream
        return self

    def remote(self, job: Job) -> Stream:
        self.jobs.append(job)
        self.streams.append(Stream(self._scripts.pop(0)))
        return self.streams[-1]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_backend, "PATIENCE", 0.1)
    monkeypatch.setattr(ray_backend, "RETRY_SECONDS", 0.01)


def job(num: int = 2, seconds: float = 30.0) -> Job:
    indices = tuple(range(num))
    return Job(id="one", owner="o", caller="c", prompt="p", seed=1, indices=indices, deadline=time.time() + seconds)


def accepted(fingerprint: str = "fp_1") -> Accepted:
    return Accepted(position=0, estimate=1.0, num_text_tokens=1, num_kept_codes=0, fingerprint=fingerprint)


def drawn(index: int) -> Drawn:
    return Drawn(index=index, image=b"", codes=[], queue_seconds=0.0)


def preview(index: int, number: int) -> Preview:
    return Preview(index=index, number=number, num_codes=1, image=b"")


def events(handle: Handle, one: Job) -> list[Event]:
    async def collect() -> list[Event]:
        backend: Any = RayBackend({"m": handle}, handle, sender="ingress")  # type: ignore[dict-item, arg-type]
        return [event async for event in backend.draw("m", one)]

    found = asyncio.run(collect())
    assert all(stream.cancelled for stream in handle.streams), "a stream was left open"
    return found


FAULT = RayTaskError("draw", "trace", ValueError())  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("death", [RayActorError(), FAULT, RayServeException()])
def test_the_rest_of_a_job_goes_to_another_replica(death: Exception) -> None:
    first: Script = [accepted(), preview(0, 0), drawn(0), preview(1, 0), death]
    handle = Handle(first, [accepted(), preview(1, 0), preview(1, 1), drawn(1)])
    found = events(handle, job())
    assert found == [accepted(), preview(0, 0), drawn(0), preview(1, 0), preview(1, 1), drawn(1)], "nothing comes twice"
    assert [one.indices for one in handle.jobs] == [(0, 1), (1,)]
    assert [one.accepted for one in handle.jobs] == [False, True], "what was promised once is promised"
    assert {one.sender for one in handle.jobs} == {"ingress"}


def test_a_replica_that_dies_after_its_last_picture_is_not_missed() -> None:
    handle = Handle([accepted(), drawn(0), drawn(1), RayActorError()])
    assert events(handle, job()) == [accepted(), drawn(0), drawn(1)]


def ranked(index: int, rank: int, num: int = 8) -> Drawn:
    place = Ranking(rerank="clip", score=1 / rank, rank=rank, best_of=num)
    return dataclasses.replace(drawn(index), ranking=place)


def test_a_choice_among_candidates_is_one_replicas() -> None:
    """The first dies between the best picture and the second; the other one compares fewer candidates."""
    one = dataclasses.replace(job(), num_candidates=6)
    first: Script = [accepted(), preview(0, 0), ranked(5, 1), RayActorError()]
    second: Script = [accepted(), preview(0, 0), ranked(1, 1, 3), ranked(2, 2, 3), RayActorError()]
    handle = Handle(first, second)
    assert events(handle, one) == [accepted(), preview(0, 0), ranked(1, 1, 3), ranked(2, 2, 3)]
    assert [(sent.indices, sent.num_candidates, sent.accepted) for sent in handle.jobs] == [
        ((0, 1), 6, False),
        ((0, 1), 6, True),
    ]


def test_after_three_deaths_the_job_is_refused() -> None:
    dies: Script = [RayActorError()]
    handle = Handle(dies, dies, dies)
    (refused,) = events(handle, job())
    assert isinstance(refused, Refused) and (refused.status, refused.code) == (503, "replica_lost")
    assert refused.retry_after


def test_another_kind_of_engine_does_not_finish_a_picture_that_was_promised() -> None:
    handle = Handle([accepted("fp_1"), RayActorError()], [accepted("fp_2"), drawn(0), drawn(1)])
    found = events(handle, job())
    assert found[0] == accepted("fp_1")
    assert isinstance(found[1], Refused) and found[1].code == "replica_lost" and len(found) == 2


@pytest.mark.parametrize("script", [[None], [accepted(), None]])
def test_nobody_waits_longer_than_the_deadline(script: Script) -> None:
    start = time.monotonic()
    found = events(Handle(script), job(seconds=0.3))
    assert isinstance(found[-1], Refused) and (found[-1].status, found[-1].code) == (408, "deadline_exceeded")
    assert time.monotonic() - start < 10


INFO = ModelInfo(
    id="m", digest="d", height=1, width=1, grid_rows=1, num_codes=1, max_prompt_tokens=1, sampling={}, created=0
)


class Sleeper(Handle):
    """A deployment without replicas, until a call waits for one for `seconds`; they never come if it is None."""

    def __init__(self, seconds: float | None, *scripts: Script) -> None:
        super().__init__(*scripts)
        self.seconds = seconds
        self.awake = False
        self.info = Loading(self)

    def broadcast(self, method: str, *arguments: object) -> "Answers":
        return Answers([INFO] if self.awake else None)


class Loading:
    """The method `info` of a deployment without replicas."""

    def __init__(self, sleeper: Sleeper) -> None:
        self._sleeper = sleeper

    async def remote(self) -> ModelInfo:
        await asyncio.sleep(60 if self._sleeper.seconds is None else self._sleeper.seconds)
        self._sleeper.awake = True
        return INFO


class Answers:
    """The answers to a broadcast; None if there is no replica."""

    def __init__(self, answers: list[ModelInfo] | None) -> None:
        self._answers = answers

    async def results_async(self, timeout_s: float, return_exceptions: bool) -> list[ModelInfo]:
        assert return_exceptions
        if self._answers is None:
            raise DeploymentUnavailableError(DeploymentID("m"))
        return self._answers


def backend_of(sleeper: Sleeper) -> RayBackend:
    handle: Any = sleeper
    return RayBackend({"m": handle}, handle, unloaded_when_idle={"m"})


def test_an_idle_model_is_loaded_for_a_job_whose_deadline_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = Sleeper(0.5, [accepted(), drawn(0), drawn(1)], [accepted(), drawn(0), drawn(1)])
    backend = backend_of(sleeper)
    one = job(seconds=0.2)

    async def draw() -> list[Event]:
        return [event async for event in backend.draw("m", one)]

    assert asyncio.run(draw()) == [accepted(), drawn(0), drawn(1)]
    assert 0.4 < sleeper.jobs[0].deadline - one.deadline < 10
    one = job()
    asyncio.run(draw())
    assert sleeper.jobs[1].deadline == one.deadline, "it is loaded now"


def test_questions_do_not_load_an_idle_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_backend, "_is_unloaded", lambda handle: False)
    assert asyncio.run(backend_of(Sleeper(0.1)).states()) == {}, "it is loaded for the first time"
    monkeypatch.setattr(ray_backend, "_is_unloaded", lambda handle: True)
    sleeper = Sleeper(0.1)
    backend = backend_of(sleeper)
    assert asyncio.run(backend.states()) == {"m": "idle"}
    assert asyncio.run(backend.models()) == [] and not asyncio.run(backend.cancel("job", "me"))
    assert asyncio.run(backend.metrics("")) == [] and not sleeper.awake
    assert asyncio.run(backend.load("m")) == INFO
    assert asyncio.run(backend.states()) == {"m": "loaded"} and asyncio.run(backend.models()) == [INFO]
    sleeper.awake = False
    assert asyncio.run(backend.models()) == [INFO], "its facts are known"


def test_a_model_that_cannot_be_loaded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_backend, "LOAD_SECONDS", 0.1)
    backend = backend_of(Sleeper(None))

    async def draw() -> list[Event]:
        return [event async for event in backend.draw("m", job())]

    (refused,) = asyncio.run(draw())
    assert isinstance(refused, Refused) and (refused.status, refused.code) == (503, "not_ready")
