"""Benchmark of drawing codes: this project's engine beside other projects' generation loops, and the machine's limit.

`python -m benchmarks.decode` draws with random weights of three models, in batches of 1 to 64 pictures, with and
without classifier-free guidance, and prints a markdown table and a plot. Each contender lives in a process of its own.
They take turns, and are compared within a turn: ratios are medians over the turns. Then it times whole pictures of the
default model, and the command `dalle generate`.

A turn times a few steps at the beginning, in the middle and at the end of a picture; `--steps 0` times all steps. The
whole run takes about half an hour on two cores, most of it for compiling a peer and for batches of 32 and 64.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer

from benchmarks.limits import Machine, measure_machine, step_work
from benchmarks.peers import PEERS
from benchmarks.pictures import picture_rows
from benchmarks.tables import table
from benchmarks.workers import Turn, Worker
from dalle.checkpoint import load_checkpoint
from dalle.checkpoint.store import DEFAULT_MODEL, find_model
from dalle.decoder.config import DecoderConfig

__all__ = ["main"]

MODELS = ("bench", "default", "llamagen-b")
BATCHES = "1,2,4,8,16,32,64"
NUM_SEGMENTS = 3


def config_of(model: str) -> DecoderConfig:
    """The decoder of a model of the benchmark."""
    if model == "default":
        decoder = load_checkpoint(find_model(DEFAULT_MODEL)).decoder
        assert decoder is not None
        return decoder.config
    labels = model == "llamagen-b"
    return DecoderConfig(
        text_vocab_size=1001,
        text_length=1 if labels else 64,
        codebook_size=16384,
        grid_height=16,
        grid_width=16,
        attend_padding=labels,
        width=768,
        depth=12,
        num_heads=12,
        num_kv_heads=12,
        head_dim=64,
        mlp="swiglu",
        mlp_width=2048,
        qk_norm=False,
        positions="rotary_2d_image" if labels else "rotary_2d",
        rotary_base=10000.0 if labels else 100.0,
        text_head=False,
    )


def segments_of(num_codes: int, num_steps: int) -> list[tuple[int, int]]:
    """First code and number of codes of each stretch of a picture that is drawn, so that `num_steps` steps are timed;
    0 for all. The first code of a stretch is not timed as a step, because it includes the prompt."""
    each = -(-num_steps // NUM_SEGMENTS) + 1
    if num_steps == 0 or NUM_SEGMENTS * each >= num_codes:
        return [(0, num_codes)]
    return [(max(1, i * (num_codes - each) // (NUM_SEGMENTS - 1)), each) for i in range(NUM_SEGMENTS)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """The turns of all contenders for one batch."""

    model: str
    batch: int
    guided: bool
    turns: dict[str, list[Turn]]
    failures: dict[str, str]
    """Why a contender is missing."""
    num_codes: int
    steps: str
    """Number of steps that a turn times, and their positions."""
    limit: float
    """Least seconds of a step on this machine."""
    num_bytes: float
    """Bytes that a step must read."""

    def step(self, name: str) -> float:
        """Median seconds of a step."""
        return statistics.median(turn.step for turn in self.turns[name])

    @property
    def best_peer(self) -> str | None:
        peers = [name for name in self.turns if name in PEERS]
        return min(peers, key=self.step) if peers else None

    def rows(self) -> list[list[str]]:
        """Rows of the table, those of missing contenders last."""
        case = [str(self.batch), "yes" if self.guided else "no"]
        missing = [[*case, name, f"left out: {why}", *[""] * 7] for name, why in self.failures.items()]
        return [*([*case, *self._figures(name)] for name in self.turns), *missing]

    def _figures(self, name: str) -> list[str]:
        turns, best, step = self.turns[name], self.best_peer, self.step(name)
        first = statistics.median(turn.first for turn in turns if turn.first is not None)
        ratio = "-"
        if best is not None:
            pairs = zip(self.turns[best], turns, strict=True)
            ratio = f"{statistics.median(peer.step / turn.step for peer, turn in pairs):.2f}"
        return [
            f"**{name}**" if name not in PEERS else name,
            f"{self.batch / step:.1f}",
            f"{self.batch / (first + (self.num_codes - 1) * step):.3f}",
            f"{1e3 * step:.2f}",
            ratio,
            f"{self.limit / step:.2f}",
            f"{self.num_bytes / step / 1e9:.1f}",
            f"{max(turn.peak_bytes for turn in turns) / 1e6:,.0f}",
            f"{len(turns)} x {self.steps}",
        ]


HEADER = (
    "pictures",
    "guidance",
    "who",
    "codes/s",
    "pictures/s",
    "ms a step",
    "speed / best peer's",
    "share of the limit",
    "GB/s",
    "memory, MB",
    "timed steps, and the codes that they draw, from 0",
)


def measure(
    model: str, names: Sequence[str], cases: Sequence[tuple[int, bool]], machine: Machine, options: dict[str, Any]
) -> Iterator[Entry]:
    """Measure cases (pictures, guided) of a model, all contenders in turn."""
    config, dtype = config_of(model), options["dtype"]
    workers = []
    for name in names:
        worker = Worker(name, config, dtype, options["threads"], options["device"])
        problem, note = worker.ready()
        if problem is None:
            workers.append(worker)
        if problem is not None or note:
            print(f"{model}, {name}: {note if problem is None else f'left out, {problem}'}\n", flush=True)
    num_codes = config.layout.num_codes
    segments = segments_of(num_codes, options["steps"])
    spans = [f"{first + 1} to {first + num - 1}" for first, num in segments]
    positions = [i for first, num in segments for i in range(first + 1, first + num)]
    steps = f"{len(positions)}: {', '.join(spans)}"
    num_filled = config.text_length + statistics.fmean(positions)
    try:
        for batch, guided in cases:
            turns: dict[str, list[Turn]] = {worker.name: [] for worker in workers}
            failures: dict[str, str] = {}
            work_of_step = step_work(config, batch * (1 + guided), num_filled, dtype.itemsize)
            full_caches = len(workers) * work_of_step.cache_bytes * config.layout.length / num_filled
            crowded = full_caches > psutil.virtual_memory().available / 2
            for number in range(options["turns"] + 1):
                where = segments
                if number == 0:  # to warm up
                    where = [(num_codes // 2, 3)]
                elif number == 1 and segments[0][0] > 0:  # prompts are timed in the first turn only: they take long
                    where = [(0, 1), *segments]
                for worker in [worker for worker in workers if worker.name in turns]:
                    turn = worker.draw(number, batch, guided, where)
                    if crowded:
                        worker.release()
                    if isinstance(turn, str):
                        failures[worker.name] = turn.splitlines()[0]
                        del turns[worker.name]
                    elif number:
                        turns[worker.name].append(turn)
            for worker in workers:
                worker.release()
            limit = machine.step_seconds(work_of_step)
            yield Entry(
                model=model,
                batch=batch,
                guided=guided,
                turns=turns,
                failures=failures,
                num_codes=num_codes,
                steps=steps,
                limit=limit,
                num_bytes=work_of_step.num_bytes,
            )
    finally:
        for worker in workers:
            worker.close()


def plot(entries: Sequence[Entry], path: Path) -> None:
    """Plot codes per second against the number of pictures: a panel for each model, with guidance and without."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models, kinds = list(dict.fromkeys(e.model for e in entries)), sorted({e.guided for e in entries})
    size = (4.5 * len(models), 3.6 * len(kinds))
    figure, panels = pyplot.subplots(len(kinds), len(models), figsize=size, squeeze=False, sharex=True)
    names = list(dict.fromkeys(name for entry in entries for name in entry.turns))
    for (i, guided), (j, model) in itertools.product(enumerate(kinds), enumerate(models)):
        axes = panels[i][j]
        chosen = [entry for entry in entries if entry.model == model and entry.guided == guided]
        axes.plot([e.batch for e in chosen], [e.batch / e.limit for e in chosen], "k--", label="limit of the machine")
        for number, name in enumerate(names):
            seen = [entry for entry in chosen if name in entry.turns]
            width = 1.2 if name in PEERS else 2.5
            rates = [entry.batch / entry.step(name) for entry in seen]
            axes.plot([e.batch for e in seen], rates, marker=".", lw=width, color=f"C{number}", label=name)
        axes.set(xscale="log", yscale="log", title=f"{model}, {'guided' if guided else 'without guidance'}")
        axes.set_xticks([e.batch for e in chosen], [str(e.batch) for e in chosen], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("pictures at once")
    for axes in panels[:, 0]:
        axes.set_ylabel("codes per second")
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def chosen(text: str, known: Sequence[str], option: str) -> list[str]:
    """The names in a list with commas. Raises `typer.BadParameter` for an unknown one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"{', '.join(unknown)}; known are {', '.join(known)}", param_hint=option)
    return names


def main(
    models: Annotated[str, typer.Option(help="Models, with commas between them.")] = ",".join(MODELS),
    batches: Annotated[str, typer.Option(help="Numbers of pictures that are drawn at once.")] = BATCHES,
    guidance: Annotated[str, typer.Option(help="With guidance, without, or both: no,yes.")] = "no,yes",
    peers: Annotated[str, typer.Option(help="Peers, with commas between them; empty for none.")] = ",".join(PEERS),
    backends: Annotated[str, typer.Option(help="Backends of this project's engine.")] = "eager",
    dtype: Annotated[str, typer.Option(help="Type of weights and cache: float32 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="Device: cpu or cuda.")] = "cpu",
    steps: Annotated[int, typer.Option(help="Steps that a turn times, spread over the picture; 0 for all.")] = 6,
    turns: Annotated[int, typer.Option(help="Number of turns.")] = 3,
    threads: Annotated[int, typer.Option(help="Number of CPU threads; 0 for the default of torch.")] = 0,
    pictures: Annotated[bool, typer.Option(help="Time whole pictures of the default model too.")] = True,
    out: Annotated[Path, typer.Option(help="File that the plot is written to.")] = Path("docs/pictures/decode.png"),
) -> None:
    """Compare how fast codes are drawn; print tables and draw a plot."""
    model_names, peer_names = chosen(models, MODELS, "--models"), chosen(peers, [*PEERS], "--peers")
    numeric = getattr(torch, chosen(dtype, ("float32", "bfloat16"), "--dtype")[0])
    guided = [kind == "yes" for kind in chosen(guidance, ("no", "yes"), "--guidance")]
    cases = [(int(batch), kind) for kind in guided for batch in batches.split(",") if batch]
    ours = [f"ours {backend.strip()}" for backend in backends.split(",") if backend.strip()]
    if threads:
        torch.set_num_threads(threads)
    options = {"dtype": numeric, "steps": steps, "turns": turns, "threads": torch.get_num_threads(), "device": device}
    start = time.perf_counter()
    print(f"{dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}, {turns} turns\n", flush=True)
    machine = measure_machine(numeric, device=device)
    entries: list[Entry] = []
    for model in model_names:
        machine = machine.best(measure_machine(numeric, device=device))
        reading = ", ".join(f"{rate / 1e9:.0f} of {size / 2**20:.0f} MiB" for size, rate in machine.reading.items())
        print(f"### {model}\n\nLimits: multiplying {machine.product / 1e9:.0f} GFLOP/s, reading {reading} in GB/s.\n")
        for number, entry in enumerate(measure(model, [*ours, *peer_names], cases, machine, options)):
            rows = table(HEADER, entry.rows())
            print(rows if number == 0 else "\n".join(rows.splitlines()[2:]), flush=True)
            entries.append(entry)
        print()
        plot(entries, out)
    if pictures:
        print(f"### Pictures of the default model\n\n{table(('what', 'figure'), picture_rows())}\n")
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes; plot: {out}")


if __name__ == "__main__":
    typer.run(main)
