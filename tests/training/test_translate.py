"""`training.translate`: batches, runs that are stopped and resumed, and the measurement of their model."""

import dataclasses
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from torch import Tensor

from dalle.checkpoint.translator import load_translator
from dalle.errors import ConfigError, DataError, ParameterError
from dalle.text.bpe import TextTokenizer
from dalle.translate.encoder_decoder import EncoderDecoder
from dalle.translate.languages import LANGUAGES
from tests.support.translation import unpacked_packages
from training import next_step, translate
from training.distributed import WHOLE, Share
from training.loop import LoopConfig
from training.translate_config import PRESETS, TranslateConfig
from training.translation.batches import SentenceBatches
from training.translation.lines import read_lines
from training.translation.metrics import measure_translations
from training.translation_data import TranslationDataOptions, write_data
from training.translation_report import measure


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("translation")
    packages = unpacked_packages(tmp_path_factory.mktemp("packages"))
    write_data(packages, TranslationDataOptions(out=folder, phrases=60, val=8))
    return folder


def training(data: Path, run: Path, *, loop: dict[str, Any] | None = None, **changes: Any) -> TranslateConfig:
    lengths: dict[str, Any] = {"steps": 6, "batch_size": 8, "warmup_steps": 2, "log_steps": 1, "look_steps": 6}
    hardware: dict[str, Any] = {"workers": 0, "device": "cpu", "precision": "float32", "average_decay": 0.5}
    tiny = PRESETS["tiny"]()
    values: dict[str, Any] = {
        "model": dataclasses.replace(tiny.model, width=16, num_heads=2, mlp_width=32),
        "loop": LoopConfig(**(lengths | hardware | (loop or {}))),
        "run": str(run),
        "data": str(data),
        "vocab_size": 400,
        "num_validation": 3,
    }
    return TranslateConfig(**(values | changes))


def batches(data: Path, **changes: Any) -> SentenceBatches:
    lines = read_lines(data / "train.jsonl")
    texts = (line[side] for line in lines for side in ("source", "target"))
    tokenizer = TextTokenizer.train(texts, vocab_size=400, text_length=48, lowercase=True)
    values: dict[str, Any] = {"batch_size": 6, "seed": 0, "source_length": 48, "target_length": 48}
    return SentenceBatches(lines, tokenizer, **(values | changes))


def test_a_batch_is_a_function_of_the_step_and_shares_are_its_rows(data: Path) -> None:
    made, again = batches(data), batches(data)
    for step in (3, made.per_epoch + 3):
        whole = made.batch(step, WHOLE)
        assert all(torch.equal(value, again.batch(step, WHOLE)[name]) for name, value in whole.items())
        parts = [made.batch(step, Share(rank, 2)) for rank in (0, 1)]
        for name in ("source_ids", "target_ids"):
            for rank, part in enumerate(parts):
                width = part[name].shape[1]
                assert torch.equal(part[name], whole[name][rank::2, :width])
                assert (whole[name][rank::2, width:] == 0).all(), "only padding is left out"
    assert not torch.equal(made.batch(0, WHOLE)["source_ids"], made.batch(made.per_epoch, WHOLE)["source_ids"])


def test_an_epoch_has_every_line_once(data: Path) -> None:
    made = batches(data)
    numbers = made._epoch(0).ravel()
    assert len({*numbers}) == len(numbers) == made.per_epoch * 6 > len(made) - 6
    assert batches(data, source_length=400, target_length=400).num_long == 0
    assert batches(data, source_length=12).num_long > made.num_long
    with pytest.raises(DataError, match="lines have more tokens than the network reads"):
        batches(data, target_length=1)


def test_padding_is_little(data: Path) -> None:
    made = batches(data)
    rows = [made.batch(step, WHOLE)["source_ids"] for step in range(made.per_epoch)]
    padding = sum(int((ids == 0).sum()) for ids in rows) / sum(ids.numel() for ids in rows)
    assert padding < 0.2


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert translate.run(training(data, tmp_path / "one"))
    with monkeypatch.context() as patch:
        take = translate.TranslateTask.train_step

        def stopping(task: translate.TranslateTask, step: int, batch: dict[str, Tensor]) -> dict[str, Tensor | float]:
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return take(task, step, batch)

        patch.setattr(translate.TranslateTask, "train_step", stopping)
        assert not translate.run(training(data, tmp_path / "two"))
    assert translate.run(training(data, tmp_path / "two"))
    one, two = (tmp_path / name for name in ("one", "two"))
    assert (one / "state.safetensors").read_bytes() == (two / "state.safetensors").read_bytes()
    for path in sorted((one / "model").iterdir()):
        assert path.read_bytes() == (two / "model" / path.name).read_bytes(), path.name
    loaded = load_translator(one / "model")
    assert loaded.about["translate_steps"] == "6" and [*loaded.lexicons] == [*LANGUAGES]
    assert loaded.text.source_languages == tuple(LANGUAGES) and "UNICODE LICENSE V3" in loaded.notice


def test_training_lowers_the_loss(data: Path, tmp_path: Path) -> None:
    task = translate.TranslateTask(training(data, tmp_path, loop={"steps": 30, "batch_size": 16}))
    batch = task.batch(0)

    def loss() -> float:
        task.dropout = 0.0
        with torch.no_grad():
            return float(task.loss(batch))

    before = loss()
    for step in range(30):
        task.train_step(step, task.batch(step))
    assert loss() < 0.85 * before


def test_dropout_falls_and_validation_has_none(data: Path, tmp_path: Path) -> None:
    config = training(data, tmp_path, dropout=0.5, final_dropout=0.1, loop={"steps": 5})
    task = translate.TranslateTask(config)
    batch = task.batch(0)
    rates = [task.train_step(step, batch)["dropout"] for step in range(5)]
    assert rates == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])
    with torch.no_grad():
        dropped = [task.model(batch["source_ids"], batch["target_ids"]) for _ in range(2)]
        kept = [task.average.module(batch["source_ids"], batch["target_ids"]) for _ in range(2)]
    assert not torch.equal(*dropped) and torch.equal(*kept)


def test_a_translator_is_measured(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    translate.run(training(data, tmp_path / "run", loop={"steps": 2}))
    measure(tmp_path / "run" / "model", data=data, num=3, out=tmp_path / "out")
    report = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert [*report["translations"]] == ["val_seen", "val_phrases", "val_concepts"]
    for split, languages in report["translations"].items():
        assert [*languages] == [*LANGUAGES, "mean"]
        for language, ways in languages.items():
            assert [*ways] == ["look-up", "network", "both"]
            for numbers in ways.values():
                assert 0 <= numbers["exact"] <= 1 and 0 <= numbers["chrf"] <= 100 and 0 <= numbers["bleu"] <= 100
            if language != "mean":
                by = report["translated_by"][split][language]
                assert by["name"] + by["network"] + by["parts"] + by["look-up"] == pytest.approx(1)
        things = report["by_things"][split]
        assert {*things} <= {"one", "several"} and all(0 <= one["exact"] <= 1 for one in things.values())
        assert 0 < sum(one["lines"] for one in things.values()) <= 3 * len(LANGUAGES), "long lines are left out"
    assert (tmp_path / "out" / "table.md").read_text() in capsys.readouterr().out
    with pytest.raises(ParameterError, match="num is 0"):
        measure(tmp_path / "run" / "model", data=data, num=0)


def test_metrics_are_those_of_sacrebleu() -> None:
    chance = random.Random(0)
    words = "a red panda in fluent 3d style , emoji of the green apple with light skin tone".split()
    expected = [" ".join(chance.choices(words, k=chance.randint(3, 9))) for _ in range(20)]
    found = [" ".join(chance.sample(text.split(), k=len(text.split()))) for text in expected[:15]] + expected[15:]
    measured = measure_translations(found, expected)
    assert measured["chrf"] == pytest.approx(sacrebleu.corpus_chrf(found, [expected]).score)
    assert measured["bleu"] == pytest.approx(sacrebleu.corpus_bleu(found, [expected]).score)
    assert measured["exact"] == sum(one == two for one, two in zip(found, expected, strict=True)) / 20
    assert measure_translations(["Flag of  Sweden."], ["flag of sweden"])["exact"] == 1
    assert measure_translations(["panda"], ["fox"]) == {"exact": 0, "chrf": 0, "bleu": 0}


def test_the_shipped_preset_fits_into_12_megabytes() -> None:
    config = PRESETS["emoji"]()
    with torch.device("meta"):
        network = EncoderDecoder(dataclasses.replace(config.model, vocab_size=config.vocab_size))
    assert 2 * sum(p.numel() for p in network.parameters()) < 12e6 - 1e6, (
        "with tokenizer and lexicons, in half precision"
    )


def test_what_comes_next_and_what_is_missing(data: Path, tmp_path: Path) -> None:
    config = training(data, tmp_path / "run")
    assert next_step.after_translate(config) == (
        f"next: python -m training.translation_report {tmp_path / 'run' / 'model'} --data {data}"
    )
    assert next_step.after_translation_data(Path("data/translation")).endswith("training.translate emoji")
    with pytest.raises(DataError, match=r"train\.jsonl cannot be read"):
        translate.TranslateTask(training(tmp_path / "none", tmp_path))
    with pytest.raises(ConfigError, match=r"dropout is 1\.0; it must be in \[0, 1\)"):
        training(data, tmp_path, dropout=1.0)
    with pytest.raises(ConfigError, match="vocab_size is 200; it must be at least 258"):
        training(data, tmp_path, vocab_size=200)
