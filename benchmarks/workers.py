"""Processes of the benchmarks: each contender is built, works and measures its memory in a process of its own."""

import dataclasses
import itertools
import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.peers import build
from dalle.decoder.config import DecoderConfig

__all__ = ["PeakMemory", "Remote", "Turn", "Worker"]

READY_SECONDS = 120
WORK_SECONDS = 900


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """One measurement of a contender."""

    step: float
    """Median duration of the timed steps, in seconds."""
    first: float | None
    """Seconds until the first code of the picture, prompts included; None in a turn that does not draw it."""
    peak_bytes: int
    """Largest growth of the process's memory since its imports: weights, cache and all that a step needs."""


class PeakMemory:
    """Peak memory of this process on a device. On a CPU it is resident memory above its level at creation, 0 where the
    system does not tell it; on CUDA, what torch has reserved."""

    def __init__(self, device: str) -> None:
        self._on_cuda = torch.device(device).type == "cuda"
        self._base = psutil.Process().memory_info().rss

    def restart(self) -> None:
        if self._on_cuda:
            torch.cuda.reset_peak_memory_stats()
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    @property
    def peak(self) -> int:
        if self._on_cuda:
            return torch.cuda.max_memory_reserved()
        status = Path("/proc/self/status")
        lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
        kilobytes = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
        return max(0, 1024 * kilobytes - self._base)


def _work(
    pipe: Connection, name: str, config: DecoderConfig, dtype: torch.dtype, threads: int, device: str = "cpu"
) -> None:
    """The process of a contender: builds it, answers with an error or None and a note, then draws on demand."""
    torch.set_num_threads(threads)
    memory = PeakMemory(device)
    try:
        contender = build(name, config, dtype, device)
    except Exception as error:
        pipe.send((f"{type(error).__name__}: {error}", ""))
        return
    pipe.send((None, contender.note))
    with torch.inference_mode():
        while (order := pipe.recv()) is not None:
            if order == "release":
                contender.release()
                continue
            seed, batch, guided, segments = order
            generator = torch.Generator().manual_seed(seed)
            text_ids = torch.randint(1, config.text_vocab_size, (batch, config.text_length), generator=generator)
            memory.restart()
            durations: list[float] = []
            first_seconds = None
            try:
                for first, num in segments:
                    codes, seconds = contender.draw(text_ids, guided=guided, first=first, num_codes=num)
                    assert codes.shape == (batch, num) and len(seconds) == num, f"{name} drew {tuple(codes.shape)}"
                    if first == 0:
                        first_seconds = seconds[0]
                    durations += [b - a for a, b in itertools.pairwise(seconds)]
                pipe.send(Turn(step=statistics.median(durations), first=first_seconds, peak_bytes=memory.peak))
            except Exception as error:
                pipe.send(f"{type(error).__name__}: {error}")


class Remote:
    """A process with a pipe: `work(pipe, *arguments)` runs in it. It first answers with an error or None and a note,
    then to every message, and ends after None."""

    def __init__(self, name: str, work: Callable[..., None], *arguments: Any) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def answer(self, seconds: float = WORK_SECONDS) -> Any:
        """The next answer, or an error as text."""
        if not self._pipe.poll(seconds):
            self._process.kill()
            return f"no answer within {seconds:.0f} s"
        try:
            return self._pipe.recv()
        except EOFError:
            return "its process has ended"

    def ready(self, seconds: float = READY_SECONDS) -> tuple[str | None, str]:
        """Wait until the contender is built. Returns the first line of what prevents it, or None, and its note."""
        answer = self.answer(seconds)
        problem, note = (answer, "") if isinstance(answer, str) else answer
        return None if problem is None else problem.splitlines()[0], note

    def send(self, message: Any) -> str | None:
        """Send a message. Returns an error as text."""
        try:
            self._pipe.send(message)
        except OSError:
            return "its process has ended"
        return None

    def close(self) -> None:
        if self._process.is_alive():
            self.send(None)
        self._process.join(20)


class Worker(Remote):
    """A contender of `benchmarks.decode` in a process of its own."""

    def __init__(self, name: str, *arguments: Any) -> None:
        super().__init__(name, _work, name, *arguments)

    def draw(self, seed: int, batch: int, guided: bool, segments: Sequence[tuple[int, int]]) -> Turn | str:
        """Measure a turn. Returns an error as text."""
        answer: Turn | str = self.send((seed, batch, guided, segments)) or self.answer()
        return answer

    def release(self) -> None:
        """Free the contender's caches."""
        self.send("release")
