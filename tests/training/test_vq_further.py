"""Stage 1 on a trained image tokenizer: all of it, or its decoder half alone, on perturbed codes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from dalle.checkpoint import load_image_tokenizer, save_checkpoint
from dalle.decoder.decoder import Decoder
from dalle.errors import CheckpointError, DataError
from dalle.images import composite
from dalle.text.bpe import TextTokenizer
from dalle.vq.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from dalle.vq.matting import NEARLY_WHITE
from dalle.vq.vqgan import ImageTokenizer
from tests.support.models import decoder_config
from tests.support.stages import (
    MODEL,
    NUM_TRAIN,
    NUM_VAL,
    changed,
    step,
    vq_training,
    weights,
    write_stage_1,
    write_transparent,
)
from training.token_shards import codes_digest
from training.vq import VQTask


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage1")
    write_stage_1(folder)
    return folder


@pytest.fixture(scope="module")
def clear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares on a transparent background."""
    folder = tmp_path_factory.mktemp("clear")
    write_transparent(folder)
    return folder


def test_starting_from_a_model_goes_on_with_its_weights_and_codebook(data: Path, tmp_path: Path) -> None:
    """The shape in the configuration is ignored; the codebook is neither initialised again nor dropped."""
    other_shape = dataclasses.replace(MODEL, codebook_size=8, widths=(4, 4))
    task = VQTask(vq_training(data, start_from=str(data / "eyes"), model=other_shape))
    eyes = load_image_tokenizer(data / "eyes")
    assert task.model.config == eyes.config
    assert all(torch.equal(value, eyes.state_dict()[name]) for name, value in task.model.state_dict().items())
    before = task.model.quantizer.vectors().detach().clone()
    assert "commitment_loss" in (scalars := step(task, 0)), "it is quantized from the first step"
    assert scalars["restarted"] == 0
    moved = (task.model.quantizer.vectors() - before).norm(dim=-1)
    assert moved.max() < 0.2
    with pytest.raises(CheckpointError, match="is not a folder"):
        VQTask(vq_training(data, start_from=str(tmp_path / "none")))


def test_starting_from_what_cannot_be_trained_is_refused(data: Path, tmp_path: Path) -> None:
    network = DiscreteVAE(DiscreteVAEConfig(image_size=16, num_layers=1, width=4, codebook_size=8, codebook_dim=4))
    save_checkpoint(tmp_path / "dvae", name="dvae", image_tokenizer=network)
    with pytest.raises(DataError, match="dvae is not a VQGAN with encoder and decoder of one resolution"):
        VQTask(vq_training(data, start_from=str(tmp_path / "dvae")))
    gumbel = ImageTokenizer(dataclasses.replace(MODEL, quantizer="gumbel", normalize_codes=False))
    save_checkpoint(tmp_path / "gumbel", name="gumbel", image_tokenizer=gumbel)
    with pytest.raises(DataError, match="has a gumbel quantizer, of which only the decoder can be trained"):
        VQTask(vq_training(data, start_from=str(tmp_path / "gumbel")))
    VQTask(vq_training(data, start_from=str(tmp_path / "gumbel"), only_decoder=True))


def test_training_the_decoder_alone_keeps_every_code(data: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"perceptual_weight": 0.1, "adversarial_weight": 0.1, "weight_decay": 0.5}
    task = VQTask(vq_training(data, start_from=str(data / "eyes"), only_decoder=True, **changes))
    eyes = load_image_tokenizer(data / "eyes")
    before = {part: weights(task, part) for part in ("encoder", "quantizer", "decoder")}
    losses = [step(task, number)["pixel_loss"] for number in range(8)]
    assert losses[-1] < losses[0]
    assert not changed(before["encoder"], weights(task, "encoder"))
    assert not changed(before["quantizer"], weights(task, "quantizer"))
    assert changed(before["decoder"], weights(task, "decoder"))
    task.export(tmp_path / "model", 3)
    exported = load_image_tokenizer(tmp_path / "model")
    assert codes_digest(exported) == codes_digest(eyes)
    images = task.pairs.images(range(NUM_TRAIN))
    assert torch.equal(exported.encode(images), eyes.encode(images))
    assert not torch.equal(exported.decode(eyes.encode(images)), eyes.decode(eyes.encode(images)))


def test_a_tokenizer_of_rgb_learns_to_draw_transparency_with_the_codes_that_it_has(
    data: Path, clear: Path, tmp_path: Path
) -> None:
    """At first it draws the same colours, opaque. Only alpha is learned: over white the pictures stay what they were,
    but for nearly white pixels, and so do their codes and the token shards."""
    rgb = load_image_tokenizer(data / "eyes")
    assert isinstance(rgb, ImageTokenizer)
    last = f"decoder.{len(rgb.decoder) - 2}"
    with torch.no_grad():  # pale pictures, as dark ones cannot be transparent
        rgb.get_parameter(f"{last}.weight").mul_(0.02)
        rgb.get_parameter(f"{last}.bias").fill_(0.97)
        rgb.get_parameter("encoder.1.bias").fill_(-0.0)  # which becomes 0.0 in averaged weights
    save_checkpoint(tmp_path / "pale", name="eyes", image_tokenizer=rgb)
    changes: dict[str, Any] = {"start_from": str(tmp_path / "pale"), "only_decoder": True, "alpha_widths": (16, 16)}
    task = VQTask(vq_training(clear, **changes, loop={"steps": 60, "batch_size": 8}, learning_rate=3e-3))
    images = task.val_pairs.images(range(NUM_VAL), channels=4)
    codes = rgb.encode(composite(images))
    drawn = task.model.decode(codes)
    torch.testing.assert_close(drawn[:, :3], rgb.decode(codes), atol=1e-6, rtol=0)
    assert (drawn[:, 3] == 1).all()
    before = task.validate()[0]["alpha_error"]
    for number in range(60):
        step(task, number)
    task.export(tmp_path / "model", 60)
    exported = load_image_tokenizer(tmp_path / "model")
    assert exported.config.channels == 4 and codes_digest(exported) == codes_digest(rgb)
    assert torch.equal(exported.encode(images), codes)
    assert task.validate()[0]["alpha_error"] < 0.5 * before
    after = exported.decode(codes)
    over_white = rgb.decode(codes)
    difference = (composite(after) - over_white).abs()
    assert (after[:, 3] < -0.9).any() and difference.max() < NEARLY_WHITE / 2 + 1e-5
    assert (over_white.amin(1)[(difference > 1e-5).any(1)] > 1 - NEARLY_WHITE).all()
    with pytest.raises(DataError, match="model has an alpha channel already: leave alpha_widths out"):
        VQTask(vq_training(clear, **changes | {"start_from": str(tmp_path / "model")}))
    with pytest.raises(DataError, match="has an alpha channel: build the shards again, or start from a model without"):
        VQTask(vq_training(data, start_from=str(tmp_path / "model")))


def test_pixels_are_drawn_from_codes_with_mistakes(data: Path) -> None:
    """Encoder and codebook are kept, the target pictures stay the same, and a run is a function of its seed."""
    changes: dict[str, Any] = {
        "start_from": str(data / "eyes"),
        "only_decoder": True,
        "pixel_loss": "l1",
        "flip": False,
    }
    task = VQTask(vq_training(data, **changes, random_codes=0.3))
    images = task.batch(0)["images"]
    generator = torch.Generator().manual_seed(0)
    codes = task.model.encode(images)
    wrong = task.perturbation(codes, {}, generator)
    assert 0.1 < (wrong != codes).float().mean() < 0.5
    expected = (task.model.pixels(task.model.quantizer.decode(wrong)) - images).abs().mean()
    before = {part: weights(task, part) for part in ("encoder", "quantizer", "decoder")}
    first = step(task, 0)
    assert first["pixel_loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
    assert {part: changed(values, weights(task, part)) for part, values in before.items()} == {
        "encoder": False,
        "quantizer": False,
        "decoder": True,
    }
    assert step(VQTask(vq_training(data, **changes, random_codes=0.3)), 0) == first


def test_codes_that_a_decoder_draws_come_with_captions(data: Path, tmp_path: Path) -> None:
    text = TextTokenizer.load(data / "tokenizer.json")
    decoder = Decoder(decoder_config(text_vocab_size=text.vocab_size, text_length=16))
    eyes = load_image_tokenizer(data / "eyes")
    save_checkpoint(tmp_path / "model", name="model", image_tokenizer=eyes, text_tokenizer=text, decoder=decoder)
    changes: dict[str, Any] = {
        "start_from": str(data / "eyes"),
        "only_decoder": True,
        "drawn_by": str(tmp_path / "model"),
    }
    task = VQTask(vq_training(data, **changes))
    batch = task.batch(0)
    assert set(batch) == {"images", "text_ids"}
    captions = [task.pairs.metadata(int(number)) for number in task.epochs.batch(0)]
    for ids, metadata in zip(batch["text_ids"], captions, strict=True):
        assert metadata["name_en"] in text.decode(ids) or text.decode(ids) in metadata["captions"]
    assert set(VQTask(vq_training(data, start_from=str(data / "eyes"), only_decoder=True)).batch(0)) == {"images"}
    before = [p.clone() for p in decoder.parameters()]
    one, other = (step(VQTask(vq_training(data, **changes)), 0) for _ in range(2))
    assert one == other
    assert task.perturbation.checkpoint is not None and task.perturbation.checkpoint.decoder is not None
    step(task, 0)
    assert not changed(before, list(task.perturbation.checkpoint.decoder.parameters())), (
        "the one that draws is not trained"
    )
