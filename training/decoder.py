"""Stage 2: train a decoder on token shards. `python -m training.decoder PRESET` writes the model directory `RUN/model`.

Hidden matrices are trained by Muon (Jordan et al. 2024), all other weights by AdamW. Some rows have the null caption
instead of their own, so that the decoder also has an unconditional branch, which classifier-free guidance needs (Ho and
Salimans 2022, arXiv 2207.12598). `RUN/best` has the model with the lowest `val/image_loss` of the run.

`torchrun --nproc-per-node N -m training.decoder PRESET` trains on N devices.
`python -m training.decoder PRESET --dry-run` writes nothing, and prints parameters, memory and hours of the run.

Exit codes: 0 done, 2 a mistake of the caller, 4 stopped by SIGTERM, 130 by Ctrl-C. The same command resumes the run.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dalle.checkpoint import load_checkpoint, save_checkpoint
from dalle.decoder.decoder import Decoder
from dalle.device import choose_device
from dalle.errors import DataError
from dalle.text.bpe import TextTokenizer
from dalle.vq.vqgan import ImageTokenizer
from training.codes import load_stage_1
from training.command import run_preset
from training.decoder_config import DecoderTrainingConfig
from training.decoder_presets import PRESETS
from training.distributed import Losses, current_share, data_parallel, means, unsynchronized
from training.drawing import drawn_above_real
from training.dry_run import dry_run
from training.gates import BestModel
from training.loop import train
from training.losses.prediction import prediction_losses
from training.muon import Muon
from training.next_step import after_decoder
from training.optimization import WeightAverage, adamw, clip_and_step, recompute_activations
from training.pairs.epochs import WeightedEpochs
from training.pairs.shards import find_shards
from training.provenance import about_run, data_digest
from training.run_folder import Parts
from training.sharded import ShardedMuon, compile_blocks, mesh_of_ranks, shard, sharded_losses, whole_copy
from training.small_data import misfits_of_decoder
from training.token_shards import TokenShards, codes_digest

__all__ = ["PRESETS", "DecoderTask", "run"]

NUM_VALIDATION_ROWS = 256


class DecoderTask:
    """The `training.loop.Task` of stage 2: batches of rows, and the cross-entropy of each next token."""

    def __init__(self, config: DecoderTrainingConfig) -> None:
        self.config = config
        self.device = choose_device(config.loop.device)
        self.share = current_share()
        self.image_tokenizer = load_stage_1(config.image_tokenizer)
        self.text_tokenizer = TextTokenizer.load(config.text_tokenizer)
        self.rows, self.val_rows = (
            TokenShards.load(find_shards(shards), self.image_tokenizer, self.text_tokenizer)
            for shards in (config.train_shards, config.val_shards)
        )
        self.digest = data_digest(find_shards(config.train_shards))
        torch.manual_seed(config.loop.seed)
        self.is_sharded = config.shard and self.share.count > 1
        self.model = self._new_model()
        self.image_tokenizer.to(self.device)
        self.embedding_head = self._new_embedding_head()
        if not self.is_sharded:  # else a device gets its rows only
            self.model.to(self.device)
        self.average = WeightAverage(self.model, decay=config.loop.average_decay)
        self.averaged: Decoder | None = None if self.is_sharded else self.average.module
        """The whole averaged decoder. If it is divided over the processes, the leader has it within `gathered`."""
        self.weighted_losses = self._parallel_losses()
        self.matrix_optimizer, self.optimizer = self._optimizers()
        self.gate = BestModel(config.patience, run=config.run)
        self.null_ids = self.text_tokenizer.null_ids
        self.epochs = WeightedEpochs(
            self.rows.weights.numpy(), batch_size=config.loop.batch_size, seed=config.loop.seed
        )

    def _new_model(self) -> Decoder:
        if self.config.start_from is not None:
            return self._load_model(self.config.start_from)
        grid_height, grid_width = self.rows.codes.shape[2:]
        return Decoder(
            dataclasses.replace(
                self.config.model,
                text_vocab_size=self.text_tokenizer.vocab_size,
                text_length=self.text_tokenizer.text_length,
                pad_id=self.text_tokenizer.pad_id,
                codebook_size=self.image_tokenizer.config.codebook_size,
                grid_height=grid_height,
                grid_width=grid_width,
            )
        )

    def _new_embedding_head(self) -> nn.Linear | None:
        if not self.config.embedding_weight:
            return None
        if not isinstance(self.image_tokenizer, ImageTokenizer):
            raise DataError(
                "embedding_weight above 0 needs an image tokenizer with a codebook of vectors, a VQGAN: set it to 0"
            )
        return nn.Linear(self.model.config.width, self.image_tokenizer.config.codebook_dim).to(self.device)

    def _parallel_losses(self) -> Losses:
        """`_weighted_losses` on all devices. Prepares the model, whose parameters may become others."""
        config, blocks = self.config, self.model.blocks
        if config.compile:  # dynamic, as the longest caption decides the length of a batch
            if self.is_sharded:
                compile_blocks(blocks)
            else:
                self.model.compile(dynamic=True)
        if config.recompute:
            recompute_activations(blocks)
        modules = [self.model] if self.embedding_head is None else [self.model, self.embedding_head]
        if not self.is_sharded:
            return data_parallel(self._weighted_losses, *modules)
        mesh = mesh_of_ranks(self.device)
        shard(self.average.module, self.average.module.blocks, mesh)
        return sharded_losses(self._weighted_losses, modules, blocks, mesh)

    def _load_model(self, folder: str) -> Decoder:
        checkpoint = load_checkpoint(folder)
        if checkpoint.decoder is None or checkpoint.text_tokenizer is None:
            raise DataError(f"{folder} has no decoder to start from")
        if codes_digest(checkpoint.image_tokenizer) != codes_digest(self.image_tokenizer):
            raise DataError(
                f"{folder} has other codes than {self.config.image_tokenizer}: training cannot start from it"
            )
        if checkpoint.text_tokenizer.digest != self.text_tokenizer.digest:
            raise DataError(f"{folder} has another text tokenizer than {self.config.text_tokenizer}")
        layout, grid = checkpoint.decoder.layout, tuple(self.rows.codes.shape[2:])
        if (layout.grid_height, layout.grid_width) != grid:
            raise DataError(
                f"{folder} draws {layout.grid_height} x {layout.grid_width} codes; the token shards have {grid}"
            )
        return checkpoint.decoder.train()

    def inputs(self) -> dict[str, str | int]:
        """Digests of tokenizers and data, and the number of training rows: a run resumes only with the same."""
        return {
            "codes_digest": codes_digest(self.image_tokenizer),
            "text_digest": self.text_tokenizer.digest,
            "train_rows": len(self.rows.codes),
            "data_digest": self.digest,
        }

    def _optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        config = self.config
        matrices = [p for p in self.model.blocks.parameters() if p.ndim == 2]
        others = [p for p in self.model.parameters() if all(p is not matrix for matrix in matrices)]
        others += self.embedding_head.parameters() if self.embedding_head is not None else []
        muon_class = ShardedMuon if self.is_sharded else Muon
        muon = muon_class(matrices, lr=config.matrix_rate, weight_decay=config.weight_decay)
        muon.param_groups[0]["peak_rate"] = config.matrix_rate
        return muon, adamw(
            others, learning_rate=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
        )

    def state(self) -> Parts:
        parts: dict[str, nn.Module | torch.optim.Optimizer] = {
            "model": self.model,
            "average": self.average,
            "matrix_optimizer": self.matrix_optimizer,
            "optimizer": self.optimizer,
            "gate": self.gate,
        }
        return parts if self.embedding_head is None else parts | {"embedding_head": self.embedding_head}

    def batch(self, step: int) -> dict[str, Tensor]:
        numbers = torch.from_numpy(self.epochs.batch(step))
        random = np.random.default_rng([self.config.loop.seed, step, 2])
        captions = torch.from_numpy(random.integers(self.rows.text_ids.shape[1], size=len(numbers)))
        text_ids = self.rows.text_ids[numbers, captions].long()
        views = torch.from_numpy(random.integers(self.rows.codes.shape[1], size=len(numbers)))
        codes = self.rows.codes[numbers, views].long()
        dropped = torch.from_numpy(random.random(len(numbers)) < self.config.caption_dropout)
        text_ids[dropped] = self.null_ids
        noise = torch.from_numpy(random.integers(self.image_tokenizer.config.codebook_size, size=codes.shape))
        share = self.config.code_noise * random.random((len(numbers), 1, 1))
        noisy = torch.from_numpy(random.random(codes.shape) < share)
        rows = {"text_ids": text_ids, "codes": codes, "noisy_codes": torch.where(noisy, noise, codes)}
        return {name: self.share.of(ids) for name, ids in rows.items()} | {"text_targets": self._num_targets(text_ids)}

    def _num_targets(self, text_ids: Tensor) -> Tensor:
        """The number of text ids (B, T) that the text loss is a mean over: all but those at the first position and
        padding."""
        return (text_ids[:, 1:] != self.model.config.pad_id).sum()

    def _losses(self, model: Decoder, text_ids: Tensor, input_codes: Tensor, codes: Tensor) -> dict[str, Tensor]:
        vectors = None
        if self.embedding_head is not None:
            assert isinstance(self.image_tokenizer, ImageTokenizer)
            with torch.no_grad():
                vectors = self.image_tokenizer.quantizer.decode(codes.flatten(1))
        return prediction_losses(
            *(model, text_ids, input_codes, codes, self.config.loop.precision),
            embedding_head=self.embedding_head,
            vectors=vectors,
            with_z_loss=self.config.z_loss_weight > 0,
        )

    def _weighted_losses(self, part: Mapping[str, Tensor], num_rows: int, num_targets: Tensor) -> dict[str, Tensor]:
        """The losses of some rows of a batch, weighted such that their sum over all its parts is that of the batch; and
        `loss`, the sum of all of them. num_rows, num_targets: rows and text targets of the whole batch."""
        config = self.config
        losses = self._losses(self.model, part["text_ids"], part["noisy_codes"], part["codes"])
        share = {name: torch.tensor(len(part["codes"]) / num_rows) for name in losses}
        share["text_loss"] = self._num_targets(part["text_ids"]) / num_targets
        losses = {name: value * share[name].to(value.device) for name, value in losses.items()}
        loss = config.text_loss_weight * losses["text_loss"] + config.image_loss_weight * losses["image_loss"]
        if "embedding_loss" in losses:
            loss = loss + config.embedding_weight * losses["embedding_loss"]
        if "z_loss" in losses:
            loss = loss + config.z_loss_weight * losses["z_loss"]
        return {"loss": loss} | losses

    def train_step(self, step: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        rows = {name: ids for name, ids in batch.items() if name != "text_targets"}
        num_rows = len(rows["codes"])
        at_once = self.config.micro_batch_size or num_rows
        sums: dict[str, Tensor] = {}
        for start in range(0, num_rows, at_once):
            part = {name: ids[start : start + at_once] for name, ids in rows.items()}
            waits = start + at_once < num_rows and (self.config.whole_gradients or not self.is_sharded)
            with unsynchronized(self.weighted_losses) if waits else contextlib.nullcontext():
                losses = self.weighted_losses(part, self.share.whole(num_rows), batch["text_targets"])
                # the gradients of all ranks are averaged, and their losses are parts of a sum
                (self.share.count * losses["loss"]).backward()
            for name, value in losses.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        sums = {name: self.share.count * value for name, value in means(sums).items()}
        scalars = clip_and_step([self.matrix_optimizer, self.optimizer], self.config.loop, step, sums["loss"])
        self.average.update(self.model)
        return {**sums, **scalars}

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        if not self.is_sharded:
            yield
            return
        averaged = whole_copy(self.average.module, lambda: Decoder(self.model.config))
        self.averaged = averaged.to(self.device) if averaged is not None else None
        yield
        self.averaged = None

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Validates the averaged weights: losses on equally many rows of validation and training, each with its first
        caption and view; and pictures drawn for validation captions with guidance and without, above reconstructions of
        the real ones."""
        model = self.averaged
        assert model is not None
        numbers: dict[str, float] = {}
        for name, rows in (("", self.val_rows), ("train_", self.rows)):
            chosen = torch.linspace(0, len(rows.codes) - 1, min(NUM_VALIDATION_ROWS, len(rows.codes))).long()
            text_ids, codes = (ids[chosen, 0].long().to(self.device) for ids in (rows.text_ids, rows.codes))
            losses = prediction_losses(model, text_ids, codes, codes, self.config.loop.precision)
            numbers |= {f"{name}{key}": float(losses[key]) for key in ("text_loss", "image_loss")}
        pictures = drawn_above_real(model, self.image_tokenizer, self.val_rows, self.null_ids)
        return numbers, {"drawn above real": pictures}

    def export(self, folder: Path, step: int) -> None:
        assert self.averaged is not None
        save_checkpoint(
            folder,
            name=self.config.name,
            image_tokenizer=self.image_tokenizer,
            text_tokenizer=self.text_tokenizer,
            decoder=self.averaged,
            about=about_run(self.config.loop.seed, self.inputs()) | {"decoder_steps": str(step)},
            overwrite=True,
        )


def run(config: DecoderTrainingConfig) -> bool:
    """Train the stage, or resume its run; see `training.loop.train`."""
    task = DecoderTask(config)
    if task.share.leads:
        for misfit in misfits_of_decoder(config, len(task.rows.codes)):
            print(f"note: {misfit}")
    return train(task, config.loop, Path(config.run), config)


def main() -> None:
    run_preset(
        "training.decoder",
        __doc__,
        PRESETS,
        run,
        dry_run=lambda config: dry_run(DecoderTask, config),
        after=after_decoder,
    )


if __name__ == "__main__":
    main()
