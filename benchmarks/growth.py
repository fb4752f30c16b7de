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
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from benchmarks.limits import Machine, measure_machine, median_seconds, step_work
from benchmarks.tables import table
from dalle import Request, SamplingParams
from dalle.decoder.config import DecoderConfig
from dalle.decoder.decoder import Decoder
from dalle.decoder.step import SlotRequest, Step, StepBatch

__all__ = ["Memory", "StepCost", "config_of", "main", "positions_of"]

SIZES = {"8 x 320": (8, 320, 5, 896, 4096), "12 x 768": (12, 768, 12, 2048, 16384)}
"""Depth, width, heads, width of the MLP and number of codes in the codebook, by depth and width."""
PARTS = ("steps", "memory", "admission")
NUM_POSITIONS = 9
TURNS = 3
STEPS_OF_A_TURN = 5


def config_of(model: str, side: int) -> DecoderConfig:
    """A decoder of a grid of side x side codes, behind 32 text ids."""
    depth, width, num_heads, mlp_width, codebook_size = SIZES[model]
    return DecoderConfig(
        text_vocab_size=4096,
        text_length=32,
        codebook_size=codebook_size,
        grid_height=side,
        grid_width=side,
        width=width,
        depth=depth,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=width // num_heads,
        mlp="swiglu",
        mlp_width=mlp_width,
    )


def positions_of(num_codes: int) -> list[int]:
    """Codes that are timed, from the first to the last at equal distances."""
    return [i * (num_codes - 1) // (NUM_POSITIONS - 1) for i in range(NUM_POSITIONS)]


def filled_step(decoder: Decoder, slots: int) -> Step:
    """A step whose cache holds random numbers, and no padding."""
    step = Step(decoder, slots)
    for layer in step.cache.layers:
        layer.keys.normal_()
        layer.values.normal_()
    return step


def requests_of(config: DecoderConfig, slots: int) -> list[SlotRequest]:
    """Guided requests in all slots; an unguided one in a single slot."""
    each = min(2, slots)
    params = SamplingParams(temperature=0.5, guidance_scale=1.5 if each == 2 else 1.0)
    ids = torch.ones(config.text_length, dtype=torch.int64)
    requests = [Request(text_ids=ids, null_ids=ids, params=params, seed=seed) for seed in range(slots // each)]
    num_codes = config.layout.num_codes
    return [SlotRequest.of(one, range(each * i, each * (i + 1)), num_codes) for i, one in enumerate(requests)]


# -- steps


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
        figures = list(zip(self.codes, self.seconds, self.predicted, strict=True))[:: NUM_POSITIONS // 4]
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


# -- memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of a decoder and the step over its slots, in bytes."""

    model: str
    num_codes: int
    slots: int
    weights: int
    packed: int
    """The weights of linear layers again, in the layout in which the eager step on a CPU multiplies by them."""
    tables: int
    """Masks, rotary table and the like."""
    cache: int
    measured: int

    @property
    def predicted(self) -> int:
        return self.weights + self.packed + self.tables + self.cache

    def row(self) -> list[str]:
        sizes = (self.weights, self.packed, self.tables, self.cache, self.predicted, self.measured)
        difference = f"{self.measured / self.predicted - 1:+.1%}"
        return [self.model, f"{self.num_codes:,}", str(self.slots), *(f"{s / 1e6:,.0f}" for s in sizes), difference]


def anonymous_bytes() -> int:
    """Resident memory of this process that is no file's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None, "this system does not report anonymous memory"
    return 1024 * int(found[1])


def size_of(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@torch.inference_mode()
def _run_steps(decoder: Decoder, slots: int) -> Step:
    config = decoder.config
    step = filled_step(decoder, slots)
    batch = StepBatch.stack(requests_of(config, slots), slots, step.device)
    for code in positions_of(config.layout.num_codes):
        step.positions[:] = config.layout.first_code - 1 + code
        step.run(batch, config.layout.first_code + code)
    return step


def measure_memory(model: str, side: int, slots: int) -> Memory:
    """Measure in this process, which has done nothing else before."""
    # what torch allocates once, for its threads and its libraries, is not the decoder's
    _run_steps(Decoder(dataclasses.replace(config_of(model, 2), depth=1)).eval(), 2)
    before = anonymous_bytes()
    decoder = Decoder(config_of(model, side)).eval()
    step = _run_steps(decoder, slots)
    linear = [module.weight for module in decoder.blocks.modules() if isinstance(module, nn.Linear)]
    head = decoder.config.codebook_size * decoder.config.width * decoder.embedding.weight.element_size()
    return Memory(
        model=model,
        num_codes=decoder.layout.num_codes,
        slots=slots,
        weights=size_of(list(decoder.parameters())),
        packed=0 if step.decoder is decoder else size_of(linear) + head,
        tables=size_of(list(decoder.buffers())),
        cache=step.cache.num_bytes,
        measured=anonymous_bytes() - before,
    )


def memory_apart(model: str, side: int, slots: int) -> Memory:
    """Measure in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure_memory, (model, side, slots))


# -- admission


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
        f"{size_of([masks]) / 1e6:,.2f}",
        f"{1e3 * building:,.0f}",
        milliseconds(lambda: SlotRequest.of(one, (0,), num_codes)),
        milliseconds(lambda: StepBatch.stack(active, slots, torch.device("cpu"))),
    ]


# -- the command


STEPS_HEADER = ("decoder", "codes of a picture", "slots", "code", "ms a step", "predicted, ms", "to the first")
MEMORY_HEADER = ("decoder", "codes", "slots", "weights", "packed", "tables", "cache", "predicted", "measured", "more")
ADMISSION_HEADER = ("decoder", "codes", "masks, MB", "building one layer, ms", "request, ms", "batch, ms")


def plot(costs: Sequence[StepCost], memories: Sequence[Memory], path: Path) -> None:
    """Plot durations of steps against the position, and memory against the number of slots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(one.model for one in (*costs, *memories)))
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
        for axes in (steps, memory):
            axes.grid(alpha=0.3)
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
    new = list[StepCost | Memory]()
    if "steps" in parts.split(","):
        machine = measure_machine(torch.float32)
        new += [measure_steps(*case, step_slots, machine) for case in cases]
    if "memory" in parts.split(","):
        new += [memory_apart(*case, int(number)) for case in cases for number in slots.split(",")]
    costs += [one for one in new if isinstance(one, StepCost)]
    memories += [one for one in new if isinstance(one, Memory)]
    if results is not None:
        with results.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(dataclasses.asdict(one)) + "\n" for one in new)
    print(table(STEPS_HEADER, [row for cost in costs for row in cost.rows()]), "\n")
    print(table(MEMORY_HEADER, [memory.row() for memory in memories]), "\n")
    if "admission" in parts.split(","):
        print(table(ADMISSION_HEADER, [admission_row(*case, step_slots) for case in cases]), "\n")
    if costs or memories:
        plot(costs, memories, out)
        print(f"plot: {out}")


if __name__ == "__main__":
    typer.run(main)
