"""Benchmark of training: this project's steps of both stages beside other projects' training loops.

`python -m benchmarks.training` trains a decoder of 8 x 320 (15 million parameters) and one of 12 x 768 (110 million)
on rows of 32 text ids and 256 codes, and an image tokenizer on pictures of 128 x 128 pixels, all with random weights
and data, and prints a markdown table. Sizes and batch are the same for all. Each contender lives in a process of its
own. They take turns, and are compared within a turn: speeds are medians over the turns. Then the smaller decoder is
trained by one process on one core and by two on two, which share each batch.

The whole run takes about eight minutes on two cores, in the precision that a run has on them; `--compile` takes a
minute longer for each contender that it adds.

`benchmarks.training_steps` says what a step includes and how operations are counted, `benchmarks.training_peers` what
the peers do.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
import typer

from benchmarks.limits import product_rate
from benchmarks.tables import table
from benchmarks.training_peers import PEERS, contenders_of
from benchmarks.training_steps import CASES, Case
from benchmarks.training_workers import Group, Trainee, Turn
from training.hardware import has_bfloat16

__all__ = ["main"]

SCALED = "8x320"
"""The model that is trained by two processes too."""
HEADER = (
    "model",
    "precision",
    "batch",
    "who",
    "rows or pictures/s",
    "s a step",
    "speed",
    "utilisation",
    "memory, MB",
    "timed steps",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is the same in all comparisons."""

    threads: int
    turns: int
    steps: int
    """Steps of a turn."""
    keep_memory: bool
    """Whether peers keep freed memory too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The turns of contenders that were compared."""

    case: str
    batch: int
    precision: str
    turns: dict[str, list[Turn]]
    failures: dict[str, str]
    """Why a contender is missing."""
    notes: dict[str, str]
    """Where a contender differs from the others."""
    rivals: Sequence[str]
    """The contenders of which the fastest has speed 1."""
    peak: float | None
    """Operations per second in a large matrix product; None if it was not measured for so many threads."""
    steps: int
    """Steps of a turn."""

    def step(self, name: str) -> float:
        """Median seconds of a step."""
        return statistics.median(turn.step for turn in self.turns[name])

    @property
    def best(self) -> str | None:
        """The fastest rival."""
        rivals = [name for name in self.turns if name in self.rivals]
        return min(rivals, key=self.step) if rivals else None

    def speed(self, name: str) -> float | None:
        """Speed of a contender as a multiple of the fastest rival's: the median over the turns."""
        if self.best is None:
            return None
        pairs = zip(self.turns[self.best], self.turns[name], strict=True)
        return statistics.median(rival.step / turn.step for rival, turn in pairs)

    def rows(self) -> list[list[str]]:
        """Rows of the table, those of missing contenders last."""
        case = [self.case, self.precision, str(self.batch)]
        missing = [[*case, name, f"left out: {why}", *[""] * 5] for name, why in self.failures.items()]
        return [*([*case, *self._figures(name)] for name in self.turns), *missing]

    def _figures(self, name: str) -> list[str]:
        turns, step, speed = self.turns[name], self.step(name), self.speed(name)
        return [
            name if name in self.rivals else f"**{name}**",
            f"{self.batch / step:.2f}",
            f"{step:.3f}",
            "-" if speed is None else f"{speed:.2f}",
            "-" if self.peak is None else f"{turns[0].work / step / self.peak:.2f}",
            f"{max(turn.peak_bytes for turn in turns) / 1e6:,.0f}",
            f"{len(turns)} x {self.steps}",
        ]


def take_turns(
    name: str,
    case: Case,
    precision: str,
    contenders: Sequence[Trainee | Group],
    rivals: Sequence[str],
    options: Options,
) -> Result:
    """Let contenders take steps in turn, after a step to warm up and compile. Ends their processes."""
    turns: dict[str, list[Turn]] = {}
    failures: dict[str, str] = {}
    notes: dict[str, str] = {}
    try:
        for contender in contenders:
            problem, note = contender.ready()
            if problem is None:
                turns[contender.name] = []
            else:
                failures[contender.name] = problem
            if note:
                notes[f"{name}, {contender.name}"] = note
        peak = product_rate(getattr(torch, precision))
        for number in range(options.turns + 1):
            for contender in [contender for contender in contenders if contender.name in turns]:
                turn = contender.train(options.steps if number else 1)
                if isinstance(turn, str):
                    failures[contender.name] = turn.splitlines()[0]
                    del turns[contender.name]
                elif number:
                    turns[contender.name].append(turn)
            peak = max(peak, product_rate(getattr(torch, precision)))
    finally:
        for contender in contenders:
            contender.close()
    return Result(
        case=name,
        batch=case.batch,
        precision=precision,
        turns=turns,
        failures=failures,
        notes=notes,
        rivals=rivals,
        peak=peak if all(isinstance(contender, Trainee) for contender in contenders) else None,
        steps=options.steps,
    )


def chosen(text: str, known: Sequence[str], option: str) -> list[str]:
    """The names in a list with commas. Raises `typer.BadParameter` for an unknown one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"{', '.join(unknown)}; known are {', '.join(known)}", param_hint=option)
    return names


def results_of(
    models: Sequence[str], precisions: Sequence[str], names: Sequence[str], workers: bool, options: Options
) -> Iterator[Result]:
    """Compare contenders with these names, model by model; then workers."""
    for model, precision in itertools.product(models, precisions):
        trainees = [
            Trainee(name, CASES[model], precision, options.threads, options.keep_memory)
            for name in contenders_of(CASES[model])
            if name in names
        ]
        yield take_turns(model, CASES[model], precision, trainees, [*PEERS], options)
    if workers:
        groups = [Group("ours", CASES[SCALED], precisions[0], count) for count in (1, 2)]
        yield take_turns(SCALED, CASES[SCALED], precisions[0], groups, [groups[0].name], options)


def main(
    models: Annotated[str, typer.Option(help="Models, with commas between them.")] = ",".join(CASES),
    precisions: Annotated[str, typer.Option(help="float32, bfloat16, or both; empty for the one of a run.")] = "",
    peers: Annotated[str, typer.Option(help="Peers, with commas between them; empty for none.")] = ",".join(PEERS),
    compile: Annotated[bool, typer.Option(help="Measure compiled steps too, this project's and peers'.")] = False,
    keep_memory: Annotated[bool, typer.Option(help="Let peers keep freed memory, as this project does.")] = False,
    workers: Annotated[bool, typer.Option(help="Compare two processes with one too.")] = True,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a turn.")] = 1,
    turns: Annotated[int, typer.Option(min=1, help="Number of turns.")] = 2,
    threads: Annotated[int, typer.Option(help="Number of CPU threads; 0 for the default of torch.")] = 0,
) -> None:
    """Compare how fast models are trained; print a table."""
    model_names, peer_names = chosen(models, [*CASES], "--models"), chosen(peers, [*PEERS], "--peers")
    kinds = chosen(precisions, ("float32", "bfloat16"), "--precisions")
    kinds = kinds or ["bfloat16" if has_bfloat16(torch.device("cpu")) else "float32"]
    names = [name for name in ("ours", "ours compiled", *peer_names) if compile or not name.endswith("compiled")]
    if threads:
        torch.set_num_threads(threads)
    options = Options(threads=torch.get_num_threads(), turns=turns, steps=steps, keep_memory=keep_memory)
    start = time.perf_counter()
    print(f"{options.threads} threads, torch {torch.__version__}, {turns} turns of {steps} steps\n", flush=True)
    notes: dict[str, str] = {}
    peaks: dict[str, float] = {}
    for number, result in enumerate(results_of(model_names, kinds, names, workers, options)):
        rows = table(HEADER, result.rows())
        print(rows if number == 0 else "\n".join(rows.splitlines()[2:]), flush=True)
        notes |= result.notes
        peaks[result.precision] = max(result.peak or 0, peaks.get(result.precision, 0))
    for precision, peak in peaks.items():
        notes[precision] = f"a large matrix product has {peak / 1e9:.0f} GFLOP/s at best"
    print("".join(f"\n{name}: {note}" for name, note in notes.items()))
    print(f"\n{(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    typer.run(main)
