"""Experiment: is positional encoding essential?

`python -m training.experiments.positions` trains the same decoder with each kind of positions, on the same batches and
for equally many steps: runs of `training.decoder` whose configurations differ in `model.positions` alone. It prints
markdown tables, and draws the losses and a sheet of pictures. A finished model lends its tokenizers.

Exit codes: 0 done, 2 a mistake of the caller, 4 stopped by SIGTERM, 130 by Ctrl-C. The same command resumes: token
shards and finished runs in the output folder are kept.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from PIL import Image

from dalle import DALLE
from dalle.checkpoint.store import DEFAULT_MODEL, find_model
from dalle.command_line import DONE, STOPPED
from dalle.config import Config, require, require_at_least
from dalle.decoder.sampling import SamplingParams
from dalle.device import choose_device, keep_memory
from dalle.text.bpe import TextTokenizer
from training.codes import write_token_shards
from training.command import exit_on_mistake, parse
from training.curves import Curve, read_logged
from training.decoder import PRESETS
from training.decoder import run as train_decoder
from training.decoder_config import DecoderTrainingConfig
from training.experiments.figures import draw_losses, draw_pictures
from training.experiments.probe import position_errors
from training.pairs.shards import PairShards, find_shards
from training.run_folder import claimed, locked, saved_step
from training.starting_model import load_stage_1, tokenizers_of
from training.token_shards import TokenShards

__all__ = ["Kind", "PositionsOptions", "Run", "compare", "main"]

Kind = Literal["none", "sinusoidal", "learned", "axial", "rotary_2d"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SAME = ("shards", "val_shards", "tokenizers", "decoder", "steps", "batch_size")
"""Options that may not change while the output folder holds runs."""
TEXT_TOKENIZER_FILE = "tokenizer.json"
SMALL: dict[str, Any] = {"width": 128, "depth": 4, "num_heads": 2, "num_kv_heads": 2, "mlp_width": 384}
"""Shape of the small decoder: 3 million parameters."""
NUM_CAPTIONS = 8
"""Captions of each picture."""
NUM_VALIDATIONS = 6
"""Validations of a run, evenly spaced."""
NUM_PROBED = 256
"""Captions of validation with which positions are read from hidden states."""
SAMPLING = SamplingParams(guidance_scale=3.0)
"""Sampling parameters of the pictures, as in validations of stage 2. At a low temperature, a decoder that has seen so
little draws white alone."""
PROMPTS = (
    "red heart, twemoji style emoji",
    "grinning face, noto style emoji",
    "full moon, fluent flat style emoji",
    "blue circle, twemoji style emoji",
    "flag of Italy, square flag style",
    "soccer ball, emojione style emoji",
    "tangerine, fluent 3d style emoji",
    "evergreen tree, noto style emoji",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionsOptions(Config):
    """Train the default decoder with each kind of positions, and compare losses and pictures.

    The same command resumes an experiment that was stopped. Exit codes: 0 done, 2 a mistake of the caller, 4 stopped by
    SIGTERM, 130 by Ctrl-C.
    """

    shards: tuple[str, ...] = ("data/emoji/train-*.tar",)
    """Picture-caption shards to train on: tar files, folders, glob patterns or URLs."""
    val_shards: tuple[str, ...] = ("data/emoji/val_combo.tar",)
    """Picture-caption shards to validate on."""
    tokenizers: str = DEFAULT_MODEL
    """Model whose image tokenizer and text tokenizer encode the shards, by name or path."""
    decoder: Literal["default", "small", "tiny"] = "default"
    """Decoder that is trained: the default model's, a `small` one of 4 blocks and width 128 for less time, or that of
    the preset `tiny`, a test that everything runs."""
    steps: int = 400
    """Number of steps of each run."""
    batch_size: int = 32
    """Number of rows in a step."""
    seed: int = 0
    """Random seed of weights and batches, the same for all kinds."""
    repeated: tuple[Kind, ...] = ("none", "rotary_2d")
    """Kinds that are also trained with the next seed, which shows how much of a difference is chance."""
    prompts: tuple[str, ...] = PROMPTS
    """Prompts of the sheet of pictures."""
    out: str = "runs/positions"
    """Output folder for token shards and run folders."""
    plot: str = "docs/pictures/positions.png"
    """File that the plot of the losses is written to."""
    sheet: str = "docs/pictures/positions-drawn.png"
    """File that the sheet of pictures is written to."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "steps", "batch_size")
        require(len(self.prompts) > 0, "prompts needs at least one prompt")
        require(
            0 <= self.seed < 2**31 - 1, f"seed is {self.seed}; it must be in [0, 2^31 - 1), as the next one is used"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run of the experiment."""

    kind: str
    seed: int
    scalars: dict[str, Curve]
    """What the run has logged."""
    errors: list[float]
    """Mean errors of positions read from hidden states, as `position_errors` returns them."""

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return f"{self.kind}-{self.seed}"

    def last(self, name: str) -> float:
        """The last value of a scalar."""
        return self.scalars[name][-1][1]


def configuration(options: PositionsOptions, kind: Kind, seed: int) -> DecoderTrainingConfig:
    """The preset with these positions and this seed. Only they differ between the runs of an experiment."""
    out, tokenizers = Path(options.out), find_model(options.tokenizers)
    preset = PRESETS["tiny" if options.decoder == "tiny" else "emoji"]()
    shape = SMALL if options.decoder == "small" else {}
    return dataclasses.replace(
        preset,
        run=str(out / f"{kind}-{seed}"),
        name=f"positions-{kind}",
        image_tokenizer=str(tokenizers),
        text_tokenizer=str(tokenizers / TEXT_TOKENIZER_FILE),
        train_shards=(str(out / "codes" / "train"),),
        val_shards=(str(out / "codes" / "val"),),
        micro_batch_size=None,
        model=dataclasses.replace(preset.model, positions=kind, **shape),
        loop=dataclasses.replace(
            preset.loop,
            steps=options.steps,
            batch_size=options.batch_size,
            seed=seed,
            warmup_steps=options.steps // 10,
            average_decay=0.98,
            look_steps=max(1, options.steps // NUM_VALIDATIONS),
            workers=0,
        ),
    )


def encode(shards: Sequence[Path], tokenizers: Path, out: Path) -> None:
    """Write the token shards of these shards, unless there are some."""
    if not any(out.glob("*.safetensors")):
        write_token_shards(
            PairShards(shards, progress=True),
            load_stage_1(tokenizers),
            TextTokenizer.load(tokenizers / TEXT_TOKENIZER_FILE),
            out,
            num_captions=NUM_CAPTIONS,
            seed=0,
            device=choose_device("auto"),
        )


def compare(options: PositionsOptions) -> bool:
    """Run the experiment: train, print tables, draw. Returns False if SIGTERM stopped a run before its end.

    Raises `DataError` if the output folder holds another experiment, and errors as stage 2 does.
    """
    keep_memory()
    out, tokenizers = Path(options.out), find_model(options.tokenizers)
    cases = [(kind, options.seed) for kind in KINDS] + [(kind, options.seed + 1) for kind in options.repeated]
    same = {name: options.to_dict()[name] for name in SAME}
    with locked(out):
        with claimed(out, same, ["codes", *(f"{kind}-{seed}" for kind, seed in cases)]):
            shards = {"train": find_shards(options.shards), "val": find_shards(options.val_shards)}
        for split, paths in shards.items():
            encode(paths, tokenizers, out / "codes" / split)
        for config in (configuration(options, *case) for case in cases):
            if not is_finished(config) and not train_decoder(config):
                return False
    runs = [finished_run(configuration(options, *case)) for case in cases]
    for lines in (losses_table(runs), errors_table(runs)):
        print("\n", *lines, sep="\n")
    reference = next(run for run in runs if run.kind == "rotary_2d")
    draw_losses({run.name: run.scalars for run in runs}, reference.name, Path(options.plot))
    draw_pictures(dict(pictures(options)), options.prompts, Path(options.sheet))
    print(f"\nplot: {options.plot}\nsheet: {options.sheet}")
    return True


def is_finished(config: DecoderTrainingConfig) -> bool:
    """Whether a run has taken all its steps and written its model."""
    return saved_step(Path(config.run)) == config.loop.steps and (Path(config.run) / "model").is_dir()


def finished_run(config: DecoderTrainingConfig) -> Run:
    """What a finished run has logged, and the positions that can be read from its model's hidden states."""
    image_tokenizer, text_tokenizer = tokenizers_of(config, None)
    rows = TokenShards.load(find_shards(config.val_shards), image_tokenizer, text_tokenizer)
    chosen = torch.arange(min(NUM_PROBED, len(rows.codes)))
    text_ids = rows.text_ids[chosen, 0].long()
    decoder = DALLE.load(Path(config.run) / "model", device="cpu").decoder.eval()
    return Run(
        kind=config.model.positions,
        seed=config.loop.seed,
        scalars=read_logged(Path(config.run)).scalars,
        errors=position_errors(decoder, text_ids),
    )


def pictures(options: PositionsOptions) -> Iterator[tuple[str, list[Image.Image]]]:
    """For each kind, pictures of the prompts."""
    for kind in KINDS:
        model = DALLE.load(Path(configuration(options, kind, options.seed).run) / "model")
        yield kind, [picture.image for picture in model.generate(options.prompts, SAMPLING, seed=options.seed)]


def losses_table(runs: Sequence[Run]) -> list[str]:
    """A markdown table of losses: those of codes during the run, and all at its end."""
    steps = [step for step, _ in runs[0].scalars["val/image_loss"]]
    shown = sorted({steps[len(steps) // 4], steps[len(steps) // 2], steps[-1]})
    ends = [f"{name} at {steps[-1]}" for name in ("train codes", "val text")]
    rows = [["positions", "seed", *(f"val codes at {step}" for step in shown), *ends]]
    for run in runs:
        codes = dict(run.scalars["val/image_loss"])
        losses = [*(codes[step] for step in shown), run.last("val/train_image_loss"), run.last("val/text_loss")]
        rows.append([run.kind, str(run.seed), *(f"{loss:.3f}" for loss in losses)])
    return table(rows)


def errors_table(runs: Sequence[Run]) -> list[str]:
    """A markdown table of the mean errors, in codes, of positions that are read from hidden states."""
    rows = [["positions", "seed", "embeddings", *(f"block {1 + i}" for i in range(len(runs[0].errors) - 1))]]
    return table([*rows, *([run.kind, str(run.seed), *(f"{error:.1f}" for error in run.errors)] for run in runs)])


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a markdown table whose first row is its header."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def main() -> None:
    """Run the experiment, and end the process."""
    with exit_on_mistake():
        finished = compare(parse(PositionsOptions, "training.experiments.positions"))
    sys.exit(DONE if finished else STOPPED)


if __name__ == "__main__":
    main()
