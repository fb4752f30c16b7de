"""From pictures to a model, in one command and within a budget of time: `python -m training.recipe PRESET --out DIR`.

Seven stages, each an artefact of its own in DIR that its own program can go on with:

    shards/            pictures and captions (built, or handed in)
    text/              1. the text tokenizer, of the captions
    image_tokenizer/   2. stage 1, a run folder
    codes/             3. token shards
    decoder/           4. stage 2, a run folder; `decoder/model` draws from its first export on
    sharper/           5. the decoder half of the image tokenizer, further: a run folder
    model/             6. what is to be shipped
    report/            7. figures and a sheet

With `--minutes`, each stage has a share of what is left of the budget when its turn comes, and picks its number of
steps by taking a few: the number is written down, so that a resumed run is the run that it would have been. The same
command goes on wherever it was stopped.
"""

import dataclasses
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from dalle.checkpoint import load_checkpoint, save_checkpoint
from dalle.device import choose_device
from dalle.errors import DataError
from dalle.sampling import SamplingParams
from training.bpe import train_text_tokenizer
from training.budget import PLAN_FILE, TITLES, C, Plan, fitted, probe
from training.codes import encode_pairs
from training.command import mistakes_in_words
from training.decoder import DecoderTask, DecoderTrainingConfig
from training.evaluate import evaluate
from training.folder import FolderOptions
from training.folder import build as build_folder
from training.loop import Task, train
from training.presets import decoder_emoji, decoder_tiny, vq_emoji, vq_tiny
from training.release import release
from training.run_folder import claimed, saved_step
from training.shards import PairShards, find_shards
from training.vq import VQTask, VQTrainingConfig, trainable

__all__ = ["PRESETS", "Recipe", "RecipeOptions", "main", "run_recipe", "status"]

MAX_MINUTES = 366 * 24 * 60
MINUTES_WORTH_COMPILING = 60
STEPS_WORTH_COMPILING = 1000
"""From which on compiling pays on a CPU, where it takes minutes and saves a fifth."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is made, as configurations of the stages; paths and steps are filled in by `run_recipe`."""

    image_tokenizer: VQTrainingConfig
    decoder: DecoderTrainingConfig
    sharper: VQTrainingConfig
    vocab_size: int
    num_captions: int
    num_views: int
    mirror: bool
    num_figures: int
    """Pictures of each split that the figures are measured on, at most."""
    sampling: SamplingParams
    cuda_batches: Mapping[str, int]
    """Batch sizes of the three runs on CUDA, where small ones leave the device idle."""


def _recipe_emoji() -> Recipe:
    """256 codes for a 128 x 128 picture with transparency: the default model, some 20 core-hours on a CPU."""
    stage_1 = vq_emoji()
    return Recipe(
        image_tokenizer=stage_1,
        decoder=decoder_emoji(),
        sharper=dataclasses.replace(
            stage_1,
            loop=dataclasses.replace(stage_1.loop, steps=3000),
            start_from="image_tokenizer/model",
            only_decoder=True,
            learning_rate=3e-4,
            perceptual_weight=0.2,
            perceptual_pictures=8,
            adversarial_weight=0.02,
            adversarial_start=500,
            random_codes=0.05,
        ),
        vocab_size=4096,
        num_captions=32,
        num_views=6,
        mirror=True,
        num_figures=200,
        sampling=SamplingParams(guidance_scale=1.5, temperature=0.5),
        cuda_batches={"image_tokenizer": 128, "decoder": 256, "sharper": 64},
    )


def _recipe_tiny() -> Recipe:
    """A minute on one core: to see that everything runs, not to see pictures."""
    stage_1 = vq_tiny()
    return Recipe(
        image_tokenizer=dataclasses.replace(stage_1, model=dataclasses.replace(stage_1.model, channels=4)),
        decoder=decoder_tiny(),
        sharper=dataclasses.replace(
            stage_1,
            loop=dataclasses.replace(stage_1.loop, steps=20),
            start_from="image_tokenizer/model",
            only_decoder=True,
            perceptual_weight=0.1,
            perceptual_pictures=2,
            adversarial_weight=0.02,
            adversarial_start=10,
            discriminator_width=16,
            random_codes=0.05,
        ),
        vocab_size=512,
        num_captions=4,
        num_views=2,
        mirror=True,
        num_figures=8,
        sampling=SamplingParams(),
        cuda_batches={},
    )


PRESETS: Mapping[str, Callable[[], Recipe]] = {"emoji": _recipe_emoji, "tiny": _recipe_tiny}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Make a model of pictures and captions: both tokenizers, the decoder, figures and a sheet.

    Without `--minutes` every stage takes the preset's own number of steps. The same command goes on where it was
    stopped; each stage's artefact can be used alone.
    """

    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")]
    """`emoji` (the default model), or `tiny` (to see that everything runs)."""
    out: Path
    """Folder for all artefacts."""
    minutes: float | None = None
    """Budget in minutes for all stages together, downloads and reading pictures not counted."""
    pictures: Path | None = None
    """Your own pictures with captions, as `python -m training.folder` takes them. Default: emoji, from packages."""
    shards: Path | None = None
    """Folder of picture-caption shards that are there already, instead."""
    start_from: Path | None = None
    """Model directory of an earlier run to go on from, where its run folders are gone. What it has is not trained
    again: an image tokenizer alone, or with a decoder, which goes on at the step that the model says."""
    export_minutes: float | None = None
    """Write the decoder's model every so many minutes, to be drawn with while it is still trained."""
    name: str = "emoji"
    """Name of the model."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`."""
    seed: int = 0
    """Of all stages."""
    status: bool = False
    """Only print how far the run in the folder is."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise DataError(f"there is no preset {self.preset!r}; there are {', '.join(PRESETS)}")
        if self.minutes is not None and not 0 < self.minutes <= MAX_MINUTES:
            raise DataError(f"minutes is {self.minutes}; it must be above 0 and at most {MAX_MINUTES}")
        if self.pictures is not None and self.pictures.resolve() == self.out.resolve():
            raise DataError(f"{self.out} is the folder of the pictures; give another folder for what is made of them")
        if self.pictures is not None and self.shards is not None:
            raise DataError("pictures and shards are two sources; give one")
        for source in (self.pictures, self.shards):
            if source is not None and not source.exists():  # or the output folder would be that of a misspelt source
                raise DataError(f"{source} does not exist")


class StoppedError(Exception):
    """A stage was asked to stop before its end, and has saved its state."""


class _Run:
    """The stages of a recipe, each a method; `run_recipe` says their order."""

    def __init__(self, options: RecipeOptions) -> None:
        self.options = options
        self.recipe = PRESETS[options.preset]()
        self.device = choose_device(options.device)
        self.out = options.out
        self.image_size = self.recipe.image_tokenizer.model.image_size
        self.start = None
        if options.start_from is not None:
            self.start = load_checkpoint(options.start_from)
            self.image_size = trainable(self.recipe.sharper, str(options.start_from)).config.image_size
        with claimed(self.out, self._described()):
            self.plan = Plan(self.out, options.minutes)
            self.shards = self._find_shards()
            self.train_shards = (str(self.shards / "train*.tar"),)
            val = [pattern for pattern in ("val_combo.tar", "val*.tar") if list(self.shards.glob(pattern))]
            self.val_shards = (str(self.shards / val[0]),) if val else self.train_shards
            self.channels = self._check_pictures()

    def _described(self) -> dict[str, Any]:
        """What decides the artefacts, but for the budget: a folder of another recipe is refused."""
        options = self.options
        source = options.pictures or options.shards
        return {
            "preset": options.preset,
            "pictures": "emoji" if source is None else str(source.resolve()),
            "start_from": None if self.start is None else self.start.digest,
            "seed": options.seed,
            "device": self.device.type,
        }

    def _find_shards(self) -> Path:
        options = self.options
        if options.shards is not None:
            return options.shards
        if options.pictures is None:
            # here, for its packages: whoever hands in shards needs no renderer
            from training.emoji.program import EmojiOptions
            from training.emoji.program import build as build_emoji

            folder = Path("data/emoji")
            if not (folder / "contact_sheet.png").exists():
                build_emoji(EmojiOptions(out=folder))
            return folder
        folder = self.out / "shards"
        if not list(folder.glob("*.tar")):
            report = build_folder(
                FolderOptions(source=options.pictures, out=folder, size=self.image_size, val_fraction=0.05)
            )
            if report.problems:
                print(f"{len(report.problems)} pictures or captions cannot be used: see {folder / 'problems.jsonl'}")
        return folder

    def _check_pictures(self) -> int:
        """Channels of the pictures. Raises `DataError` for those that a later stage would refuse, hours from now."""
        pairs = PairShards(find_shards(self.train_shards))
        height, width = pairs.picture(0).shape[1:]
        if (height, width) != (self.image_size, self.image_size):
            raise DataError(
                f"the pictures of {self.shards} have {height} x {width} pixels; the model's have {self.image_size} x "
                f"{self.image_size}: build the shards anew"
            )
        channels = 4 if pairs.has_transparency() else 3
        if self.start is not None and self.start.image_tokenizer.config.channels > channels:
            raise DataError(
                f"no picture of {self.shards} is transparent anywhere, and {self.options.start_from} has an alpha "
                "channel: begin without it"
            )
        return channels

    def _announce(self, stage: str, steps: str = "") -> None:
        number = list(TITLES).index(stage) + 1
        used = self.plan.used / 60
        budget = "" if self.options.minutes is None else f"; {used:.1f} of {self.options.minutes:g} minutes used"
        print(f"[{number}/{len(TITLES)}] {TITLES[stage]}{steps}{budget}", flush=True)

    def _compiles(self) -> bool:
        if self.device.type == "cuda":
            return True
        minutes, steps = self.options.minutes, self.recipe.decoder.loop.steps
        pays = steps >= STEPS_WORTH_COMPILING if minutes is None else minutes >= MINUTES_WORTH_COMPILING
        return pays and shutil.which("g++") is not None

    def text(self) -> None:
        path = self.out / "text" / "tokenizer.json"
        if "text" in self.plan.done:
            return
        self._announce("text")
        with self.plan.stage("text"):
            if self.start is not None and self.start.text_tokenizer is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                self.start.text_tokenizer.save(path)
            else:
                train_text_tokenizer(self.train_shards, out=path, vocab_size=self.recipe.vocab_size)

    def image_tokenizer(self) -> None:
        config = self.recipe.image_tokenizer
        first_step = 0
        if "image_tokenizer" in self.plan.done:
            return
        if self.start is not None:
            first_step = int(self.start.about.get("image_tokenizer_steps", config.loop.steps))
            if self.start.decoder is not None or first_step >= config.loop.steps:
                with self.plan.stage("image_tokenizer"):
                    folder = self.out / "image_tokenizer" / "model"
                    save_checkpoint(folder, name="image tokenizer", image_tokenizer=self.start.image_tokenizer)
                return
            config = dataclasses.replace(config, start_from=str(self.options.start_from))
        model = dataclasses.replace(config.model, channels=self.channels)
        self._train("image_tokenizer", dataclasses.replace(config, model=model), VQTask, first_step)

    def codes(self) -> None:
        if "codes" in self.plan.done:
            return
        self._announce("codes")
        recipe, options = self.recipe, self.options
        with self.plan.stage("codes"):
            for name, shards in (("val", self.val_shards), ("train", self.train_shards)):
                encode_pairs(
                    shards,
                    image_tokenizer=self.out / "image_tokenizer" / "model",
                    text_tokenizer=self.out / "text" / "tokenizer.json",
                    out=self.out / "codes" / name,
                    num_captions=recipe.num_captions,
                    truncate=True,
                    num_views=recipe.num_views if name == "train" else 1,
                    mirror=recipe.mirror,
                    seed=options.seed,
                    device=options.device,
                )

    def decoder(self) -> None:
        config = dataclasses.replace(
            self.recipe.decoder,
            name=self.options.name,
            image_tokenizer=str(self.out / "image_tokenizer" / "model"),
            text_tokenizer=str(self.out / "text" / "tokenizer.json"),
            train_shards=(str(self.out / "codes/train/*.safetensors"),),
            val_shards=(str(self.out / "codes/val/*.safetensors"),),
            compile=self.plan.choice("compile", self._compiles()),
            micro_batch_size=None if self.device.type == "cuda" else self.recipe.decoder.micro_batch_size,
        )
        first_step = 0
        if self.start is not None and self.start.decoder is not None:
            first_step = min(int(self.start.about.get("decoder_steps", 0)), config.loop.steps - 1)
            config = dataclasses.replace(config, start_from=str(self.options.start_from))
        self._train("decoder", config, DecoderTask, first_step)

    def sharper(self) -> None:
        config = dataclasses.replace(
            self.recipe.sharper,
            start_from=str(self.out / "image_tokenizer" / "model"),
            drawn_by=str(self.out / "decoder" / "model"),
        )
        self._train("sharper", config, VQTask)

    def model(self) -> None:
        if "figures" in self.plan.done and (self.out / "model").exists():
            print("finished before; to train longer, give a new --out, and this model as --start-from")
            return
        self._announce("model")
        release(
            self.out / "decoder" / "model",
            out=self.out / "model",
            name=self.options.name,
            image_tokenizer=self.out / "sharper" / "model",
            sampling=self.recipe.sampling,
        )

    def figures(self) -> None:
        if "figures" in self.plan.done:
            return
        num = self.recipe.num_figures
        if self.options.minutes is not None and self.device.type == "cpu":
            num = max(2, min(num, int(self.plan.share("figures") / 4)))
        self._announce("figures")
        with self.plan.stage("figures"):
            evaluate(
                self.out / "model",
                shards=(str(self.shards),),
                num=num,
                out=self.out / "report",
                device=self.options.device,
            )

    def _train(self, stage: str, config: C, task_class: Callable[[C], Task], first_step: int = 0) -> None:
        """Run a stage to its end: with the steps that were decided, or else as many as its share of the budget lets."""
        if stage in self.plan.done:
            return
        config = self._placed(stage, config)
        with self.plan.stage(stage):
            if stage not in self.plan.steps:
                self.plan.steps[stage] = self._choose_steps(stage, config, task_class, first_step)
                self.plan.save()
            steps = self.plan.steps[stage]
            self._announce(stage, f", {steps} steps of {config.loop.batch_size}")
            config = fitted(
                config, steps, first_step, few_looks=self.plan.choice("few_looks", self.options.minutes is not None)
            )
            if not train(task_class(config), config.loop, Path(config.run), config.to_dict()):
                raise StoppedError

    def _placed(self, stage: str, config: C) -> C:
        """The configuration with this recipe's folders, seed and device."""
        options = self.options
        loop = dataclasses.replace(
            config.loop, seed=options.seed, device=options.device, export_minutes=options.export_minutes
        )
        config = dataclasses.replace(config, run=str(self.out / stage))
        if isinstance(config, VQTrainingConfig):
            config = dataclasses.replace(config, train_shards=self.train_shards, val_shards=self.val_shards)
        batch_size = self.recipe.cuda_batches.get(stage)
        if self.device.type == "cuda" and batch_size is not None:
            # as many times the noise of a step is smaller, the root of it the rate may be higher
            faster = (batch_size / loop.batch_size) ** 0.5
            loop = dataclasses.replace(loop, batch_size=batch_size)
            config = dataclasses.replace(config, learning_rate=config.learning_rate * faster)
        return dataclasses.replace(config, loop=loop)

    def _choose_steps(self, stage: str, config: C, task_class: Callable[[C], Task], first_step: int) -> int:
        """Where the run ends: after as many steps as the stage's share of the budget has room for, beyond those before
        `first_step`; without a budget where the preset says."""
        if self.options.minutes is None:
            return config.loop.steps
        start = time.monotonic()
        room = self.plan.share(stage)
        task = task_class(config)
        prepared = time.monotonic() - start
        first, later = probe(task, config.loop.steps // 2, self.device)
        spent = time.monotonic() - start
        # all of this comes once more, but what was compiled is found in its cache
        steps = int((room - spent - prepared - first / 2) / later)
        if steps < 1:
            needed = spent + prepared + first / 2 + later
            enough = (self.plan.used + spent + needed / self.plan.part(stage)) / 60
            raise DataError(
                f"minutes is {self.options.minutes:g}, which leaves {room:.1f} s for stage {TITLES[stage]!r}; its "
                f"preparations and one step take {needed:.1f} s. What is done is kept: the same command with --minutes "
                f"{enough + 0.1:.1f} goes on"
            )
        return first_step + steps


def run_recipe(options: RecipeOptions) -> bool:
    """Make the model, or go on with it. Returns False if a stage was asked to stop: the same options go on from there.

    Raises `DataError` for a budget too small for one step of a stage (all artefacts made so far stay), for a folder of
    another recipe, and as the stages do.
    """
    recipe = _Run(options)
    try:
        for stage in (
            recipe.text,
            recipe.image_tokenizer,
            recipe.codes,
            recipe.decoder,
            recipe.sharper,
            recipe.model,
            recipe.figures,
        ):
            stage()
    except StoppedError:
        return False
    print(f'{options.out / "model"}: draw with `dalle generate "..." --model {options.out / "model"}`')
    return True


def status(out: Path) -> str:
    """How far a run is: a line for each stage. Raises `DataError` for a folder without one."""
    plan = Plan(out, None)
    if not plan.path.exists():
        raise DataError(f"{out} has no run of a recipe that has begun")
    lines = []
    for stage, title in TITLES.items():
        minutes = f", {plan.seconds[stage] / 60:.1f} minutes" if stage in plan.seconds else ""
        if stage in plan.done or (stage == "model" and (out / "model").exists()):
            state = "done" + minutes
        elif stage in plan.steps:
            state = f"step {saved_step(out / stage)} of {plan.steps[stage]} when it was last saved"
        else:
            state = "to come"
        lines.append(f"{title:18}{state}")
    return "\n".join(lines)


def main() -> None:
    with mistakes_in_words():
        options = tyro.cli(RecipeOptions, prog="python -m training.recipe")
        if options.status:
            print(status(options.out))
            return
        try:
            finished = run_recipe(options)
        except KeyboardInterrupt:  # between two runs: they save their state and stop by themselves
            finished = False
        if not finished:
            print("stopped; the same command goes on")
            if (options.out / PLAN_FILE).exists():
                print(status(options.out))
    sys.exit(0 if finished else 3)


if __name__ == "__main__":
    main()
