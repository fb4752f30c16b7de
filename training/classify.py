"""Train a classifier of pictures: a Vision Transformer with a head. `python -m training.classify PRESET` writes
`RUN/model`.

It learns the labels of folders (`--pictures FOLDER`, with a folder of pictures for each label), or labels in the
metadata of shards, such as style and group, each with a head of its own. Validation measures top-1 and top-5 accuracy,
and `RUN/confusion-LABEL.png` shows which labels are taken for which others. Hidden matrices are trained by Muon, all
other weights by AdamW.

`torchrun --nproc-per-node N -m training.classify PRESET` trains on N devices.

Exit codes: 0 done, 2 a mistake of the caller, 4 stopped by SIGTERM, 130 by Ctrl-C. The same command resumes the run.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.checkpoint.clip import load_clip, save_classifier
from dalle.clip.classifier import Classifier, ClassifierConfig, LabelSet
from dalle.files import atomic_file
from dalle.images import composite, to_pil
from training.classify_config import PRESETS, ClassifyConfig
from training.command import run_preset
from training.distributed import data_parallel, means, quiet_followers
from training.evaluation.confusion import confusion, confusion_picture, top_accuracies
from training.hardware import autocast
from training.loop import train
from training.network_task import NetworkTask
from training.next_step import after_classify
from training.pairs.epochs import WeightedEpochs
from training.pairs.labelled import NO_LABEL, Labelled, read_folder, read_shards
from training.pairs.problems import PROBLEMS_FILE, Broken
from training.pairs.shards import PairShards, find_shards
from training.pairs.small_pictures import drawn_backgrounds
from training.pairs.views import draw_places, moved
from training.provenance import about_run, data_digest
from training.small_data import misfits_of_loop

__all__ = ["PRESETS", "ClassifyTask", "run"]

AT_ONCE = 128


class ClassifyTask(NetworkTask[Classifier]):
    """The `training.loop.Task` of a classifier: batches of pictures, and the cross-entropy of their labels."""

    def __init__(self, config: ClassifyConfig) -> None:
        super().__init__(config)
        self.config = config
        torch.manual_seed(config.loop.seed)
        started = None if config.start_from is None else load_clip(config.start_from).network.vision
        self.vision = config.vision if started is None else started.config
        with quiet_followers():
            self.pictures, self.val_pictures, label_sets, self.digest = self._read()
        model = Classifier(ClassifierConfig(vision=self.vision, label_sets=label_sets))
        if started is not None:
            model.vision.load_state_dict(started.state_dict())
        self.train_network(model, model.vision.encoder)
        self.losses = data_parallel(self._losses, self.model)
        self.epochs = WeightedEpochs(self.pictures.weights, batch_size=config.loop.batch_size, seed=config.loop.seed)

    def _read(self) -> tuple[Labelled, Labelled, tuple[LabelSet, ...], str]:
        config, size = self.config, self.vision.image_size
        if config.pictures is not None:
            return read_folder(Path(config.pictures), config.val_fraction, size)
        train, val = (
            PairShards(find_shards(shards), max_broken=config.max_broken)
            for shards in (config.train_shards, config.val_shards)
        )
        broken = Broken(
            file=Path(config.run, PROBLEMS_FILE), num_pairs=len(train) + len(val), max_share=config.max_broken
        )
        return *read_shards(train, val, config.labels, size, broken), data_digest(train.paths)

    def inputs(self) -> dict[str, str | int]:
        """Number and digest of the training pictures: a run resumes only with the same."""
        return {"train_pictures": len(self.pictures.weights), "data_digest": self.digest}

    def batch(self, step: int) -> dict[str, Tensor]:
        numbers = self.epochs.batch(step)
        chance = np.random.default_rng([self.config.loop.seed, step, 1])
        places = draw_places(self.pictures.mirror[numbers], chance)
        backgrounds = drawn_backgrounds(len(numbers), chance)
        images = moved(self.pictures.pictures(self.share.of(numbers)), self.share.of(places))
        targets = self.pictures.targets[torch.from_numpy(numbers)]
        return {
            "images": composite(images, self.share.of(backgrounds)),
            "targets": self.share.of(targets),
            "counts": (targets != NO_LABEL).sum(0),
        }

    def _losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss of each set of labels, as this process's part of the mean over all labelled pictures of the batch
        times the number of processes; and `loss`, their sum."""
        with autocast(self.device, self.config.loop.precision):
            logits = self.model(batch["images"])
        losses = {}
        for place, (one, scores) in enumerate(zip(self.model.config.label_sets, logits, strict=True)):
            summed = F.cross_entropy(
                scores,
                batch["targets"][:, place],
                ignore_index=NO_LABEL,
                label_smoothing=self.config.smoothing,
                reduction="sum",
            )
            losses[f"{one.name}_loss"] = self.share.count * summed / batch["counts"][place].clamp_min(1)
        return {"loss": torch.stack([*losses.values()]).sum()} | losses

    def train_step(self, step: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        losses = self.losses(batch)
        losses["loss"].backward()
        together = means(losses)
        scalars = self.optimize(step, together["loss"])
        self.average.update(self.model)
        return {**together, **scalars}

    def validate(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Validates the averaged weights: top-1 and top-5 accuracy and confusion of each set of labels."""
        logits = self._val_logits()
        numbers: dict[str, float] = {}
        pictures: dict[str, Tensor] = {}
        for place, one in enumerate(self.model.config.label_sets):
            targets = self.val_pictures.targets[:, place]
            has = targets != NO_LABEL
            if has.any():
                found = top_accuracies(logits[place][has], targets[has])
                numbers |= {f"{one.name}_{name}": value for name, value in found.items()}
                pictures[f"confusion of {one.name}"] = confusion_picture(
                    confusion(logits[place][has], targets[has]), one
                )
        return numbers, pictures

    @torch.no_grad()
    def _val_logits(self) -> list[Tensor]:
        rows = []
        for start in range(0, len(self.val_pictures.weights), AT_ONCE):
            some = range(start, min(start + AT_ONCE, len(self.val_pictures.weights)))
            with autocast(self.device, self.config.loop.precision):
                found = self.average.module(self.val_pictures.pictures.over_white(some).to(self.device))
            rows.append([scores.cpu() for scores in found])
        return [torch.cat(parts) for parts in zip(*rows, strict=True)]

    def export(self, folder: Path, step: int) -> None:
        about = about_run(self.config.loop.seed, self.inputs()) | {"classifier_steps": str(step)}
        save_classifier(
            folder,
            name=self.config.name,
            network=self.average.module,
            about=about,
            dtype=torch.float16,
            overwrite=True,
        )
        for name, picture in self.validate()[1].items():
            with atomic_file(folder.parent / f"{name.replace(' of ', '-')}.png") as unfinished:
                to_pil(picture).save(unfinished, format="PNG")


def run(config: ClassifyConfig) -> bool:
    """Train the classifier, or resume its run; see `training.loop.train`."""
    task = ClassifyTask(config)
    if task.share.leads:
        for misfit in misfits_of_loop(config.loop, len(task.pictures.weights)):
            print(f"note: {misfit}")
    return train(task, config.loop, Path(config.run), config)


def main() -> None:
    run_preset("training.classify", __doc__, PRESETS, run, after=after_classify)


if __name__ == "__main__":
    main()
