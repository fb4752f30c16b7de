"""The stages of a recipe, in their order; a stage that is done is skipped."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from dalle import DALLE
from dalle.checkpoint import load_checkpoint, save_checkpoint
from dalle.checkpoint.vocabulary import write_vocabulary
from dalle.device import choose_device
from dalle.errors import DataError
from training.bpe import train_text_tokenizer
from training.captions.fitting import long_captions_report
from training.codes import encode_pairs
from training.decoder import DecoderTask
from training.evaluate import evaluate
from training.loop import Task, train
from training.pairs.shards import PairShards, find_shards
from training.recipe.options import RecipeOptions
from training.recipe.plan import TITLES, Plan
from training.recipe.presets import RECIPES
from training.recipe.source import open_source
from training.recipe.steps import StageConfig, choose_steps, fitted
from training.release import release
from training.run_folder import claimed, locked, saved_step
from training.vocabulary import vocabulary_of_model
from training.vq import VQTask, trainable
from training.vq_config import VQTrainingConfig

__all__ = ["run_recipe", "status"]

MINUTES_WORTH_COMPILING = 60
STEPS_WORTH_COMPILING = 1000
"""Smallest budget, and smallest number of decoder steps without a budget, for which `torch.compile` is used on a CPU:
it takes minutes and saves a fifth of the time."""


class StoppedError(Exception):
    """A signal stopped a stage before its end; its state is saved."""


class _Run:
    """A run of a recipe, with a method for each stage; `run_recipe` calls them in order."""

    def __init__(self, options: RecipeOptions) -> None:
        self.options = options
        self.recipe = RECIPES[options.preset]()
        self.device = choose_device(options.device)
        self.out = options.out
        self.image_size = self.recipe.image_tokenizer.model.image_size
        self.start = None
        if options.start_from is not None:
            self.start = load_checkpoint(options.start_from)
            self.image_size = trainable(self.recipe.sharper, str(options.start_from)).config.image_size

    def prepare(self) -> None:
        """Claim the folder, and validate the options and the pictures.

        Raises `DataError` for mistakes that a later stage would find only after hours; a folder that was new is
        released again then.
        """
        options = self.options
        claim = {
            "preset": options.preset,
            "pictures": "emoji" if options.source is None else str(options.source.resolve()),
            "start_from": None if self.start is None else self.start.digest,
            "seed": options.seed,
            "device": self.device.type,
        }
        with claimed(self.out, claim, [*TITLES, "report"]):
            self.plan = Plan(self.out, options.minutes)
            self.source = open_source(options, self.image_size)
            channels = self.source.channels if self.start is None else self.start.image_tokenizer.config.channels
            if channels > self.source.channels:
                raise DataError(
                    f"no picture of {self.source.folder} has transparent pixels, but {options.start_from} has an "
                    "alpha channel: run without --start-from"
                )
            if channels < self.source.channels:
                print(
                    f"{options.start_from} has no alpha channel: transparent pictures are laid over a white background"
                )

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
            if self.start is not None and (tokenizer := self.start.text_tokenizer) is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                tokenizer.save(path)
                if report := long_captions_report(PairShards(find_shards(self.source.train)), tokenizer):
                    print(report)
            else:
                train_text_tokenizer(self.source.train, out=path, vocab_size=self.recipe.vocab_size, overwrite=True)

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
                    save_checkpoint(
                        folder, name="image tokenizer", image_tokenizer=self.start.image_tokenizer, overwrite=True
                    )
                return
            config = dataclasses.replace(config, start_from=str(self.options.start_from))
        model = dataclasses.replace(config.model, channels=self.source.channels)
        self._train("image_tokenizer", dataclasses.replace(config, model=model), VQTask, first_step)

    def codes(self) -> None:
        if "codes" in self.plan.done:
            return
        self._announce("codes")
        recipe, options = self.recipe, self.options
        with self.plan.stage("codes"):
            for name, shards in (("val", self.source.val), ("train", self.source.train)):
                encode_pairs(
                    shards,
                    image_tokenizer=self.out / "image_tokenizer" / "model",
                    text_tokenizer=self.out / "text" / "tokenizer.json",
                    out=self.out / "codes" / name,
                    num_captions=recipe.num_captions,
                    overwrite=True,
                    num_views=recipe.num_views if name == "train" else 1,
                    mirror=recipe.mirror,
                    seed=options.seed,
                    device=options.device,
                )

    def decoder(self) -> None:
        config = dataclasses.replace(
            self.recipe.decoder,
            name=self.options.model_name,
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
            print("the run is finished; to train longer, give a new --out, --minutes, and this model as --start-from")
            return
        self._announce("model")
        release(
            self.out / "decoder" / "model",
            out=self.out / "model",
            name=self.options.model_name,
            image_tokenizer=self.out / "sharper" / "model",
            sampling=self.recipe.sampling,
            overwrite=True,
        )
        released = DALLE.load(self.out / "model", device=self.options.device)
        vocabulary = vocabulary_of_model(self.source.train, released, description=self.source.description)
        if vocabulary is not None:
            write_vocabulary(self.out / "model", vocabulary)

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
                shards=(str(self.source.folder),),
                num=num,
                out=self.out / "report",
                overwrite=True,
                device=self.options.device,
            )

    def _train(
        self, stage: str, config: StageConfig, task_class: Callable[[StageConfig], Task], first_step: int = 0
    ) -> None:
        """Run a training stage to its end, with the number of steps in the plan, which is decided here at the first
        start."""
        if stage in self.plan.done:
            return
        config = self._placed(stage, config)
        with self.plan.stage(stage):
            if stage not in self.plan.steps:
                self.plan.steps[stage] = config.loop.steps
                if self.options.minutes is not None:
                    new_steps = choose_steps(self.plan, stage, config, task_class, self.device)
                    self.plan.steps[stage] = first_step + new_steps
                self.plan.save()
            steps = self.plan.steps[stage]
            self._announce(stage, f", {steps} steps of {config.loop.batch_size}")
            config = fitted(
                config,
                steps,
                first_step,
                few_validations=self.plan.choice("few_looks", self.options.minutes is not None),
            )
            if not train(task_class(config), config.loop, Path(config.run), config):
                raise StoppedError

    def _placed(self, stage: str, config: StageConfig) -> StageConfig:
        """The configuration with this recipe's folders, seed and device."""
        options = self.options
        loop = dataclasses.replace(
            config.loop, seed=options.seed, device=options.device, export_minutes=options.export_minutes
        )
        config = dataclasses.replace(config, run=str(self.out / stage))
        if isinstance(config, VQTrainingConfig):
            config = dataclasses.replace(config, train_shards=self.source.train, val_shards=self.source.val)
        batch_size = self.recipe.cuda_batches.get(stage)
        if self.device.type == "cuda" and batch_size is not None:
            # the learning rate grows with the square root of the batch size
            faster = (batch_size / loop.batch_size) ** 0.5
            loop = dataclasses.replace(loop, batch_size=batch_size)
            config = dataclasses.replace(config, learning_rate=config.learning_rate * faster)
        return dataclasses.replace(config, loop=loop)


def run_recipe(options: RecipeOptions) -> bool:
    """Train the model, or resume its run. Returns False if SIGTERM stopped a stage, and raises KeyboardInterrupt if
    Ctrl-C did; the same options resume it.

    Raises `DataError` for a budget that is too small for one step of a stage (all earlier artefacts stay), for a folder
    of another recipe, and for the mistakes that the stages refuse.
    """
    run = _Run(options)
    with locked(run.out):
        run.prepare()
        try:
            for stage in (
                run.text,
                run.image_tokenizer,
                run.codes,
                run.decoder,
                run.sharper,
                run.model,
                run.figures,
            ):
                stage()
        except StoppedError:
            return False
    print(f'{options.out / "model"} is finished; draw with `dalle generate "..." --model {options.out / "model"}`')
    return True


def status(out: Path) -> str:
    """The status of a run, one line for each stage. Raises `DataError` for a folder without a run."""
    plan = Plan(out, None)
    if not plan.path.exists():
        raise DataError(f"{out} holds no run of a recipe")
    lines = []
    for stage, title in TITLES.items():
        minutes = f", {plan.seconds[stage] / 60:.1f} minutes" if stage in plan.seconds else ""
        if stage in plan.done or (stage == "model" and (out / "model").exists()):
            state = "done" + minutes
        elif stage in plan.steps:
            state = f"step {saved_step(out / stage)} of {plan.steps[stage]} at the last save"
        else:
            state = "not started"
        lines.append(f"{title:18}{state}")
    return "\n".join(lines)
