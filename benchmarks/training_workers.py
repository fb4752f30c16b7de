"""Processes of `benchmarks.training`: each contender in one of its own, and this project's step in one or several
processes, each on one core."""

import dataclasses
import itertools
import os
import socket
import statistics
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training_peers import build
from benchmarks.training_steps import Case, Contender, row_work
from benchmarks.workers import PeakMemory, Remote
from dalle.device import keep_memory
from training.distributed import joined

__all__ = ["Group", "Trainee", "Turn"]

READY_SECONDS = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """One measurement of a contender."""

    step: float
    """Median duration of the steps, in seconds."""
    peak_bytes: int
    """Largest growth of a process's memory since its imports."""
    work: float
    """Operations of a step."""


def _serve(pipe: Connection, name: str, case: Case, precision: str) -> None:
    """Build a contender and answer with an error or None and its note; then take as many steps as are asked for."""
    memory = PeakMemory("cpu")
    try:
        contender = build(name, case, precision)
        work = case.batch * row_work(case.shape) if case.decoder is not None else _counted(contender)
    except Exception as error:
        pipe.send((f"{type(error).__name__}: {error}", ""))
        return
    pipe.send((None, contender.note))
    while (steps := pipe.recv()) is not None:
        memory.restart()
        try:
            seconds = [contender.step() for _ in range(steps)]
            pipe.send(Turn(step=statistics.median(seconds), peak_bytes=memory.peak, work=work))
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")


def _counted(contender: Contender) -> float:
    """Operations of a step, counted by torch while it is taken."""
    with FlopCounterMode(display=False) as counter:
        contender.step()
    return counter.get_total_flops()


def _work(pipe: Connection, name: str, case: Case, precision: str, threads: int, keeps_memory: bool) -> None:
    torch.set_num_threads(threads)
    if keeps_memory:
        keep_memory()
    _serve(pipe, name, case, precision)


def _rank(pipe: Connection, name: str, case: Case, precision: str, environment: dict[str, str], core: int) -> None:
    """One of several processes that take the steps together."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    os.environ.update(environment)
    with joined():
        _serve(pipe, name, case, precision)


class Trainee(Remote):
    """A contender in a process of its own."""

    def __init__(self, name: str, case: Case, precision: str, threads: int, keeps_memory: bool = False) -> None:
        super().__init__(name, _work, name, case, precision, threads, keeps_memory)

    def train(self, steps: int) -> Turn | str:
        """Take steps. Returns an error as text."""
        answer: Turn | str = self.send(steps) or self.answer()
        return answer


class Group:
    """This project's step in processes that share each batch, as `torchrun` starts them: one thread and one core
    each."""

    def __init__(self, name: str, case: Case, precision: str, count: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared: dict[str, Any] = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.name = f"{name}, {count} {'worker' if count == 1 else 'workers'}"
        self._ranks = [
            Remote(self.name, _rank, name, case, precision, self._environment(shared, rank), core)
            for rank, core in zip(range(count), itertools.cycle(sorted(os.sched_getaffinity(0))), strict=False)
        ]

    @staticmethod
    def _environment(shared: dict[str, Any], rank: int) -> dict[str, str]:
        own = {"RANK": rank, "LOCAL_RANK": rank, "GLOO_SOCKET_IFNAME": "lo"}
        return {key: str(value) for key, value in (shared | own).items()}

    def ready(self) -> tuple[str | None, str]:
        answers = [rank.ready(READY_SECONDS) for rank in self._ranks]
        return next((answer for answer in answers if answer[0] is not None), answers[0])

    def train(self, steps: int) -> Turn | str:
        """Take steps. Returns the turn of the slowest process, or an error as text."""
        failures = [rank.send(steps) for rank in self._ranks]
        answers = [failure or rank.answer() for failure, rank in zip(failures, self._ranks, strict=True)]
        turns = [answer for answer in answers if isinstance(answer, Turn)]
        if len(turns) < len(answers):
            return next(answer for answer in answers if isinstance(answer, str))
        return max(turns, key=lambda turn: turn.step)

    def close(self) -> None:
        for rank in self._ranks:
            rank.close()
