"""Both stages with a quantizer that has no codebook to learn: trained, saved, loaded, exported and drawn with."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from dalle.checkpoint import load_checkpoint, load_image_tokenizer
from dalle.errors import CheckpointError, DataError
from dalle.interop.export import export_checkpoint
from dalle.vq.vqgan import ImageTokenizer
from tests.support.stages import MODEL, NUM_VAL, decoder_training, step, vq_training, weights, write_stage_1
from training.codes import encode_pairs
from training.decoder import DecoderTask
from training.loop import train
from training.vq import VQTask

FSQ = dataclasses.replace(
    MODEL, quantizer="fsq", levels=(4, 5, 3), codebook_size=60, codebook_dim=3, normalize_codes=False, blank_code=7
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, and an image tokenizer in `run/model` that has been trained on them."""
    folder = tmp_path_factory.mktemp("fsq")
    write_stage_1(folder)
    config = vq_training(folder, model=FSQ)
    assert train(VQTask(config), config.loop, folder / "run", config)
    return folder


def test_it_learns_without_a_codebook(data: Path) -> None:
    task = VQTask(vq_training(data, model=FSQ, learning_rate=3e-3, loop={"steps": 60, "batch_size": 8}))
    assert "codebook_average" not in task.state()
    encoder = weights(task, "encoder")
    losses = [step(task, number)["pixel_loss"] for number in range(60)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert not all(map(torch.equal, encoder, weights(task, "encoder"))), "the gradient reaches the encoder"
    images = task.val_pairs.images(range(NUM_VAL))
    white = task.model.blank_patches(images)
    assert white.any() and (task.model.encode(images)[white] == 7).all()


def test_it_is_saved_loaded_trained_further_and_exported(data: Path, tmp_path: Path) -> None:
    loaded = load_image_tokenizer(data / "run" / "model")
    assert isinstance(loaded, ImageTokenizer) and loaded.config == FSQ
    task = VQTask(vq_training(data, start_from=str(data / "run" / "model")))
    images = task.val_pairs.images(range(NUM_VAL))
    codes = loaded.encode(images)
    assert torch.equal(codes, task.model.encode(images)) and codes.max() < 60
    assert torch.equal(loaded.decode(codes), task.average.module.decode(codes))
    step(task, 0)
    with pytest.raises(DataError, match="has no codebook to learn, which entropy_weight needs"):
        VQTask(vq_training(data, start_from=str(data / "run" / "model"), entropy_weight=0.1))
    with pytest.raises(CheckpointError, match=r"it has .*the quantizer fsq"):
        export_checkpoint(data / "run" / "model", "vqgan-jax", tmp_path / "jax")
    export_checkpoint(data / "run" / "model", "hf", tmp_path / "hf")
    assert (tmp_path / "hf" / "image_tokenizer" / "model.safetensors").is_file()


def test_a_decoder_learns_its_codes_and_draws(data: Path, tmp_path: Path) -> None:
    for name in ("train", "val"):
        encode_pairs(
            (str(data / f"{name}*.tar"),),
            image_tokenizer=data / "run" / "model",
            text_tokenizer=data / "tokenizer.json",
            out=tmp_path / "codes" / name,
            num_captions=2,
            device="cpu",
        )
    shards: dict[str, Any] = {f"{name}_shards": (str(tmp_path / "codes" / name / "*"),) for name in ("train", "val")}
    task = DecoderTask(decoder_training(data, image_tokenizer=str(data / "run" / "model"), **shards))
    for number in range(3):
        task.train_step(number, task.batch(number))
    _, pictures = task.validate()
    assert pictures["drawn above real"].shape == (3, 3 * 16, 8 * 16)
    task.export(tmp_path / "model", 3)
    assert load_checkpoint(tmp_path / "model").image_tokenizer.config == FSQ
