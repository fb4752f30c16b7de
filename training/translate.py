"""Train a translator, an encoder-decoder Transformer from other languages into English. `python -m training.translate
PRESET` writes `RUN/model`: the network, its text tokenizer, and the lexicons of the data.

The text tokenizer, a byte-level BPE that all languages share, is trained on the lines of training when a run begins.
Matrices of the blocks are trained by Muon, all other weights by AdamW. Dropout is high at first and falls.

`torchrun --nproc-per-node N -m training.translate PRESET` trains on N devices.

Exit codes: 0 done, 2 a mistake of the caller, 4 stopped by SIGTERM, 130 by Ctrl-C. The same command resumes the run.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.checkpoint.translator import save_translator
from dalle.errors import DataError
from dalle.text.bpe import TextTokenizer
from dalle.translate.encoder_decoder import EncoderDecoder
from dalle.translate.languages import LANGUAGES
from dalle.translate.lexicon import Lexicon, lexicon_file
from dalle.translate.search import SearchConfig
from dalle.translate.translator import TextConfig, Translator
from training.command import run_preset
from training.distributed import data_parallel, means
from training.evaluation.features import evenly
from training.hardware import autocast
from training.loop import train
from training.network_task import NetworkTask
from training.next_step import after_translate
from training.provenance import about_run, data_digest
from training.small_data import misfits_of_loop
from training.translate_config import PRESETS, TranslateConfig
from training.translation.batches import SentenceBatches
from training.translation.lines import read_lines
from training.translation.metrics import measure_translations
from training.translation_data import LEXICONS

__all__ = ["PRESETS", "TranslateTask", "run"]

VALIDATED = ("val_seen", "val_phrases", "val_concepts")
GREEDY = SearchConfig(num_beams=1)
"""Beams are no better at sentences this short, and take twice the time."""


class TranslateTask(NetworkTask[EncoderDecoder]):
    """The `training.loop.Task` of a translator: batches of sentences, and the cross-entropy of their translations."""

    def __init__(self, config: TranslateConfig) -> None:
        super().__init__(config)
        self.config = config
        data = Path(config.data)
        self.digest = data_digest([data / "train.jsonl"])
        lines = read_lines(data / "train.jsonl")
        self.text_tokenizer = TextTokenizer.train(
            (line[side] for line in lines for side in ("source", "target")),
            vocab_size=config.vocab_size,
            text_length=config.model.source_length,
            lowercase=True,
        )
        self.batches = SentenceBatches(
            lines,
            self.text_tokenizer,
            batch_size=config.loop.batch_size,
            seed=config.loop.seed,
            source_length=config.model.source_length,
            target_length=config.model.target_length,
        )
        self.lexicons = _load_lexicons(data / LEXICONS, {line["language"] for line in lines})
        self.notice = (data / "NOTICE").read_text(encoding="utf-8") if (data / "NOTICE").exists() else ""
        self.val = {split: self._some(read_lines(data / f"{split}.jsonl")) for split in VALIDATED}
        torch.manual_seed(config.loop.seed)
        model = self._new_model()
        self.train_network(model, model.encoder, model.decoder)
        self.dropout = config.dropout
        self._add_dropout()
        self.loss = data_parallel(self._loss, self.model)

    def _new_model(self) -> EncoderDecoder:
        tokenizer = self.text_tokenizer
        config = dataclasses.replace(
            self.config.model,
            vocab_size=tokenizer.vocab_size,
            pad_id=tokenizer.pad_id,
            start_id=tokenizer.pad_id,
            end_id=tokenizer.eos_id,
        )
        return EncoderDecoder(config)

    def _add_dropout(self) -> None:
        """Drop out embeddings and branches, after the averaged copy is made, which has no dropout."""

        def dropped(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            return F.dropout(output, self.dropout)

        for name, module in self.model.named_modules():
            if name in ("embed_source", "embed_target") or name.rpartition(".")[2].startswith("after_"):
                module.register_forward_hook(dropped)

    def _some(self, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Evenly spaced lines that the network can read."""
        limit = self.config.model.source_length
        fitting = [line for line in lines if len(self.text_tokenizer.tokenize(line["source"])) < limit]
        return [fitting[number] for number in evenly(len(fitting), self.config.num_validation)]

    def inputs(self) -> dict[str, str | int]:
        """Digests of text tokenizer and data, and the number of training lines: a run resumes only with the same."""
        return {
            "text_digest": self.text_tokenizer.digest,
            "train_lines": len(self.batches),
            "data_digest": self.digest,
        }

    def batch(self, step: int) -> dict[str, Tensor]:
        return self.batches.batch(step, self.share)

    def _loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        targets = batch["target_ids"]
        with autocast(self.device, self.config.loop.precision):
            logits = self.model(batch["source_ids"], targets)
        return F.cross_entropy(
            logits.float().flatten(0, 1),
            targets.flatten(),
            ignore_index=self.text_tokenizer.pad_id,
            label_smoothing=self.config.label_smoothing,
        )

    def train_step(self, step: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        config = self.config
        self.dropout = config.dropout + (config.final_dropout - config.dropout) * step / max(1, config.loop.steps - 1)
        loss = self.loss(batch)
        loss.backward()
        losses = means({"loss": loss})
        scalars = self.optimize(step, losses["loss"])
        self.average.update(self.model)
        return {**losses, **scalars, "dropout": self.dropout}

    def validate(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Validates the averaged weights alone, without lexicons, with greedy search: exact match and chrF."""
        translator = self._translator(step=0)
        numbers: dict[str, float] = {}
        for split, lines in self.val.items():
            found = translator.translate([line["source"] for line in lines], GREEDY)
            measured = measure_translations([one.text for one in found], [line["target"] for line in lines])
            numbers |= {f"{split}_{name}": measured[name] for name in ("exact", "chrf")}
        return numbers, {}

    def _translator(self, step: int) -> Translator:
        return Translator(
            name=self.config.name,
            network=self.average.module,
            text_tokenizer=self.text_tokenizer,
            text=TextConfig(source_languages=tuple(self.lexicons), target_language="en"),
            search=GREEDY,
            lexicons=self.lexicons,
            notice=self.notice,
            about=about_run(self.config.loop.seed, self.inputs()) | {"translate_steps": str(step)},
        )

    def export(self, folder: Path, step: int) -> None:
        save_translator(folder, self._translator(step), dtype=torch.int8, overwrite=True)


def _load_lexicons(folder: Path, languages: set[str]) -> dict[str, Lexicon]:
    """The lexicons of the data's languages, in the library's order. Raises `DataError` for a language that the library
    does not know, and `CheckpointError` for a lexicon that is missing."""
    if unknown := languages - {*LANGUAGES}:
        raise DataError(f"the data have the languages {', '.join(sorted(unknown))}; known are {', '.join(LANGUAGES)}")
    return {language: Lexicon.load(folder / lexicon_file(language)) for language in LANGUAGES if language in languages}


def run(config: TranslateConfig) -> bool:
    """Train the translator, or resume its run; see `training.loop.train`."""
    task = TranslateTask(config)
    if task.share.leads:
        if task.batches.num_long:
            print(f"note: {task.batches.num_long} lines have more tokens than the network reads, and are left out")
        for misfit in misfits_of_loop(config.loop, len(task.batches)):
            print(f"note: {misfit}")
    return train(task, config.loop, Path(config.run), config)


def main() -> None:
    run_preset("training.translate", __doc__, PRESETS, run, after=after_translate)


if __name__ == "__main__":
    main()
