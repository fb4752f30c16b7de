"""Stage 1 from new weights: the losses of a step, the codebook, and validation."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dalle.errors import ConfigError, DataError
from dalle.images import composite
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
from training.losses.augmentation import over_backgrounds
from training.pairs import device_pictures
from training.pairs.shards import PairShards, find_shards
from training.vq import VQTask


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage1")
    write_stage_1(folder)
    return folder


@pytest.fixture(scope="module")
def clear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares on a transparent background, for stage 1."""
    folder = tmp_path_factory.mktemp("clear")
    write_transparent(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"perceptual_weight": -1.0}, "perceptual_weight is -1.0; it must not be negative"),
        ({"codebook_decay": 1.0}, "codebook_decay is 1.0; it must be in (0, 1)"),
        ({"restart_below": 1.0}, "restart_below is 1.0; it must be in [0, 1)"),
        ({"perceptual_crop": 8}, "perceptual_crop is 8; it must be at least 16"),
        ({"discriminator_width": 6}, "discriminator_width is 6; it must be a multiple of 4"),
        ({"discriminator_layers": 0}, "discriminator_layers is 0; it must be at least 1"),
        ({"only_decoder": True}, "only_decoder needs start_from"),
        ({"lecam_weight": 0.1}, "lecam_weight needs adversarial_weight above 0"),
        ({"r1_weight": 0.1}, "r1_weight needs adversarial_weight above 0"),
        ({"r1_weight": -1.0}, "r1_weight is -1.0; it must not be negative"),
        ({"r1_interval": 0}, "r1_interval is 0; it must be at least 1"),
        ({"entropy_weight": -0.1}, "entropy_weight is -0.1; it must not be negative"),
        ({"entropy_temperature": 0.0}, "entropy_temperature is 0.0; it must be above 0"),
        ({"alpha_weight": -1.0}, "alpha_weight is -1.0; it must not be negative"),
        ({"perceptual_pictures": 0}, "perceptual_pictures is 0; it must be at least 1"),
        ({"random_codes": 1.0}, "random_codes is 1.0; it must be in [0, 1)"),
        ({"alpha_widths": (16, 16)}, "alpha_widths needs only_decoder"),
        ({"random_codes": 0.1}, "random_codes needs only_decoder"),
        ({"drawn_by": "model"}, "drawn_by needs only_decoder"),
    ],
)
def test_contradictions_are_refused(data: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        vq_training(data, **changes)
    assert str(caught.value) == message


def test_batches_are_the_pictures_some_of_them_mirrored(data: Path) -> None:
    plain, flipping = VQTask(vq_training(data, flip=False)), VQTask(vq_training(data))
    num_flipped = num_seen = 0
    for number in range(40):
        images, mirrored = plain.batch(number)["images"], flipping.batch(number)["images"]
        assert torch.equal(images, plain.pairs.images(plain.epochs.batch(number)))
        for image, other in zip(images, mirrored, strict=True):
            if not torch.equal(image, image.flip(-1)):
                num_seen += 1
                num_flipped += torch.equal(other, image.flip(-1))
                assert torch.equal(other, image) or torch.equal(other, image.flip(-1))
    assert 0.35 < num_flipped / num_seen < 0.65
    assert torch.equal(flipping.batch(7)["images"], VQTask(vq_training(data)).batch(7)["images"])


def test_the_codebook_begins_with_what_the_encoder_gives(data: Path) -> None:
    task = VQTask(vq_training(data))
    codebook = task.model.quantizer.codebook.detach().clone()
    for number in range(3):
        assert "commitment_loss" not in step(task, number)
    assert torch.equal(task.model.quantizer.codebook, codebook), "it waits"
    task._start_codebook(3, torch.Generator().manual_seed(3))
    latents = [task.model.latents(task.batch(3 + i)["images"]).flatten(0, 2) for i in range(4)]
    places = task.model.quantizer.place(torch.cat(latents))
    codebook = task.model.quantizer.codebook
    assert torch.cdist(codebook, places).min(1).values.max() < 1e-3
    assert torch.equal(task.average.module.quantizer.codebook, codebook), "the average does not remember the unused one"
    scalars = step(task, 3)
    assert scalars["commitment_loss"] > 0 and scalars["batch_perplexity"] > 4


@pytest.mark.parametrize("codebook", ["average", "gradient"])
def test_the_codebook_learns_by_averages_or_by_gradient(data: Path, codebook: str) -> None:
    task = VQTask(vq_training(data, codebook=codebook, unquantized_steps=0))
    assert task.model.quantizer.codebook.requires_grad is (codebook == "gradient")
    step(task, 0)
    before = weights(task, "quantizer")
    scalars = step(task, 1)
    assert changed(before, weights(task, "quantizer"))
    assert ("restarted" in scalars) is (codebook == "average")


def test_every_loss_is_in_the_sum(data: Path) -> None:
    changes: dict[str, Any] = {"perceptual_weight": 0.5, "adversarial_weight": 0.2, "entropy_weight": 0.1}
    task = VQTask(vq_training(data, **changes, unquantized_steps=0))
    scalars = step(task, 0)
    parts = (
        scalars["pixel_loss"]
        + 0.5 * scalars["perceptual_loss"]
        + scalars["adaptive_weight"] * scalars["generator_loss"]
        + 0.25 * scalars["commitment_loss"]
        + 0.1 * scalars["entropy_loss"]
    )
    assert scalars["loss"] == pytest.approx(parts, rel=1e-4)
    assert {"discriminator_loss", "gradient_norm", "rate_scale", "batch_usage"} <= set(scalars)


def test_lpips_takes_some_of_the_pictures_only(data: Path) -> None:
    def perceptual_loss(pictures: int | None) -> float:
        changes: dict[str, Any] = {"perceptual_weight": 1.0, "perceptual_pictures": pictures}
        return step(VQTask(vq_training(data, **changes)), 0)["perceptual_loss"]

    task = VQTask(vq_training(data, perceptual_weight=1.0))
    images = task.batch(0)["images"]
    with torch.no_grad():
        drawn = task.model.pixels(task.model.quantizer.place(task.model.latents(images)))
        assert task.loss.lpips is not None
        distances = task.loss.lpips(drawn, images)
    assert perceptual_loss(2) == pytest.approx(float(distances[:2].mean()), rel=1e-4)
    assert perceptual_loss(None) == perceptual_loss(99) == pytest.approx(float(distances.mean()), rel=1e-4)


RGBA = dataclasses.replace(MODEL, channels=4)


@pytest.mark.parametrize("pixel_loss", ["l1", "l2"])
def test_alpha_is_in_the_sum_and_pixels_lie_over_a_colour(clear: Path, pixel_loss: str) -> None:
    task = VQTask(vq_training(clear, model=RGBA, pixel_loss=pixel_loss, alpha_weight=0.7, flip=False))
    images = task.batch(0)["images"]
    assert images.shape == (4, 4, 16, 16)
    assert torch.equal(images, task.pairs.images(task.epochs.batch(0), channels=4))
    with torch.no_grad():
        drawn = task.model.pixels(task.model.quantizer.place(task.model.latents(images)))
    shown, wanted = over_backgrounds(drawn, images, torch.Generator().manual_seed(0))
    distance = F.l1_loss if pixel_loss == "l1" else F.mse_loss
    scalars = step(task, 0)
    assert scalars["pixel_loss"] == pytest.approx(float(distance(shown, wanted)), rel=1e-5)
    assert scalars["alpha_loss"] == pytest.approx(float(distance(drawn[:, 3], images[:, 3])), rel=1e-5)
    assert scalars["loss"] == pytest.approx(scalars["pixel_loss"] + 0.7 * scalars["alpha_loss"], rel=1e-5)


def test_alpha_is_learned_and_its_error_is_that_of_the_averaged_weights(clear: Path) -> None:
    task = VQTask(vq_training(clear, model=RGBA, loop={"steps": 60, "batch_size": 8}, learning_rate=3e-3))
    before = task.validate()[0]["alpha_error"]
    losses = [step(task, number)["alpha_loss"] for number in range(60)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    numbers, pictures = task.validate()
    images = task.val_pairs.images(range(NUM_VAL), channels=4)
    drawn = task.average.module.decode(task.average.module.encode(images))
    assert numbers["alpha_error"] == pytest.approx(float((drawn[:, 3] - images[:, 3]).abs().mean() / 2), rel=1e-4)
    assert numbers["alpha_error"] < 0.8 * before
    errors = ((composite(drawn) - composite(images)) / 2).square().mean((1, 2, 3))
    assert numbers["psnr"] == pytest.approx(float((-10 * errors.log10()).mean()), rel=1e-4)
    shown = pictures["reconstructions"]
    assert shown.shape == (3, 2 * 16, NUM_VAL * 16) and torch.equal(shown[:, :16, :16], composite(images)[0])


def test_pictures_without_transparency_teach_no_alpha(data: Path, clear: Path) -> None:
    with pytest.raises(DataError) as caught:
        VQTask(vq_training(data, model=RGBA))
    assert str(caught.value) == (
        f"no picture of {data}/train-*.tar has transparent pixels, but the model has an alpha channel: "
        "build the shards again, or train with --model.channels 3"
    )
    plain = VQTask(vq_training(clear))
    scalars = step(plain, 0)
    assert "alpha_loss" not in scalars and "alpha_error" not in plain.validate()[0]
    assert plain.batch(0)["images"].shape == (4, 3, 16, 16), "over white"


@pytest.mark.parametrize("pixel_loss", ["l1", "l2"])
def test_pixel_loss_by_hand(data: Path, pixel_loss: str) -> None:
    task = VQTask(vq_training(data, pixel_loss=pixel_loss))
    images = task.batch(0)["images"]
    with torch.no_grad():
        latents = task.model.quantizer.place(task.model.latents(images))
        offsets = task.model.pixels(latents) - images
    expected = (offsets.abs() if pixel_loss == "l1" else offsets.square()).mean()
    assert step(task, 0)["pixel_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_the_discriminator_learns_first_and_pulls_later(data: Path) -> None:
    task = VQTask(vq_training(data, adversarial_weight=0.1, adversarial_start=2))
    assert task.discriminator is not None
    for number in range(4):
        before = [p.detach().clone() for p in task.discriminator.parameters()]
        scalars = step(task, number)
        assert changed(before, [p.detach() for p in task.discriminator.parameters()])
        assert ("generator_loss" in scalars) is (number >= 2)
        assert all(p.grad is None for p in task.discriminator.parameters()), "nothing is left over for the next step"
    assert set(task.state()) == {
        *("model", "average", "codebook_average", "optimizer", "gate"),
        *("discriminator", "discriminator_optimizer"),
    }


def test_lecam_holds_the_discriminator_back_and_is_saved(data: Path) -> None:
    plain, held = (VQTask(vq_training(data, adversarial_weight=0.1, lecam_weight=weight)) for weight in (0.0, 1.0))
    assert held.lecam is not None and "lecam" in held.state() and "lecam" not in plain.state()
    first = [step(task, 0)["discriminator_loss"] for task in (plain, held)]
    assert first[0] == first[1] and held.lecam.updates == 1
    assert step(held, 1)["discriminator_loss"] > step(plain, 1)["discriminator_loss"]


def test_r1_holds_the_discriminator_back_in_some_steps(data: Path) -> None:
    weak, strong = (
        VQTask(vq_training(data, adversarial_weight=0.1, r1_weight=weight, r1_interval=3)) for weight in (1e-9, 1e3)
    )
    scalars = [[step(task, number) for number in range(7)] for task in (weak, strong)]
    assert [[number for number in range(7) if "r1_loss" in run[number]] for run in scalars] == [[0, 3, 6]] * 2
    assert scalars[0][0] == scalars[1][0], "the losses of the first step"
    assert scalars[1][6]["r1_loss"] < scalars[0][6]["r1_loss"]
    assert {*weak.state()} == {*VQTask(vq_training(data, adversarial_weight=0.1)).state()}


def test_the_generator_s_pass_teaches_the_discriminator_nothing(data: Path) -> None:
    """With any adversarial weight, the discriminator learns the same from the same reconstructions of the first
    step."""
    tasks = [VQTask(vq_training(data, adversarial_weight=weight)) for weight in (1e-3, 1e3)]
    for task in tasks:
        step(task, 0)
    one, other = ({**task.discriminator.state_dict()} for task in tasks if task.discriminator is not None)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert changed(*[weights(task, "decoder") for task in tasks])


def test_psnr_is_that_of_the_averaged_weights(data: Path) -> None:
    task = VQTask(vq_training(data))
    for number in range(5):
        step(task, number)
    numbers, pictures = task.validate()
    images = PairShards(find_shards([data / "val.tar"])).images(range(NUM_VAL))
    drawn = task.average.module.decode(task.average.module.encode(images))
    errors = ((drawn - images) / 2).square().mean((1, 2, 3))
    assert numbers["psnr"] == pytest.approx(float((-10 * errors.log10()).mean()), rel=1e-4)
    codes = task.average.module.encode(images)
    assert numbers["usage"] == pytest.approx(len(codes.unique()) / 32)
    assert 1 <= numbers["perplexity"] <= 32
    shown = pictures["reconstructions"]
    assert shown.shape == (3, 2 * 16, NUM_VAL * 16)
    assert torch.equal(shown[:, :16, 16:32], images[1]) and torch.equal(shown[:, 16:, 16:32], drawn[1])


def test_pictures_that_do_not_fit_on_the_device_are_streamed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streaming = VQTask(vq_training(data))
    assert streaming.streams, "on a CPU always"
    size = NUM_TRAIN * 3 * 16 * 16
    for memory, fit in ((4 * size - 4, False), (4 * size, True)):
        monkeypatch.setattr(device_pictures, "device_bytes", lambda _, memory=memory: memory)
        task = VQTask(vq_training(data))
        assert task.streams is not fit
        assert all(torch.equal(task.batch(n)["images"], streaming.batch(n)["images"]) for n in range(3))
    assert device_pictures.pixels_on.cache_info().hits == 2, "the pictures are read once"
    device_pictures.pixels_on.cache_clear()


def test_what_is_not_there(data: Path) -> None:
    with pytest.raises(DataError, match=r"no shards at .*gone\.tar"):
        VQTask(vq_training(data, val_shards=(str(data / "gone.tar"),)))


def test_white_patches_keep_a_code_of_their_own_through_training(data: Path) -> None:
    model = dataclasses.replace(MODEL, blank_code=5)
    task = VQTask(vq_training(data, model=model, unquantized_steps=2, restart_below=0.5))
    images = task.val_pairs.images(range(NUM_VAL))
    white = task.model.blank_patches(images)
    assert white.any() and not white.all()
    blank = task.model.quantizer.vectors()[5].clone()
    for number in range(6):
        step(task, number)
        vectors = task.model.quantizer.vectors()
        assert (vectors[5] - blank).abs().max() < 1e-5, "the vector stays where it was"
        assert (vectors - vectors[5]).norm(dim=-1).topk(2, largest=False).values[1] > 1e-4, (
            "and none other is put there"
        )
        assert (task.model.encode(images)[white] == 5).all()
