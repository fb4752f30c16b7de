"""`training.classify`: labelled folders and shards, runs that are resumed, accuracies and confusion."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from dalle.checkpoint.clip import load_classifier, save_clip
from dalle.clip.classifier import LabelSet
from dalle.errors import DataError
from tests.support.clips import small_clip, text_tokenizer, vision_config
from tests.support.galleries import write_shards
from tests.support.golden import distance
from training import classify
from training.classify_config import ClassifyConfig
from training.distributed import Share
from training.evaluation.confusion import confusion, confusion_picture, top_accuracies
from training.loop import LoopConfig
from training.pairs.labelled import read_folder

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def write_folder(folder: Path, *splits: str) -> Path:
    """Twelve pictures of each colour, in a folder for each."""
    for split in splits or ("",):
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(12):
                picture = Image.new("RGB", (20, 20), colour)
                picture.paste("white", (number, 0, number + 6, 20))
                picture.save(folder / split / name / f"{number}.png")
    return folder


def training(run: Path, *, loop: dict[str, Any] | None = None, **changes: Any) -> ClassifyConfig:
    lengths: dict[str, Any] = {"steps": 12, "batch_size": 9, "warmup_steps": 2, "log_steps": 1, "look_steps": 6}
    hardware: dict[str, Any] = {"workers": 0, "device": "cpu", "precision": "float32", "average_decay": 0.5}
    values: dict[str, Any] = {"vision": vision_config(), "loop": LoopConfig(**(lengths | hardware | (loop or {})))}
    return ClassifyConfig(**(values | {"run": str(run)} | changes))


def test_colours_of_labelled_folders_are_learned(tmp_path: Path) -> None:
    pictures = write_folder(tmp_path / "pictures", "train", "val")
    assert classify.run(training(tmp_path / "run", pictures=str(pictures), loop={"steps": 60}))
    model = load_classifier(tmp_path / "run" / "model")
    (labels,) = model.network.config.label_sets
    assert labels == LabelSet(name="label", labels=("blue", "green", "red"))
    found = model.classify([Image.new("RGBA", (30, 30), colour) for colour in COLOURS.values()])
    assert [next(iter(one["label"])) for one in found] == ["red", "green", "blue"]
    with Image.open(tmp_path / "run" / "confusion-label.png") as picture:
        assert picture.mode == "RGB" and min(picture.size) > 100


def test_folders_without_splits_are_divided_by_the_paths(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures")
    train, val, _, digest = read_folder(folder, 0.3, 8)
    assert len(train.weights) + len(val.weights) == 36 and 3 < len(val.weights) < 20
    again, _, _, same = read_folder(folder, 0.3, 8)
    assert digest == same and torch.equal(train.targets, again.targets)
    (folder / "red" / "broken.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"broken\.png"):
        read_folder(folder, 0.3, 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no pictures for training"):
        read_folder(tmp_path / "empty", 0.3, 8)
    (folder / "red" / "broken.png").unlink()
    for val_fraction in (0.3, 1e-9):
        with pytest.raises(DataError, match="are in folders called 'green'; a classifier needs at least 2 labels"):
            read_folder(folder / "green", val_fraction, 8)
    with pytest.raises(DataError, match=r"none of the 36 pictures in .* another --val-fraction than 1e-09"):
        read_folder(folder, 1e-9, 8)


def test_styles_of_shards_are_learned_and_missing_labels_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards(tmp_path / "shards")
    given: dict[str, Any] = {
        "train_shards": (str(shards / "train*.tar"),),
        "val_shards": (str(shards / "val*.tar"),),
        "labels": ("style", "base"),
    }
    assert classify.run(training(tmp_path / "one", **given))
    with monkeypatch.context() as patch:
        take = classify.ClassifyTask.train_step

        def stopping(task: classify.ClassifyTask, step: int, batch: dict[str, Tensor]) -> dict[str, Tensor | float]:
            if step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return take(task, step, batch)

        patch.setattr(classify.ClassifyTask, "train_step", stopping)
        assert not classify.run(training(tmp_path / "two", **given))
    assert classify.run(training(tmp_path / "two", **given))
    states = [(tmp_path / name / "state.safetensors").read_bytes() for name in ("one", "two")]
    assert states[0] == states[1]
    assert [one.name for one in load_classifier(tmp_path / "one" / "model").network.config.label_sets] == [
        "style",
        "base",
    ]


def test_the_encoder_of_a_clip_model_is_trained_further(tmp_path: Path) -> None:
    tokenizer = text_tokenizer()
    network = small_clip(tokenizer)
    save_clip(tmp_path / "clip", name="clip", network=network, text_tokenizer=tokenizer)
    pictures = write_folder(tmp_path / "pictures", "train", "val")
    task = classify.ClassifyTask(training(tmp_path / "run", pictures=str(pictures), start_from=str(tmp_path / "clip")))
    ours, theirs = task.model.vision.state_dict(), network.vision.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_losses_of_shares_are_those_of_the_batch(tmp_path: Path) -> None:
    pictures = write_folder(tmp_path / "pictures", "train", "val")
    task = classify.ClassifyTask(training(tmp_path / "run", pictures=str(pictures)))
    task.pictures.targets[::5] = -1
    whole = task._losses(task.batch(0))["loss"]
    parts = []
    for rank in range(3):
        task.share = Share(rank, 3)
        parts.append(task._losses(task.batch(0))["loss"])
    assert distance(torch.stack(parts).mean(), whole) < 1e-6


def test_accuracies_and_confusion_count_pictures() -> None:
    logits = torch.tensor([[3.0, 1, 2, 0, -1, -2, -3], [0, 9, 1, 2, 3, 4, 5], [1, 0, 0, 0, 0, 0, 0]])
    targets = torch.tensor([2, 0, 0])
    assert top_accuracies(logits, targets) == pytest.approx({"top_1": 1 / 3, "top_5": 2 / 3})
    counts = confusion(logits, targets)
    assert counts.sum() == 3 and counts[2, 0] == counts[0, 1] == counts[0, 0] == 1
    labels = LabelSet(name="kind", labels=tuple("abcdefg"))
    picture = confusion_picture(counts, labels)
    assert picture.shape[0] == 3 and picture.min() >= -1 and picture.max() == 1 and picture.std() > 0.1
