"""Stage 2: batches, losses, and what a decoder is trained on."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dalle.checkpoint import load_checkpoint, load_image_tokenizer, save_checkpoint
from dalle.errors import ConfigError, DataError
from dalle.text.bpe import TextTokenizer
from dalle.vq.vqgan import ImageTokenizer
from tests.support.stages import NUM_TRAIN, decoder_training, vq_training, write_stage_2
from training.codes import encode_pairs
from training.decoder import DecoderTask
from training.pairs.shards import find_shards
from training.run_folder import restore_state, save_state
from training.vq import VQTask


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage2")
    write_stage_2(folder)
    return folder


def step(task: DecoderTask, number: int) -> dict[str, float]:
    scalars = task.train_step(number, task.batch(number))
    return {name: float(torch.as_tensor(value)) for name, value in scalars.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"matrix_rate": 0.0}, "matrix_rate is 0.0; it must be above 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; it must be above 0"),
        ({"text_loss_weight": -0.1}, "text_loss_weight is -0.1; it must not be negative"),
        ({"caption_dropout": 1.0}, "caption_dropout is 1.0; it must be in [0, 1)"),
        ({"code_noise": -0.5}, "code_noise is -0.5; it must be in [0, 1]"),
        ({"embedding_weight": -0.5}, "embedding_weight is -0.5; it must not be negative"),
        ({"z_loss_weight": -0.5}, "z_loss_weight is -0.5; it must not be negative"),
        ({"patience": 0}, "patience is 0; it must be at least 1"),
        (
            {"whole_gradients": True},
            "whole_gradients is True, and shard is False: without shard, gradients are always whole",
        ),
    ],
)
def test_contradictions_are_refused(data: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decoder_training(data, **changes)
    assert str(caught.value) == message


def test_the_shape_comes_from_the_tokenizers(data: Path) -> None:
    """Vocabulary sizes, text length and grid size of the configuration are ignored."""
    wrong = dataclasses.replace(decoder_training(data).model, text_length=3, codebook_size=5, grid_height=9)
    model = DecoderTask(decoder_training(data, model=wrong)).model
    tokenizer = TextTokenizer.load(data / "tokenizer.json")
    config = model.config
    assert (config.text_vocab_size, config.text_length, config.pad_id) == (tokenizer.vocab_size, 16, 0)
    assert (config.codebook_size, config.grid_height, config.grid_width) == (32, 4, 4)
    assert config.width == wrong.width


def test_a_batch_is_a_function_of_its_step(data: Path) -> None:
    task, again = DecoderTask(decoder_training(data)), DecoderTask(decoder_training(data))
    batches = [task.batch(number) for number in range(10)]
    for number in (9, 0, 4):
        for name, value in again.batch(number).items():
            assert torch.equal(value, batches[number][name])
    assert not torch.equal(batches[0]["codes"], batches[1]["codes"])
    other_seed = DecoderTask(decoder_training(data, loop={"seed": 1})).batch(0)
    assert not torch.equal(other_seed["codes"], batches[0]["codes"])


def test_rows_are_pairs_with_one_of_their_captions(data: Path) -> None:
    task = DecoderTask(decoder_training(data, caption_dropout=0.0, code_noise=0.0))
    captions_seen = set()
    for number in range(20):
        batch = task.batch(number)
        assert {name: value.dtype for name, value in batch.items()} == dict.fromkeys(
            ("text_ids", "codes", "noisy_codes", "text_targets"), torch.int64
        )
        assert torch.equal(batch["codes"], batch["noisy_codes"])
        items = task.epochs.batch(number)
        assert torch.equal(batch["codes"], task.rows.codes[torch.from_numpy(items), 0].long())
        for item, text_ids in zip(items, batch["text_ids"], strict=True):
            matches = [
                torch.equal(text_ids, ids)
                for ids in task.rows.text_ids[torch.full((3,), int(item)), torch.arange(3)].long()
            ]
            assert any(matches)
            captions_seen.add(matches.index(True))
    assert captions_seen == {0, 1, 2}


def test_every_view_of_a_pair_is_as_frequent(data: Path, tmp_path: Path) -> None:
    encode_pairs(
        (str(data / "train-*.tar"),),
        image_tokenizer=data / "eyes",
        text_tokenizer=data / "tokenizer.json",
        out=tmp_path,
        num_captions=1,
        num_views=4,
        device="cpu",
    )
    shards = (str(tmp_path / "*.safetensors"),)
    (path,) = find_shards(shards)
    with safe_open(path, framework="pt") as file:
        stamp, tensors = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    tensors["codes"][:] = torch.arange(4)[:, None, None].to(torch.uint16)  # a code that says its view
    save_file(tensors, path, stamp)
    task = DecoderTask(decoder_training(data, train_shards=shards, loop={"batch_size": 50}))
    assert task.rows.codes.shape == (NUM_TRAIN, 4, 4, 4)
    views = torch.cat([task.batch(number)["codes"][:, 0, 0] for number in range(40)])
    shares = torch.bincount(views, minlength=4) / len(views)
    assert (shares - 0.25).abs().max() < 0.04
    items = torch.from_numpy(np.concatenate([task.epochs.batch(number) for number in range(40)]))
    assert all(len(views[items == item].unique()) == 4 for item in items.unique()), "and those of every pair"


def test_caption_dropout_and_code_noise_have_their_rates(data: Path) -> None:
    task = DecoderTask(decoder_training(data, caption_dropout=0.3, code_noise=0.8, loop={"batch_size": 50}))
    dropped, noisy, drawn = [], [], []
    for number in range(40):
        batch = task.batch(number)
        dropped.append((batch["text_ids"] == task.null_ids).all(1))
        replaced = batch["codes"] != batch["noisy_codes"]
        noisy.append(replaced.float().mean((1, 2)))
        drawn.append(batch["noisy_codes"][replaced])
        items = torch.from_numpy(task.epochs.batch(number))
        assert torch.equal(batch["codes"], task.rows.codes[items, 0].long()), "the targets stay"
    assert torch.cat(dropped).float().mean().item() == pytest.approx(0.3, abs=0.03)
    shares = torch.cat(noisy)  # of each row: of 16 codes, and one in 32 is replaced by itself
    assert shares.mean().item() == pytest.approx(0.8 / 2 * 31 / 32, abs=0.02)
    for low, high in ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8)):
        found = ((shares >= low) & (shares < high)).float().mean().item()
        assert found == pytest.approx(0.25, abs=0.08), "every share is as frequent, from none to all that is allowed"
    counts = torch.bincount(torch.cat(drawn), minlength=32)
    assert counts.min() > 0.6 * counts.float().mean(), "any code may come"


def by_hand(task: DecoderTask, text_ids: Tensor, codes: Tensor) -> tuple[float, float]:
    """Mean cross-entropy of texts and codes, row by row, token by token."""
    text_losses, image_losses = [], []
    text_logits, image_logits = task.model.teacher_forced(text_ids, codes)
    num_text = text_logits.shape[1]
    for row in range(len(text_ids)):
        for place in range(num_text):
            target = int(text_ids[row, text_ids.shape[1] - num_text + place])
            if target != 0:
                text_losses.append(-F.log_softmax(text_logits[row, place], -1)[target].item())
        for place, target in enumerate(codes[row].flatten().tolist()):
            image_losses.append(-F.log_softmax(image_logits[row, place], -1)[target].item())
    return sum(text_losses) / len(text_losses), sum(image_losses) / len(image_losses)


def test_losses_ignore_padding(data: Path) -> None:
    task = DecoderTask(decoder_training(data))
    text = task.text_tokenizer
    text_ids = text.encode_batch(["a red square on lime", "red", ""])
    codes = task.rows.codes[torch.arange(3), 0].long()
    with torch.no_grad():
        found = list(map(float, task._losses(task.model, text_ids, codes, codes).values()))
        assert found == pytest.approx(by_hand(task, text_ids, codes), rel=1e-5)
        # the same rows in a batch with more padding in front of them
        longer = torch.cat([text_ids, text.encode_batch(["a blue square on white, flat style"])])
        wide = list(map(float, task._losses(task.model, longer, *[torch.cat([codes, codes[:1]])] * 2).values()))
        assert wide == pytest.approx(by_hand(task, longer, torch.cat([codes, codes[:1]])), rel=1e-5)


def test_a_batch_without_any_caption_learns_that_the_text_ends(data: Path) -> None:
    task = DecoderTask(decoder_training(data, caption_dropout=0.999, loop={"batch_size": 1}))
    assert torch.equal(task.batch(0)["text_ids"][0], task.null_ids)
    scalars = step(task, 0)
    assert scalars["text_loss"] == pytest.approx(math.log(task.text_tokenizer.vocab_size), abs=0.5)


def test_noise_is_in_what_is_read_not_in_what_is_learnt(data: Path) -> None:
    task = DecoderTask(decoder_training(data, code_noise=0.9))
    batch = task.batch(0)
    with torch.no_grad():
        losses = task._losses(task.model, batch["text_ids"], batch["noisy_codes"], batch["codes"])
    assert step(task, 0)["image_loss"] == pytest.approx(float(losses["image_loss"]), rel=1e-6)


def test_embedding_loss_by_hand(data: Path) -> None:
    """The loss is 1 - cosine between the layer's output at position i and the codebook vector of code i."""
    task = DecoderTask(decoder_training(data, embedding_weight=0.4))
    assert task.embedding_head is not None and isinstance(task.image_tokenizer, ImageTokenizer)
    batch = task.batch(0)
    vectors = task.image_tokenizer.quantizer.vectors().detach()
    with torch.no_grad():
        _, hidden = task.model.hidden_rows(batch["text_ids"], batch["noisy_codes"])
        output = task.embedding_head(hidden)
    likeness = []
    for row, codes in enumerate(batch["codes"].flatten(1).tolist()):
        for place, code in enumerate(codes):
            predicted = output[row, place]
            likeness.append(float(predicted @ vectors[code] / (predicted.norm() * vectors[code].norm())))
    before = task.embedding_head.weight.detach().clone()
    scalars = step(task, 0)
    assert scalars["embedding_loss"] == pytest.approx(1 - sum(likeness) / len(likeness), abs=1e-5)
    parts = 0.1 * scalars["text_loss"] + scalars["image_loss"] + 0.4 * scalars["embedding_loss"]
    assert scalars["loss"] == pytest.approx(parts, rel=1e-5)
    step(task, 1)
    assert not torch.equal(task.embedding_head.weight, before)


def test_the_layer_of_the_embedding_loss_is_saved_and_not_exported(data: Path, tmp_path: Path) -> None:
    configs = [
        decoder_training(data, run=str(tmp_path / run), embedding_weight=0.4, loop={"save_minutes": 0.0})
        for run in ("whole", "parts")
    ]
    whole, parts = map(DecoderTask, configs)
    assert set(whole.state()) == {"model", "average", "matrix_optimizer", "optimizer", "gate", "embedding_head"}
    assert set(DecoderTask(decoder_training(data)).state()) == set(whole.state()) - {"embedding_head"}
    for number in range(6):
        step(whole, number)
        if number < 3:
            step(parts, number)
    save_state(parts.state(), 3, tmp_path)
    parts = DecoderTask(configs[1])
    assert restore_state(parts.state(), tmp_path) == 3
    for number in range(3, 6):
        step(parts, number)
    assert whole.embedding_head is not None and parts.embedding_head is not None
    assert torch.equal(whole.embedding_head.weight, parts.embedding_head.weight)
    assert all(map(torch.equal, whole.model.state_dict().values(), parts.model.state_dict().values()))

    whole.export(tmp_path / "model", 6)
    exported = load_checkpoint(tmp_path / "model")
    assert exported.decoder is not None and exported.about["decoder_steps"] == "6"
    assert set(exported.decoder.state_dict()) == set(whole.model.state_dict())
    groups = [group for o in (whole.matrix_optimizer, whole.optimizer) for group in o.param_groups]
    trained = [id(p) for group in groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for m in (whole.model, whole.embedding_head) for p in m.parameters())


@pytest.mark.parametrize("changes", [{"micro_batch_size": 2}, {"micro_batch_size": 3}, {"recompute": True}])
def test_less_memory_for_the_same_step(data: Path, changes: dict[str, Any]) -> None:
    plain = DecoderTask(decoder_training(data, embedding_weight=0.4, matrix_rate=1e-3))
    saving = DecoderTask(decoder_training(data, embedding_weight=0.4, matrix_rate=1e-3, **changes))
    for number in range(3):
        expected = step(plain, number)
        assert step(saving, number) == pytest.approx(expected, rel=1e-4)
    assert saving.model.state_dict().keys() == plain.model.state_dict().keys()
    for name, value in plain.model.state_dict().items():
        assert torch.allclose(saving.model.state_dict()[name], value, atol=1e-4), name


def test_z_loss_by_numbers(data: Path) -> None:
    """Logits are kept near zero; z-loss is in the sum with its weight, and absent without."""
    changes: dict[str, Any] = {"caption_dropout": 0.0, "code_noise": 0.0}
    plain = DecoderTask(decoder_training(data, **changes))
    weighed = DecoderTask(decoder_training(data, z_loss_weight=0.5, micro_batch_size=1, **changes))
    batch = plain.batch(0)
    with torch.no_grad():
        _, hidden = plain.model.hidden_rows(batch["text_ids"], batch["codes"])
        expected = plain.model.image_logits(hidden).exp().sum(-1).log().square().mean()
    before, after = step(plain, 0), step(weighed, 0)
    assert "z_loss" not in before
    assert after["z_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert after["loss"] == pytest.approx(before["loss"] + 0.5 * after["z_loss"], rel=1e-5)
    later = [step(weighed, number)["z_loss"] for number in range(1, 12)]
    assert later[-1] < 0.9 * after["z_loss"]


def test_learning_pays(data: Path) -> None:
    """The loss begins at that of a uniform guess and falls below that of the frequencies of codes; drawing works at any
    time."""
    model = dataclasses.replace(decoder_training(data).model, width=32)
    task = DecoderTask(decoder_training(data, model=model, code_noise=0.0, loop={"steps": 120, "batch_size": 8}))
    losses = [step(task, number)["image_loss"] for number in range(120)]
    assert losses[0] == pytest.approx(math.log(32), abs=0.2)
    codes = task.rows.codes[torch.arange(NUM_TRAIN), 0].flatten().long()
    shares = torch.bincount(codes, minlength=32) / len(codes)
    entropy = -(shares * shares.clamp_min(1e-9).log()).sum().item()
    assert sum(losses[-10:]) / 10 < 0.7 * entropy
    numbers, pictures = task.validate()
    assert set(numbers) == {"text_loss", "image_loss", "train_text_loss", "train_image_loss"}
    (grid,) = pictures.values()
    assert grid.shape == (3, 3 * 16, 8 * 16)
    expected = task.image_tokenizer.decode(task.val_rows.codes[torch.tensor([0]), 0].long())[0]
    assert (grid[:, 32:, :16] - expected).abs().max() < 1e-5, "below are the real ones"
    assert torch.equal(grid, *task.validate()[1].values()), "seeds are fixed"
    assert not torch.equal(grid[:, :16], grid[:, 16:32]), "guided and unguided"


def test_optimizers_share_out_all_parameters(data: Path) -> None:
    task = DecoderTask(decoder_training(data))
    groups = [group for o in (task.matrix_optimizer, task.optimizer) for group in o.param_groups]
    parameters = [id(p) for group in groups for p in group["params"]]
    assert sorted(parameters) == sorted(id(p) for p in task.model.parameters())
    assert all(p.ndim == 2 for p in task.matrix_optimizer.param_groups[0]["params"])
    assert all(p.ndim <= 1 for group in groups if group["weight_decay"] == 0 for p in group["params"])


def test_export_is_a_whole_model_and_training_starts_from_it(data: Path, tmp_path: Path) -> None:
    task = DecoderTask(decoder_training(data, name="squares"))
    for number in range(3):
        step(task, number)
    task.export(tmp_path / "model", 3)
    exported = load_checkpoint(tmp_path / "model")
    assert exported.name == "squares" and exported.decoder is not None and exported.text_tokenizer is not None
    averaged = task.average.module.state_dict()
    assert all(torch.equal(value, averaged[name]) for name, value in exported.decoder.state_dict().items())

    other_shape = dataclasses.replace(decoder_training(data).model, width=8, depth=3)
    again = DecoderTask(decoder_training(data, start_from=str(tmp_path / "model"), model=other_shape))
    assert again.model.training and again.model.config == exported.decoder.config
    assert all(torch.equal(value, averaged[name]) for name, value in again.model.state_dict().items())
    step(again, 0)
    assert not torch.equal(again.model.embedding.weight, averaged["embedding.weight"])


def test_what_cannot_be_trained_on_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="eyes has no decoder to start from"):
        DecoderTask(decoder_training(data, start_from=str(data / "eyes")))
    with pytest.raises(DataError, match=r"`python -m training.codes` writes some"):
        DecoderTask(decoder_training(data, val_shards=(str(tmp_path / "*.safetensors"),)))

    other_text = TextTokenizer.train(["another"] * 3, vocab_size=270, text_length=16)
    other_text.save(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match="was made by another text tokenizer"):
        DecoderTask(decoder_training(data, text_tokenizer=str(tmp_path / "tokenizer.json")))

    eyes = load_image_tokenizer(data / "eyes")
    assert isinstance(eyes, ImageTokenizer)
    with torch.no_grad():
        eyes.quantizer.codebook[0] += 1
    save_checkpoint(tmp_path / "other", name="other", image_tokenizer=eyes)
    with pytest.raises(DataError, match="was made by another image tokenizer"):
        DecoderTask(decoder_training(data, image_tokenizer=str(tmp_path / "other")))


def test_token_shards_stay_valid_with_a_sharper_decoder_half(data: Path, tmp_path: Path) -> None:
    pixels = VQTask(vq_training(data, start_from=str(data / "eyes"), only_decoder=True))
    pixels.train_step(0, pixels.batch(0))
    pixels.export(tmp_path / "better", 3)
    task = DecoderTask(decoder_training(data, image_tokenizer=str(tmp_path / "better")))
    assert len(task.rows.codes) == NUM_TRAIN
