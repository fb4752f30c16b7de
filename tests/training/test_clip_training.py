"""`training.clip`: batches, runs that are stopped and resumed, and the measurement of the model that they write."""

import json
import os
import random
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dalle.checkpoint.clip import load_clip
from dalle.clip.clip import Clip
from dalle.errors import CheckpointError, ConfigError, DataError
from dalle.text.bpe import TextTokenizer
from tests.support.clips import clip_config
from tests.support.golden import distance
from tests.support.pairs import pair, write_pairs
from training import clip, next_step
from training.bpe import train_text_tokenizer
from training.captions.attributes import describing, drawn_caption, group_prompts
from training.clip_config import PRESETS, ClipTrainingConfig
from training.clip_data import ContrastiveBatches, PairLabels
from training.distributed import WHOLE, Share
from training.evaluation.matching import recalls, zero_shot
from training.evaluation.neighbours import Looks, neighbour_accuracy
from training.loop import LoopConfig
from training.losses.contrastive import matches
from training.pairs.shards import PairShards, find_shards
from training.pairs.small_pictures import SmallPictures
from training.retrieval import measure


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    write_pairs(folder, "train", 24, transparent=True)
    write_pairs(folder, "val_combo", 9, transparent=True)
    train_text_tokenizer((str(folder / "train.tar"),), out=folder / "tokenizer.json", vocab_size=300, text_length=24)
    return folder


def training(data: Path, run: Path, *, loop: dict[str, Any] | None = None, **changes: Any) -> ClipTrainingConfig:
    shape = clip_config(TextTokenizer.load(data / "tokenizer.json"))
    lengths: dict[str, Any] = {"steps": 8, "batch_size": 6, "warmup_steps": 2, "log_steps": 1, "look_steps": 4}
    hardware: dict[str, Any] = {"workers": 0, "device": "cpu", "precision": "float32", "average_decay": 0.5}
    values: dict[str, Any] = {
        "model": shape,
        "loop": LoopConfig(**(lengths | hardware | (loop or {}))),
        "run": str(run),
        "text_tokenizer": str(data / "tokenizer.json"),
        "train_shards": (str(data / "train.tar"),),
        "val_shards": (str(data / "val_combo.tar"),),
    }
    return ClipTrainingConfig(**(values | changes))


def batches(config: ClipTrainingConfig) -> ContrastiveBatches:
    pairs = PairShards(find_shards(config.train_shards))
    pictures = SmallPictures.of_pairs(pairs, config.model.vision.image_size)
    return ContrastiveBatches(config, pairs, pictures, TextTokenizer.load(config.text_tokenizer))


def test_a_batch_is_a_function_of_the_step_and_shares_are_its_rows(data: Path, tmp_path: Path) -> None:
    config = training(data, tmp_path)
    made = batches(config)
    whole = made.batch(3, WHOLE)
    again = batches(config).batch(3, WHOLE)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    for rank in range(3):
        part = made.batch(3, Share(rank, 3))
        for name in ("images", "text_ids"):
            assert torch.equal(part[name], whole[name][rank::3]), name
        for name in ("picture_labels", "caption_labels"):
            assert torch.equal(part[name], whole[name]), name
    assert not torch.equal(made.batch(4, WHOLE)["images"], whole["images"])


def test_every_picture_has_its_caption_and_partners_share_its_concept(data: Path, tmp_path: Path) -> None:
    made = batches(training(data, tmp_path, partner_share=0.5, loop={"batch_size": 12}))
    batch = made.batch(0, WHOLE)
    assert matches(batch["picture_labels"], batch["caption_labels"]).diagonal().all()
    assert torch.equal(batch["picture_labels"][:6, 0], batch["picture_labels"][6:, 0])
    assert batch["images"].shape == (12, 3, 16, 16) and batch["images"].abs().max() <= 1


def test_transparent_pictures_lie_over_white_or_a_colour(data: Path, tmp_path: Path) -> None:
    corners = batches(training(data, tmp_path, loop={"batch_size": 64})).batch(0, WHOLE)["images"][:, :, 0, 0]
    is_white = (corners > 0.99).all(1)
    assert 15 < int(is_white.sum()) < 55
    assert len(corners[~is_white].unique(dim=0)) > 5


def test_a_caption_names_the_style_if_its_words_are_in_it() -> None:
    _, metadata = pair(3)
    assert not describing(metadata, "a red square").style and describing(metadata, "a Flat red square").style
    metadata["group"] = "food & drink"
    drawn = [drawn_caption(metadata, random.Random(seed)) for seed in range(400)]
    alone = [one for one in drawn if not one.thing]
    assert 5 < len(alone) < 45
    assert {(one.style, one.group) for one in alone} == {(True, False), (False, True)}
    assert {one.text for one in alone if one.group} <= {*group_prompts("food & drink")}
    assert any(not one.style for one in drawn if one.thing) and any(one.style for one in drawn if one.thing)


def test_labels_of_captions_are_those_of_what_they_name(data: Path) -> None:
    labels = PairLabels(PairShards(find_shards([data / "train.tar"])))
    thing, style, _ = labels.numbers[5].tolist()
    _, metadata = pair(5)
    assert labels.of_caption(5, describing(metadata, "x, flat style")).tolist() == [thing, style, -1]
    assert labels.of_caption(5, describing(metadata, "x")).tolist() == [thing, -1, -1]


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert clip.run(training(data, tmp_path / "one"))
    with monkeypatch.context() as patch:
        take = clip.ClipTask.train_step

        def stopping(task: clip.ClipTask, step: int, batch: dict[str, Tensor]) -> dict[str, Tensor | float]:
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return take(task, step, batch)

        patch.setattr(clip.ClipTask, "train_step", stopping)
        assert not clip.run(training(data, tmp_path / "two"))
    assert clip.run(training(data, tmp_path / "two"))
    one, two = (tmp_path / name for name in ("one", "two"))
    assert (one / "state.safetensors").read_bytes() == (two / "state.safetensors").read_bytes()
    first, second = load_clip(one / "model"), load_clip(two / "model")
    assert first.about["clip_steps"] == "8" and first.about["train_pairs"] == "24"
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_training_lowers_the_loss(data: Path, tmp_path: Path, loss: str) -> None:
    shape = clip_config(TextTokenizer.load(data / "tokenizer.json"), loss=loss)
    task = clip.ClipTask(training(data, tmp_path, model=shape, loop={"steps": 24, "batch_size": 12}))
    losses = [float(torch.as_tensor(task.train_step(step, task.batch(step))["loss"])) for step in range(24)]
    assert sum(losses[-4:]) / 4 < 0.85 * losses[0]


def test_a_model_is_measured(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip.run(training(data, tmp_path / "run"))
    measure(tmp_path / "run" / "model", shards=(str(data),), out=tmp_path / "out")
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert [*numbers["retrieval"]] == ["val_combo", "train"]
    row = numbers["retrieval"]["val_combo"]
    assert row["pictures"] == 9 and row["group"] is None and row["style"] == 1.0, "there is one style"
    for key in ("text_to_image", "image_to_text", "natural_text_to_image"):
        assert 0 <= row[f"{key}_1"] <= row[f"{key}_5"] <= 1
    assert row["chance_1"] < row["chance_5"] < 1
    assert numbers["zero_shot_chance"] == {"style": 1.0, "group": None}
    near = numbers["neighbours"]["val_combo"]
    assert near["clip_style"] == near["vgg_style"] == near["chance_style"] == 1.0 and near["vgg_group"] is None
    table = capsys.readouterr().out
    assert table.count("| val_combo | 9 |") == 1
    assert "one of 24 training pictures" in table and "| val_combo | 100.0 / 100.0 / 100.0 | - / - / - |" in table


def test_the_nearest_picture_is_a_classifier() -> None:
    def looks(places: list[int], styles: str, groups: list[str]) -> Looks:
        vgg = torch.cat([torch.eye(4)[places], torch.zeros(len(places), 4092)], dim=1).half()
        return Looks(clip=torch.eye(4)[places[::-1]], vgg=vgg, style=[*styles], group=groups)

    gallery = looks([0, 1, 2, 3], "aabb", ["x", "y", "x", "x"])
    found = neighbour_accuracy(looks([0, 1, 3], "aba", ["", "y", "x"]), gallery)
    # for VGG the gallery's places 0, 1 and 3 are the nearest; for CLIP 0, 2 and 3
    assert found == pytest.approx(
        {
            "vgg_style": 1 / 3,
            "vgg_group": 1.0,
            "clip_style": 2 / 3,
            "clip_group": 0.5,
            "chance_style": 0.5,
            "chance_group": (1 / 4 + 3 / 4) / 2,
        }
    )


def test_what_comes_next_and_what_is_missing(data: Path, tmp_path: Path) -> None:
    config = training(data, tmp_path / "run")
    assert f"--shards {shlex.join((*config.train_shards, *config.val_shards))}" in next_step.after_clip(config)
    assert next_step.after_clip(PRESETS["emoji"]()).endswith("training.retrieval runs/clip-emoji/model")
    with pytest.raises(DataError, match=r"none\.json does not exist; give what .* has written as --text-tokenizer"):
        clip.ClipTask(training(data, tmp_path, text_tokenizer=str(tmp_path / "none.json")))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"is not a directory of format dalle-clip: its config\.json lacks"):
        load_clip(tmp_path)


def test_recall_counts_right_ones_among_the_nearest() -> None:
    images = torch.eye(6)
    texts = torch.eye(6)[[1, 0, 2, 3, 4, 5]]
    found = recalls(images, texts, torch.eye(6, dtype=torch.bool))
    assert found["text_to_image_1"] == found["image_to_text_1"] == pytest.approx(4 / 6)
    assert found["text_to_image_5"] >= 4 / 6
    classes = {"a": images[:2], "b": images[3:4]}
    assert zero_shot(images[:4], ["a", "a", "", "b"], ["a", "b"], lambda name: classes[name]) == 1.0
    assert zero_shot(images[:1], [""], ["a", "b"], lambda name: classes[name]) is None


def test_presets_are_small_enough_to_ship() -> None:
    config = PRESETS["emoji"]().model
    text = {"vocab_size": 4096, "text_length": 32}
    shape = config.from_dict(config.to_dict() | {"text": config.text.to_dict() | text})
    with torch.device("meta"):
        network = Clip(shape)
    num_bytes = 2 * sum(p.numel() for p in network.parameters())
    assert num_bytes < 12e6 - 200_000, "with its text tokenizer, in half precision"


def test_wrong_settings_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"partner_share is 0\.6"):
        training(data, tmp_path, partner_share=0.6)
    with pytest.raises(ConfigError, match="batch_size is 1; a contrast needs at least 2 pairs"):
        training(data, tmp_path, loop={"batch_size": 1})


def test_small_pictures_are_the_same_kept_and_read(data: Path) -> None:
    pairs = PairShards(find_shards([data / "train.tar"]))
    kept, read = (SmallPictures.of_pairs(pairs, 8, keep=keep) for keep in (True, False))
    assert distance(kept([3, 1]), read([3, 1])) <= 1 / 255 + 1e-6
    assert kept.over_white([2]).shape == (1, 3, 8, 8)
