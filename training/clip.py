"""Train a CLIP model, which scores pictures against prompts. `python -m training.clip PRESET` writes `RUN/model`.

A Vision Transformer and a text encoder learn that a picture and its caption belong together, and others of the batch do
not. A caption that names no style fits the same thing in every style. Transparent pictures are laid over white or over
a random colour, as the network has three channels: what it judges is what people see, and nobody sees transparency
itself. Hidden matrices are trained by Muon, all other weights by AdamW.

`torchrun --nproc-per-node N -m training.clip PRESET` trains on N devices; each picture is compared with the captions of
all of them.

Exit codes: 0 done, 2 a mistake of the caller, 4 stopped by SIGTERM, 130 by Ctrl-C. The same command resumes the run.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dalle.checkpoint.clip import save_clip
from dalle.clip.clip import MAX_LOG_SCALE, Clip
from training.clip_config import PRESETS, ClipTrainingConfig
from training.clip_data import ContrastiveBatches, PairLabels
from training.command import run_preset
from training.distributed import data_parallel, means, quiet_followers
from training.evaluation.features import evenly
from training.evaluation.matching import Split, measure_split
from training.hardware import autocast
from training.loop import train
from training.losses.contrastive import contrastive_loss
from training.network_task import NetworkTask
from training.next_step import after_clip
from training.pairs.problems import PROBLEMS_FILE, Broken
from training.pairs.shards import PairShards, find_shards
from training.pairs.small_pictures import SmallPictures
from training.provenance import about_run, data_digest
from training.small_data import misfits_of_loop
from training.starting_model import load_text

__all__ = ["PRESETS", "ClipTask", "run"]

NUM_VALIDATION_PICTURES = 512


class ClipTask(NetworkTask[Clip]):
    """The `training.loop.Task` of a CLIP model: batches of pictures and captions, and their contrastive loss."""

    def __init__(self, config: ClipTrainingConfig) -> None:
        super().__init__(config)
        self.config = config
        self.text_tokenizer = load_text(config.text_tokenizer)
        torch.manual_seed(config.loop.seed)
        model = self._new_model()
        self.train_network(model, model.vision.encoder, model.text.encoder)
        self.loss = data_parallel(self._loss, self.model)
        with quiet_followers():
            self.pairs = PairShards(find_shards(config.train_shards), progress=True, max_broken=config.max_broken)
            self.val_pairs = PairShards(find_shards(config.val_shards), max_broken=config.max_broken)
            self.digest = data_digest(self.pairs.paths)
            broken = Broken(
                file=Path(config.run, PROBLEMS_FILE),
                num_pairs=len(self.pairs) + len(self.val_pairs),
                max_share=config.max_broken,
            )
            size = config.model.vision.image_size
            pictures = SmallPictures.of_pairs(self.pairs, size, broken)
            val_pictures = SmallPictures.of_pairs(self.val_pairs, size, broken)
        self.batches = ContrastiveBatches(config, self.pairs, pictures, self.text_tokenizer)
        val_numbers = evenly(len(self.val_pairs), NUM_VALIDATION_PICTURES)
        self.val = Split(self.val_pairs, val_numbers, val_pictures, PairLabels(self.val_pairs))
        labels = self.batches.labels
        self.styles, self.groups = (sorted({*all_of} - {""}) for all_of in (labels.styles, labels.groups))

    def _new_model(self) -> Clip:
        tokenizer, config = self.text_tokenizer, self.config.model
        text = dataclasses.replace(
            config.text,
            vocab_size=tokenizer.vocab_size,
            text_length=tokenizer.text_length,
            pad_id=tokenizer.pad_id,
            end_id=tokenizer.eos_id,
        )
        model = Clip(dataclasses.replace(config, text=text))
        if config.loss == "sigmoid":  # one pair in so many belongs together, as in SigLIP for batches of 2^15 pairs
            nn.init.constant_(model.bias, -math.log(self.config.loop.batch_size))
        return model

    def inputs(self) -> dict[str, str | int]:
        """Digests of text tokenizer and data, and the number of training pairs: a run resumes only with the same."""
        return {
            "text_digest": self.text_tokenizer.digest,
            "train_pairs": len(self.pairs),
            "data_digest": self.digest,
        }

    def batch(self, step: int) -> dict[str, Tensor]:
        return self.batches.batch(step, self.share)

    def _loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        with autocast(self.device, self.config.loop.precision):
            images, texts = self.model.embed_images(batch["images"]), self.model.embed_texts(batch["text_ids"])
        labels = batch["picture_labels"], batch["caption_labels"]
        return contrastive_loss(self.model, images, texts, *labels, self.config.model.loss)

    def train_step(self, step: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        loss = self.loss(batch)
        loss.backward()
        losses = means({"loss": loss})
        scalars = self.optimize(step, losses["loss"])
        with torch.no_grad():
            self.model.log_scale.clamp_(max=MAX_LOG_SCALE)
        self.average.update(self.model)
        scale, bias = self.model.log_scale.detach().exp(), self.model.bias.detach()
        return {**losses, **scalars, "scale": scale, "bias": bias}

    def validate(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Validates the averaged weights: recall of the validation pairs' first captions, and zero-shot accuracy."""
        numbers = measure_split(
            self.average.module,
            self.text_tokenizer,
            self.val,
            ("training",),
            self.styles,
            self.groups,
            self.config.loop.precision,
        )
        return {name: value for name, value in numbers.items() if value is not None and name != "pictures"}, {}

    def export(self, folder: Path, step: int) -> None:
        save_clip(
            folder,
            name=self.config.name,
            network=self.average.module,
            text_tokenizer=self.text_tokenizer,
            about=about_run(self.config.loop.seed, self.inputs()) | {"clip_steps": str(step)},
            dtype=torch.int8,
            overwrite=True,
        )


def run(config: ClipTrainingConfig) -> bool:
    """Train the model, or resume its run; see `training.loop.train`."""
    task = ClipTask(config)
    if task.share.leads:
        for misfit in misfits_of_loop(config.loop, len(task.pairs)):
            print(f"note: {misfit}")
    return train(task, config.loop, Path(config.run), config)


def main() -> None:
    run_preset("training.clip", __doc__, PRESETS, run, after=after_clip)


if __name__ == "__main__":
    main()
