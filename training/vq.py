"""Stage 1: train an image tokenizer on pictures. `python -m training.vq PRESET` writes the model directory `RUN/model`.

Two measures keep the codebook from collapsing. Training begins without quantization; after `unquantized_steps` the
codebook is initialised from latents of the encoder, so that every vector is in use at once. Vectors that fall out of
use are replaced by latents. If it collapses nevertheless, the run stops and `RUN/healthy` has the last healthy model.

`torchrun --nproc-per-node N -m training.vq PRESET` trains on N devices.
`python -m training.vq PRESET --dry-run` writes nothing, and prints parameters, memory and hours of the run.

Exit codes: 0 done, 2 a mistake of the caller or a collapsed codebook, 4 stopped by SIGTERM, 130 by Ctrl-C. The same
command resumes the run.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dalle.checkpoint import load_image_tokenizer, save_checkpoint
from dalle.device import choose_device
from dalle.errors import DataError
from dalle.vq.quantize import CodebookAverage, codebook_statistics
from dalle.vq.vqgan import ImageTokenizer
from training.alpha import with_alpha
from training.command import run_preset
from training.distributed import (
    WHOLE,
    Share,
    current_share,
    data_parallel,
    from_leader,
    gathered,
    mean,
    means,
    quiet_followers,
)
from training.dry_run import dry_run
from training.gates import CodebookHealth, Gate
from training.hardware import autocast
from training.loop import train
from training.losses.adversarial import LeCam, PatchDiscriminator, discriminator_loss, r1_penalty
from training.losses.reconstruction import Reconstruction, ReconstructionLoss
from training.next_step import after_vq
from training.optimization import WeightAverage, adamw, clip_and_step
from training.pairs.device_pictures import fit_on, pixels_on
from training.pairs.epochs import WeightedEpochs
from training.pairs.problems import PROBLEMS_FILE, Broken
from training.pairs.shards import PairShards, find_shards, from_pixels
from training.perturbation import CodePerturbation
from training.provenance import about_run, data_digest
from training.run_folder import Parts
from training.small_data import misfits_of_vq
from training.validation import validate_tokenizer
from training.vq_config import VQTrainingConfig
from training.vq_presets import PRESETS

__all__ = ["PRESETS", "VQTask", "run", "trainable"]


def trainable(config: VQTrainingConfig, folder: str) -> ImageTokenizer:
    """The image tokenizer of a model directory. Raises `DataError` if it is of a kind that this program cannot
    train."""
    model = load_image_tokenizer(folder)
    if not isinstance(model, ImageTokenizer) or model.config.decode_only or model.config.wavelet_head:
        raise DataError(f"{folder} is not a VQGAN with encoder and decoder of one resolution, which training needs")
    if config.entropy_weight > 0 and not model.quantizer.has_codebook:
        raise DataError(f"{folder} has no codebook to learn, which entropy_weight needs: set it to 0")
    if model.config.quantizer == "gumbel" and not config.only_decoder:
        raise DataError(f"{folder} has a gumbel quantizer, of which only the decoder can be trained: set only_decoder")
    return model if config.alpha_widths is None else with_alpha(model, config.alpha_widths, folder)


class VQTask:
    """The `training.loop.Task` of stage 1: batches of pictures, the losses of their reconstruction, and the
    codebook."""

    def __init__(self, config: VQTrainingConfig) -> None:
        self.config = config
        self.device = choose_device(config.loop.device)
        self.share = current_share()
        torch.manual_seed(config.loop.seed)
        model = ImageTokenizer(config.model) if config.start_from is None else trainable(config, config.start_from)
        self.model = model.to(self.device).train()
        self.model.requires_grad_(not config.only_decoder)
        self.model.decoder.requires_grad_(config.alpha_widths is None)
        if self.model.config.alpha_widths is not None:
            self.model.matting.requires_grad_(True)
        self.learns_codebook = self.model.quantizer.has_codebook and not config.only_decoder
        if self.model.quantizer.has_codebook:
            self.model.quantizer.codebook.requires_grad_(self.learns_codebook and config.codebook == "gradient")
        self.perturbation = CodePerturbation(config.random_codes, config.drawn_by, self.model, self.device, self.share)
        self.average = WeightAverage(self.model, decay=config.loop.average_decay)
        self.codebook_average = None
        if self.model.quantizer.has_codebook:
            self.codebook_average = CodebookAverage(
                self.model.quantizer,
                decay=config.codebook_decay,
                restart_below=config.restart_below,
                fixed_code=self.model.config.blank_code,
            )
        self.optimizer = self._optimizer(self.model)
        first = config.unquantized_steps if config.start_from is None else 0
        # with only_decoder, the codes stay as they are
        self.gate = Gate() if config.only_decoder else CodebookHealth(config.health, first_step=first, run=config.run)
        if config.compile:
            self.model.encoder.compile()
            self.model.decoder.compile()
            if self.model.config.alpha_widths is not None:
                self.model.matting.compile()
        self.discriminator = None
        self.lecam = LeCam().to(self.device) if config.lecam_weight > 0 else None
        if config.adversarial_weight > 0:
            discriminator = PatchDiscriminator(config.discriminator_width, config.discriminator_layers)
            self.discriminator = discriminator.to(self.device)
            self.discriminator_optimizer = self._optimizer(self.discriminator)
            self.judge = data_parallel(self._judge, self.discriminator)
        self.loss = ReconstructionLoss(
            config, self.model, self.perturbation, self.discriminator, self.device, self.share
        )
        # a codebook that is trained by gradient is not used in the first steps
        self.reconstruct = data_parallel(self.loss, self.model, some_unused=config.codebook == "gradient")

        with quiet_followers():
            self.pairs = PairShards(find_shards(config.train_shards), progress=True, max_broken=config.max_broken)
        self.digest = data_digest(self.pairs.paths)
        self.val_pairs = PairShards(find_shards(config.val_shards), max_broken=config.max_broken)
        self.broken = Broken(
            file=Path(config.run, PROBLEMS_FILE),
            num_pairs=len(self.pairs) + len(self.val_pairs),
            max_share=config.max_broken,
        )
        self.channels = self.model.config.channels
        if self.channels == 4 and not self.pairs.has_transparency():
            raise DataError(
                f"no picture of {', '.join(config.train_shards)} has transparent pixels, but the model has an alpha "
                "channel: build the shards again, or "
                + ("train with --model.channels 3" if config.start_from is None else "start from a model without one")
            )
        self.streams = not fit_on(self.device, len(self.pairs), self.channels, self.model.config.image_size)
        """Whether pictures are read from the disk for each batch. On CUDA they are kept on the device if they fit."""
        self.epochs = WeightedEpochs(self.pairs.weights, batch_size=config.loop.batch_size, seed=config.loop.seed)

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return adamw(
            [p for p in module.parameters() if p.requires_grad],
            learning_rate=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            betas=(0.9, 0.99),
        )

    def state(self) -> Parts:
        parts: dict[str, nn.Module | torch.optim.Optimizer] = {
            "model": self.model,
            "average": self.average,
            "optimizer": self.optimizer,
            "gate": self.gate,
        }
        if self.codebook_average is not None:
            parts["codebook_average"] = self.codebook_average
        if self.discriminator is not None:
            parts |= {"discriminator": self.discriminator, "discriminator_optimizer": self.discriminator_optimizer}
        return parts if self.lecam is None else parts | {"lecam": self.lecam}

    def inputs(self) -> dict[str, str | int]:
        """The number of training pairs and their digest: a run resumes only with the same."""
        return {"train_pairs": len(self.pairs), "data_digest": self.digest}

    def _images(self, numbers: np.ndarray) -> Tensor:
        if not self.streams:
            with quiet_followers():
                pixels = pixels_on(self.device, tuple(self.pairs.paths), self.channels, self.broken)
            return from_pixels(pixels[torch.from_numpy(numbers).to(self.device)])
        return self.pairs.images(numbers, channels=self.channels, broken=self.broken)

    def batch(self, step: int) -> dict[str, Tensor]:
        return self._batch(step, self.share)

    def _batch(self, step: int, share: Share) -> dict[str, Tensor]:
        """A share of the batch of a step; pictures of other shares are not read."""
        whole = self.epochs.batch(step)
        images = self._images(share.of(whole))
        if self.config.flip:
            flipped = share.of(np.random.default_rng([self.config.loop.seed, step, 1]).random(len(whole)) < 0.5)
            images[flipped] = images[flipped].flip(-1)
        metadata = [self.pairs.metadata(int(number)) for number in whole] if self.perturbation.need_captions else []
        captions = self.perturbation.captions(metadata, [self.config.loop.seed, step, 2])
        return {"images": images} | {name: share.of(ids) for name, ids in captions.items()}

    def train_step(self, step: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        config = self.config
        generator = torch.Generator().manual_seed((config.loop.seed << 32) + step)
        warming = config.start_from is None and step < config.unquantized_steps
        if config.start_from is None and step == config.unquantized_steps and self.codebook_average is not None:
            self._start_codebook(step, generator)

        made: Reconstruction = self.reconstruct(step, batch, generator, warming)
        made.loss.backward()
        losses = means({"loss": made.loss} | made.scalars)
        scalars: dict[str, Tensor | float] = {**losses}
        scalars |= clip_and_step([self.optimizer], config.loop, step, losses["loss"])

        codes = gathered(made.quantized.codes)
        average = self.codebook_average if self.learns_codebook and config.codebook == "average" else None
        if not warming and average is not None:
            quantized = dataclasses.replace(made.quantized, latents=gathered(made.quantized.latents), codes=codes)
            scalars["restarted"] = average.update(self.model.quantizer, quantized, generator)
            from_leader(self.model.quantizer.codebook, average.counts, average.sums)
        counts = torch.bincount(codes.flatten(), minlength=self.model.config.codebook_size)
        scalars["batch_usage"], scalars["batch_perplexity"] = codebook_statistics(counts)
        if self.discriminator is not None:
            self.discriminator_optimizer.zero_grad(set_to_none=True)  # the adversarial loss left gradients here
            loss, terms = self.judge(made.wanted, made.shown, config.r1_weight > 0 and step % config.r1_interval == 0)
            loss.backward()
            scalars |= means(terms)
            clip_and_step([self.discriminator_optimizer], config.loop, step, mean(loss))
        self.average.update(self.model)
        return scalars

    def _judge(self, real: Tensor, fake: Tensor, with_r1: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss, and its terms to log."""
        assert self.discriminator is not None
        config = self.config
        with autocast(self.device, config.loop.precision):
            verdicts = self.discriminator(real).float(), self.discriminator(fake).float()
        loss = discriminator_loss(*verdicts)
        if self.lecam is not None:
            loss = loss + config.lecam_weight * self.lecam(*verdicts)
            self.lecam.update(*verdicts)
        terms = {"discriminator_loss": loss.detach()}
        if with_r1:
            penalty = r1_penalty(self.discriminator, real)
            loss = loss + config.r1_weight / 2 * config.r1_interval * penalty
            terms["r1_loss"] = penalty.detach()
        return loss, terms

    @torch.no_grad()
    def _start_codebook(self, step: int, generator: torch.Generator) -> None:
        assert self.codebook_average is not None
        latents: list[Tensor] = []
        num_codes = self.model.config.codebook_size
        while sum(len(part) for part in latents) < 2 * num_codes and len(latents) < 64:
            images = self._batch(step + len(latents), WHOLE)["images"].to(self.device)
            blank = self.model.blank_patches(images) & (self.model.config.blank_code is not None)
            latents.append(self.model.latents(images)[~blank])
        self.codebook_average.start(self.model.quantizer, torch.cat(latents), generator)
        from_leader(self.model.quantizer.codebook, self.codebook_average.sums)
        self.average.module.quantizer.codebook.copy_(self.model.quantizer.codebook)

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def validate(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Validates the averaged weights; see `training.validation.validate_tokenizer`."""
        return validate_tokenizer(self.average.module, self.val_pairs, self.device, self.broken)

    def export(self, folder: Path, step: int) -> None:
        about = about_run(self.config.loop.seed, self.inputs()) | {"image_tokenizer_steps": str(step)}
        save_checkpoint(
            folder, name="image tokenizer", image_tokenizer=self.average.module, about=about, overwrite=True
        )


def run(config: VQTrainingConfig) -> bool:
    """Train the stage, or resume its run; see `training.loop.train`."""
    task = VQTask(config)
    if task.share.leads:
        for misfit in misfits_of_vq(config, len(task.pairs)):
            print(f"note: {misfit}")
    return train(task, config.loop, Path(config.run), config)


def main() -> None:
    run_preset("training.vq", __doc__, PRESETS, run, dry_run=lambda config: dry_run(VQTask, config), after=after_vq)


if __name__ == "__main__":
    main()
