"""Benchmark of growth: the cost of a code against its position, and memory against slots, for grids of 64 to 4,096.

`python -m benchmarks.growth` builds decoders with random weights and the step of the engine, operation by operation,
and prints markdown tables and a plot:

    steps      duration of a step against the position of the code, beside a prediction: the first step's duration, and
               the time to read what the cache has more, at the bandwidth that `benchmarks.limits` measures
    memory     anonymous memory of a process, beside a prediction: weights, their packed copy, the decoder's tables and
               `KVCache.num_bytes`; each in a process of its own
    admission  duration of the work for a new request besides its prefill, and the size of the tables

Steps are measured with a cache full of random numbers and all slots at one position. `--parts steps`, `--models`
and `--sides` run a part, below two minutes each.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.grids import SIZES, config_of, filled_step, positions_of, requests_of
from benchmarks.limits import Machine, measure_machine, median_seconds, step_work
from benchmarks.memory import Memory, memory_apart
from benchmarks.tables import table
from dalle.decoder.config import DecoderConfig
from dalle.decoder.decoder import Decoder
from dalle.decoder.step import SlotRequest, StepBatch

__all__ = ["StepCost", "main", "predicted_seconds"]

PARTS = ("steps", "memory", "admission")
TURNS = 3
STEPS_OF_A_TURN = 5
COLUMNS = 5
"""Number of codes of a grid that the table shows; the plot shows all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCost:
    """Durations of steps of one decoder by position."""

    model: str
    num_codes: int
    slots: int
    codes: Sequence[int]
    """Codes that are drawn, from 0."""
    seconds: Sequence[float]
    """Median seconds of the step of each."""
    predicted: Sequence[float]
    """The first step's seconds, and those of reading what the cache has more."""

    def rows(self) -> list[list[str]]:
        figures = list(zip(self.codes, self.seconds, self.predicted, strict=True))[:: len(self.codes) // (COLUMNS - 1)]
        sizes = [self.model, f"{self.num_codes:,}", str(self.slots)]
        return [
            [*sizes, f"{code:,}", f"{1e3 * t:.2f}", f"{1e3 * p:.2f}", f"{t / self.seconds[0]:.2f}"]
            for code, t, p in figures
        ]


@torch.inference_mode()
def measure_steps(model: str, side: int, slots: int, machine: Machine) -> StepCost:
    config = config_of(model, side)
    step = filled_step(Decoder(config).eval(), slots)
    batch = StepBatch.stack(requests_of(config, slots), slots, step.device)
    codes = positions_of(config.layout.num_codes)
    times: dict[int, list[float]] = {code: [] for code in codes}
    for turn in range(TURNS + 1):
        for code in codes:
            for _ in range(STEPS_OF_A_TURN):
                position = config.layout.first_code - 1 + code
                step.positions[:] = position
                start = time.perf_counter()
                step.run(batch, position + 1)
                if turn:  # the first one warms up
                    times[code].append(time.perf_counter() - start)
    seconds = [statistics.median(times[code]) for code in codes]
    return StepCost(
        model=model,
        num_codes=config.layout.num_codes,
        slots=slots,
        codes=codes,
        seconds=seconds,
        predicted=predicted_seconds(config, slots, codes, seconds[0], machine),
    )


def predicted_seconds(
    config: DecoderConfig, slots: int, codes: Sequence[int], first: float, machine: Machine
) -> list[float]:
    """The first step's duration, and the time to read what the cache has more than in the first step."""
    works = [step_work(config, slots, config.layout.first_code + code, 4) for code in codes]
    more = [work.cache_bytes - works[0].cache_bytes for work in works]
    return [first + size / machine.bandwidth(work.num_bytes) for size, work in zip(more, works, strict=True)]


def admission_row(model: str, side: int, slots: int) -> list[str]:
    """What a new request costs besides its prefill, and the size of the decoder's tables."""
    config = config_of(model, side)
    start = time.perf_counter()
    masks = Decoder(dataclasses.replace(config, depth=1)).masks
    building = time.perf_counter() - start

    def milliseconds(run: Callable[[], object]) -> str:
        return f"{1e3 * median_seconds(run, 20):.2f}"

    one, active = requests_of(config, 1)[0].request, requests_of(config, slots)
    num_codes = config.layout.num_codes
    return [
        model,
        f"{num_codes:,}",
        f"{masks.nbytes / 1e6:,.2f}",
        f"{1e3 * building:,.0f}",
        milliseconds(lambda: SlotRequest.of(one, (0,), num_codes)),
        milliseconds(lambda: StepBatch.stack(active, slots, torch.device("cpu"))),
    ]


STEPS_HEADER = ("decoder", "codes of a picture", "slots", "code", "ms a step", "predicted, ms", "to the first")
MEMORY_HEADER = ("decoder", "codes", "slots", "weights", "packed", "tables", "cache", "predicted", "measured", "more")
ADMISSION_HEADER = ("decoder", "codes", "masks, MB", "building one layer, ms", "request, ms", "batch, ms")


def plot(costs: Sequence[StepCost], memories: Sequence[Memory], path: Path) -> None:
    """Plot durations of steps against the position, and memory against the number of slots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys([*(one.model for one in costs), *(one.model for one in memories)]))
    figure, panels = pyplot.subplots(2, len(models), figsize=(5 * len(models), 7), squeeze=False)
    for column, model in enumerate(models):
        steps, memory = panels[:, column]
        for number, cost in enumerate(one for one in costs if one.model == model):
            places = [1 + code for code in cost.codes]
            milliseconds = [[1e3 * t for t in times] for times in (cost.seconds, cost.predicted)]
            steps.plot(places, milliseconds[0], marker=".", color=f"C{number}", label=f"{cost.num_codes:,} codes")
            steps.plot(places, milliseconds[1], color=f"C{number}", ls="--", lw=1)
        for number, num_codes in enumerate(dict.fromkeys(one.num_codes for one in memories)):
            chosen = [one for one in memories if one.model == model and one.num_codes == num_codes]
            slots = [one.slots for one in chosen]
            memory.plot(slots, [one.predicted / 1e9 for one in chosen], color=f"C{number}", ls="--", lw=1)
            measured = [one.measured / 1e9 for one in chosen]
            memory.plot(slots, measured, ls="", marker="o", color=f"C{number}", label=f"{num_codes:,} codes")
        slots_of_steps = next((cost.slots for cost in costs if cost.model == model), 0)
        title = f"{model}; dashed: predicted"
        steps.set(xscale="log", xlabel="number of the code", ylabel=f"ms a step of {slots_of_steps} slots", title=title)
        memory.set(xscale="log", yscale="log", xlabel="slots", ylabel="memory, GB")
        for axes, shown in ((steps, costs), (memory, memories)):
            axes.grid(alpha=0.3)
            if shown:
                axes.legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(
    parts: Annotated[str, typer.Option(help="Parts, with commas between them.")] = ",".join(PARTS),
    models: Annotated[str, typer.Option(help="Decoders, by depth x width.")] = ",".join(SIZES),
    sides: Annotated[str, typer.Option(help="Sides of the grids.")] = "8,16,32,64",
    slots: Annotated[str, typer.Option(help="Numbers of slots whose memory is measured.")] = "1,2,4,8,16,32",
    step_slots: Annotated[int, typer.Option(help="Slots of the steps that are timed.")] = 8,
    results: Annotated[Path | None, typer.Option(help="JSON lines to append to; tables and plot show all.")] = None,
    out: Annotated[Path, typer.Option(help="File that the plot is written to.")] = Path("docs/pictures/growth.png"),
) -> None:
    """Measure how steps and memory grow with codes and slots; print tables and draw a plot."""
    costs, memories = list[StepCost](), list[Memory]()
    for line in results.read_text(encoding="utf-8").splitlines() if results is not None and results.exists() else []:
        values = json.loads(line)
        (costs.append(StepCost(**values)) if "seconds" in values else memories.append(Memory(**values)))
    cases = [(model, int(side)) for model in models.split(",") for side in sides.split(",")]
    print(f"float32, {torch.get_num_threads()} threads, torch {torch.__version__}\n", flush=True)

    def keep(one: StepCost | Memory) -> None:
        (costs.append(one) if isinstance(one, StepCost) else memories.append(one))
        if results is not None:
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(one)) + "\n")

    if "steps" in parts.split(","):
        machine = measure_machine(torch.float32)
        for case in cases:
            keep(measure_steps(*case, step_slots, machine))
    if "memory" in parts.split(","):
        for case in cases:
            for number in slots.split(","):
                keep(memory_apart(*case, int(number)))
    print(table(STEPS_HEADER, [row for cost in costs for row in cost.rows()]), "\n")
    print(table(MEMORY_HEADER, [memory.row() for memory in memories]), "\n")
    if "admission" in parts.split(","):
        print(table(ADMISSION_HEADER, [admission_row(*case, step_slots) for case in cases]), "\n")
    if costs or memories:
        plot(costs, memories, out)
        print(f"plot: {out}")


if __name__ == "__main__":
    typer.run(main)
