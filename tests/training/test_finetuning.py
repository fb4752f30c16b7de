"""Fine-tuning: tiny models of every family are imported, trained further on a dozen pictures, and draw."""

import dataclasses
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from dalle import DALLE
from dalle.checkpoint import load_checkpoint, load_image_tokenizer, save_checkpoint
from dalle.decoder.decoder import Decoder
from dalle.errors import ConfigError, DataError
from dalle.interop.convert import import_checkpoint
from dalle.text.classes import ClassTokenizer
from tests.support.golden import decoder_of, distance
from tests.support.models import FAMILIES, lively_decoder
from tests.support.pairs import COLOURS, pair
from tests.support.text_encoders import write_t5
from training import decoder_presets, next_step
from training.captions.classes import class_captions, read_class_names
from training.codes import encode_pairs
from training.command import parse_preset
from training.decoder import DecoderTask, run
from training.decoder_config import DecoderTrainingConfig
from training.dry_run import dry_run
from training.lora import Adapters
from training.losses.prediction import num_text_targets, prediction_losses
from training.optimization import recompute_activations
from training.pairs.shard_writer import ShardWriter, encode_webp
from training.pairs.shards import PairShards
from training.run_folder import restore_state, save_state
from training.small_data import misfits_of_decoder
from training.token_shards import codes_digest

DATA = Path(__file__).parents[1] / "data" / "golden"
NUM_PAIRS = 12
FOREIGN = {
    "minDALL-E/checkpoint": "a red square",
    "ru-dalle/Malevich_v2": "рыжая панда",
    "ru-dalle/Malevich_v3": "рыжая панда",
    "LlamaGen/c2i_stage.pt": "3",
    "LlamaGen/t2i_stage.pt": "red",
    "DALLE-pytorch/tokenizers/yttm.model": "a red square",
}
"""Golden sets, and a prompt for each."""


def imported(path: str, folder: Path) -> Path:
    """The model directory of a golden set."""
    theirs = DATA / path
    if "tokenizers" in path:
        theirs = decoder_of(folder / "theirs", 300)
        shutil.copy(DATA / path, theirs)
    import_checkpoint(theirs, folder / "imported")
    return folder / "imported"


def write_rows(folder: Path, model: Path | str, **options: Any) -> None:
    """A dozen pictures of 16 x 16 pixels, whose captions are also names of classes, as token shards of a model."""
    names = folder / "names.txt"
    names.write_text("\n".join(COLOURS), encoding="utf-8")
    with ShardWriter(folder, "train") as writer:
        for number in range(NUM_PAIRS):
            image, metadata = pair(number)
            colour = metadata["keywords_en"][0]
            writer.write(f"{number:05d}", encode_webp(image), {"id": f"{number}", "captions": [f"{colour}"]})
    values: dict[str, Any] = {"num_captions": 2, "device": "cpu"} | options
    if values.pop("classes", False):
        values["class_names"] = names
    for split in ("train", "val"):
        encode_pairs((str(folder / "train.tar"),), model=str(model), out=folder / "codes" / split, **values)


def finetuning(folder: Path, model: Path | str, **changes: Any) -> DecoderTrainingConfig:
    """The preset, in 20 steps on the rows of `write_rows`."""
    config = decoder_presets.finetune()
    loop: dict[str, Any] = {"steps": 20, "batch_size": 4, "warmup_steps": 2, "look_steps": 20, "workers": 0}
    loop |= {"device": "cpu", "precision": "float32", "average_decay": 0.5} | changes.pop("loop", {})
    values: dict[str, Any] = {
        "run": str(folder / "run"),
        "start_from": str(model),
        "train_shards": (str(folder / "codes/train"),),
        "val_shards": (str(folder / "codes/val"),),
        "learning_rate": 3e-3,
        "lora_rate": 1e-2,
        "loop": dataclasses.replace(config.loop, **loop),
    }
    return dataclasses.replace(config, **(values | changes))


def losses_of(task: DecoderTask, steps: Iterator[int] | range) -> list[float]:
    """Takes steps. Returns their losses of codes."""
    return [float(task.train_step(step, task.batch(step))["image_loss"]) for step in steps]


@pytest.mark.parametrize("path", FOREIGN)
def test_every_family_is_trained_further_and_draws(path: str, tmp_path: Path) -> None:
    model = imported(path, tmp_path)
    encoder = write_t5(tmp_path / "t5", width=40) if "t2i" in path else None
    write_rows(tmp_path, model, classes="c2i" in path, text_encoder=encoder)
    before = load_checkpoint(model)
    task = DecoderTask(finetuning(tmp_path, model, text_encoder=None if encoder is None else str(encoder)))
    start = {name: value.clone() for name, value in task.model.state_dict().items()}
    losses = losses_of(task, range(20))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    numbers, pictures = task.validate()
    assert numbers["image_loss"] < 0.9 * losses[0]
    assert ("text_loss" in numbers) == task.model.config.text_head
    (grid,) = pictures.values()
    rows = 3 if task.model.config.guidance else 2
    height, width = model_of(model).image_size
    assert grid.shape == (3, rows * height, 8 * width)
    changed = {name for name, value in task.model.state_dict().items() if not torch.equal(value, start[name])}
    assert changed == {name for name, _ in task.model.named_parameters()}

    task.export(tmp_path / "out", 20)
    after = load_checkpoint(tmp_path / "out")
    texts = [one.text_tokenizer for one in (before, after)]
    assert [None if one is None else one.digest for one in texts] == 2 * [texts[0] and texts[0].digest]
    assert codes_digest(after.image_tokenizer) == codes_digest(before.image_tokenizer)
    assert after.sampling == before.sampling and after.name == "finetuned"
    assert {**after.about, **before.about} == after.about and after.about["started_from"] == "imported"
    assert after.about["start_digest"] == before.digest[:12]
    drawn = [next(model_of(one, encoder).generate(FOREIGN[path], seed=3)) for one in (model, tmp_path / "out")]
    assert drawn[0].receipt.codes != drawn[1].receipt.codes


def model_of(folder: Path, text_encoder: Path | None = None) -> DALLE:
    return DALLE.load(folder, device="cpu", text_encoder=text_encoder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of minDALL-E, `imported`, and its token shards."""
    folder = tmp_path_factory.mktemp("finetuning")
    write_rows(folder, imported("minDALL-E/checkpoint", folder))
    return folder


# adapters


def test_adapters_are_trained_alone_and_merged(data: Path, tmp_path: Path) -> None:
    task = DecoderTask(finetuning(data, data / "imported", lora_rank=4, loop={"average_decay": 0.0}))
    before = load_checkpoint(data / "imported").decoder
    assert before is not None and task.adapters is not None
    depth, count = before.config.depth, sum(p.numel() for p in before.parameters())
    trained = [p for p in task.model.parameters() if p.requires_grad]
    assert len(trained) == 2 * 4 * depth, "two factors of four matrices of each block"
    optimized = [p for group in task.optimizer.param_groups for p in group["params"]]
    assert task.matrix_optimizer is None and {*map(id, optimized)} == {*map(id, trained)}
    assert sum(p.numel() for p in trained) < count / 4
    text_ids, codes = (rows[torch.arange(4), 0].long() for rows in (task.rows.text_ids, task.rows.codes))
    with torch.no_grad():
        ours, theirs = (one.teacher_forced(text_ids, codes) for one in (task.model, before))
    assert all(map(torch.equal, ours, theirs)), "adapters begin as zero"
    losses = losses_of(task, range(20))
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    task.export(tmp_path / "out", 20)
    exported = load_checkpoint(tmp_path / "out").decoder
    assert exported is not None and exported.config == before.config
    with torch.no_grad():
        ours, theirs = (one.teacher_forced(text_ids, codes) for one in (task.model, exported))
    assert all(distance(a, b) < 1e-5 for a, b in zip(ours, theirs, strict=True)), "the average is the last weights"
    for name, value in exported.state_dict().items():
        adapted = name.startswith("blocks.") and name.endswith(("qkv.weight", "output.weight", "input.weight"))
        assert torch.equal(value, before.state_dict()[name]) != adapted, name
    assert next(model_of(tmp_path / "out").generate("a red square", seed=3)).image.size == (32, 32)


def test_a_run_with_adapters_resumes_bit_for_bit_from_a_small_state(data: Path, tmp_path: Path) -> None:
    configs = [finetuning(data, data / "imported", lora_rank=2, run=str(tmp_path / name)) for name in ("whole", "cut")]
    whole, cut = map(DecoderTask, configs)
    losses_of(whole, range(6))
    losses_of(cut, range(3))
    save_state(cut.state(), 3, tmp_path)
    with safe_open(tmp_path / "state.safetensors", framework="pt") as file:
        kinds = {key.partition("/")[0] for key in file.keys()}  # noqa: SIM118
    assert kinds == {"model", "average", "optimizer", "gate"}
    assert (tmp_path / "state.safetensors").stat().st_size < (data / "imported/decoder.safetensors").stat().st_size / 2
    cut = DecoderTask(configs[1])
    assert restore_state(cut.state(), tmp_path) == 3
    losses_of(cut, range(3, 6))
    for name in ("model", "average"):
        pairs = zip(whole.state()[name].state_dict().values(), cut.state()[name].state_dict().values(), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    for task, name in ((whole, "a"), (cut, "b")):
        task.export(tmp_path / name, 6)
    ours, theirs = (load_file(tmp_path / name / "decoder.safetensors") for name in "ab")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("recompute", [False, True])
def test_adapters_of_layers_that_blocks_share(data: Path, recompute: bool) -> None:
    """Blocks of DALLE-pytorch may share attention and MLP: they share the adapter, and it is merged once."""
    decoder = lively_decoder(**FAMILIES["token shift"])
    adapters = Adapters(decoder, rank=3, alpha=6)
    assert len(adapters.weights) == 2 * 2 * 4, "of two attentions and two MLPs in three blocks"
    if recompute:
        recompute_activations(decoder.blocks)
    for weight in adapters.weights:
        torch.nn.init.normal_(weight, std=0.3)
    text_ids, codes = torch.randint(1, 280, (2, 12)), torch.randint(32, (2, 4, 4))
    merged = adapters.merged(adapters.weights)
    with torch.no_grad():
        plain = lively_decoder(**FAMILIES["token shift"]).teacher_forced(text_ids, codes)[1]
        ours, theirs = (one.teacher_forced(text_ids, codes)[1] for one in (decoder, merged))
    assert ours.shape == plain.shape and distance(ours, theirs) < 1e-4
    assert {name.replace("_checkpoint_wrapped_module.", "") for name, _ in merged.named_parameters()} == {
        name for name, _ in lively_decoder(**FAMILIES["token shift"]).named_parameters()
    }
    assert not any(p.requires_grad for p in merged.parameters())


# losses


@pytest.mark.parametrize("begin_ids", [(), (7,), (7, 9)])
def test_text_losses_by_hand(begin_ids: tuple[int, ...]) -> None:
    """Every id of a caption is predicted but the first of a row; padding and begin ids are no targets."""
    options = {"begin_ids": begin_ids, "attend_padding": True, "unique_padding": True}
    decoder = lively_decoder(**options)
    text_ids, codes = torch.randint(1, 280, (3, 12)), torch.randint(32, (3, 4, 4))
    text_ids[0, 5:] = 0
    row = decoder.layout.text_row(text_ids)
    with torch.no_grad():
        logits = decoder.teacher_forced(text_ids, codes)[0]
        found = prediction_losses(decoder, text_ids, codes, codes, "float32")["text_loss"]
    expected = []
    for item, place in itertools.product(range(3), range(1, len(row[0]))):
        t = place - len(begin_ids)
        if t >= 0 and text_ids[item, t] != 0:
            expected.append(-F.log_softmax(logits[item, place - 1], -1)[row[item, place]])
    assert len(expected) == 5 + 2 * 12 - (0 if begin_ids else 3)
    assert int(num_text_targets(text_ids, decoder.config)) == len(expected)
    assert float(found) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def test_rows_without_text_have_no_text_loss() -> None:
    decoder = lively_decoder(begin_ids=(7,), attend_padding=True, unique_padding=True)
    text_ids, codes = torch.zeros(2, 12, dtype=torch.int64), torch.randint(32, (2, 4, 4))
    assert prediction_losses(decoder, text_ids, codes, codes, "float32")["text_loss"] == 0
    classes = lively_decoder(**FAMILIES["classes"])
    assert set(prediction_losses(classes, text_ids[:, :1], codes, codes, "float32")) == {"image_loss"}


def test_captions_are_dropped_only_where_guidance_was_trained(data: Path) -> None:
    task = DecoderTask(finetuning(data, data / "imported", caption_dropout=0.9))
    assert not any((task.batch(step)["text_ids"] == task.null_ids).all(1).any() for step in range(5))
    (said,) = misfits_of_decoder(task.config, 100, guidance=task.model.config.guidance)
    assert said.startswith("caption_dropout is 0.9, but ") and said.endswith("so that no caption is dropped")
    assert misfits_of_decoder(task.config, 100) == []


def test_a_dropped_caption_of_features_is_the_null_features(tmp_path: Path) -> None:
    """They count where those of the caption count, as when a picture is drawn."""
    encoder = write_t5(tmp_path / "t5", width=40)
    model = imported("LlamaGen/t2i_stage.pt", tmp_path)
    write_rows(tmp_path, model, text_encoder=encoder)
    task = DecoderTask(finetuning(tmp_path, model, text_encoder=str(encoder), caption_dropout=0.5))
    batch = task.batch(1)
    assert 0 < batch["dropped"].sum() < 4
    assert not (batch["text_ids"] == task.null_ids).all(1).any()
    loaded = model_of(model, encoder)
    expected = []
    for text_ids, codes, dropped in zip(batch["text_ids"], batch["codes"], batch["dropped"], strict=True):
        ids, features = loaded.encoded(text_ids)
        if dropped:
            ids, features = loaded.without_caption(ids)
        assert features is not None
        with torch.no_grad():
            logits = loaded.decoder.teacher_forced(ids[None], codes[None], features[None])[1]
        expected.append(F.cross_entropy(logits[0], codes.flatten()))
    loss = task.train_step(1, batch)["image_loss"]
    assert float(loss) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


# token shards


def test_pictures_are_resized_to_those_of_the_model(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encode = load_image_tokenizer(data / "imported")
    codes = load_file(data / "codes/train/00000.safetensors")["codes"]
    pairs = PairShards([data / "train.tar"])
    images = torch.stack([pairs.picture(number, size=(32, 32)) for number in range(NUM_PAIRS)])
    assert torch.equal(codes[:, 0].long(), encode.encode(images.float() / 127.5 - 1))
    write_rows(data, data / "imported", overwrite=True)
    assert "note: pictures of 16 x 16 pixels are enlarged to the model's 32 x 32: " in capsys.readouterr().out


def test_captions_of_classes(tmp_path: Path) -> None:
    text = ClassTokenizer(4)
    (tmp_path / "names.txt").write_text("Cat\ndog\ncrane\nCrane\n", encoding="utf-8")
    names = read_class_names(tmp_path / "names.txt", 4)
    assert class_captions({"captions": [" cat", "DOG", "a cat", "3", "4"]}, text, names, "7") == ["0", "1", "3"]
    assert read_class_names(None, 4) == {}
    with pytest.raises(DataError, match=r"pair 7: 'crane' is the name of classes 2, 3: say a number"):
        class_captions({"captions": ["crane"]}, text, names, "7")
    with pytest.raises(DataError, match=r"pair 7: the caption '4' is no class: .* is a number in 0\.\.3, or a name"):
        class_captions({"captions": ["4"]}, text, names, "7")
    with pytest.raises(DataError, match=r"names.txt has 4 names; the model has 3 classes"):
        read_class_names(tmp_path / "names.txt", 3)
    with pytest.raises(DataError, match=r"none cannot be read"):
        read_class_names(tmp_path / "none", 3)


# the way of a user


def test_the_commands_fine_tune_a_model(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = next_step.after_codes(data / "codes/train", Path("unused"), Path("unused"), "imported-model")
    assert said.startswith("next: python -m training.decoder finetune --start-from imported-model --train-shards ")
    words = ["finetune", "--start-from", str(data / "imported"), "--lora-rank", "2", "--loop.steps", "3"]
    words += ["--train-shards", str(data / "codes/train"), "--val-shards", str(data / "codes/val")]
    words += ["--loop.device", "cpu", "--loop.workers", "0", "--loop.batch-size", "2", "--name", "mine"]
    config = parse_preset("training.decoder", None, decoder_presets.PRESETS, words)
    assert "parameters" in dry_run(DecoderTask, config)
    assert run(config)
    assert load_checkpoint("runs/decoder-finetune/model").name == "mine"
    assert (tmp_path / "runs/decoder-finetune/best/config.json").exists()
    missing = dataclasses.replace(config, train_shards=("none",))
    report = dry_run(DecoderTask, missing)
    assert "measured on random ones" in report


def test_what_cannot_be_fine_tuned_is_refused(data: Path, tmp_path: Path) -> None:
    def refused(model: Path | str, **changes: Any) -> str:
        with pytest.raises(DataError) as caught:
            DecoderTask(finetuning(data, model, **changes))
        return str(caught.value)

    model = load_checkpoint(data / "imported")
    save_checkpoint(tmp_path / "alone", name="alone", image_tokenizer=model.image_tokenizer)
    assert refused(tmp_path / "alone") == f"{tmp_path}/alone has no decoder to start from: give a model that draws"
    import_checkpoint(DATA / "LlamaGen/t2i_stage.pt", tmp_path / "features")
    assert refused(tmp_path / "features") == (
        f"{tmp_path}/features follows the features of a text encoder: give its folder with --text-encoder"
    )
    assert "does not follow features: it has no use for the text encoder t5" in refused(
        data / "imported", text_encoder="t5"
    )
    import_checkpoint(DATA / "DALLE-pytorch/dalle_full_shift.pt", tmp_path / "ids")
    assert "has no text tokenizer to encode captions: import it again" in refused(tmp_path / "ids")
    for folder in ("alone", "features", "ids"):
        with pytest.raises(DataError):
            encode_pairs((str(data / "train.tar"),), model=str(tmp_path / folder), out=tmp_path / "codes")
    assert "was made by another image tokenizer: codes_digest" in refused("emoji")
    import_checkpoint(DATA / "minDALL-E/checkpoint", tmp_path / "other")
    assert isinstance(model.decoder, Decoder)
    other = ClassTokenizer(20)
    decoder = Decoder(dataclasses.replace(model.decoder.config, text_length=1, text_vocab_size=21, pad_id=0))
    save_checkpoint(
        tmp_path / "text", name="text", image_tokenizer=model.image_tokenizer, text_tokenizer=other, decoder=decoder
    )
    assert "was made by another text tokenizer: text_digest" in refused(tmp_path / "text")
    with pytest.raises(DataError, match="the model draws from text: there are no classes that names could name"):
        encode_pairs(
            (str(data / "train.tar"),), model=str(data / "imported"), class_names=Path("names"), out=tmp_path / "codes"
        )
    for changes, message in (
        ({"lora_rank": 0}, "lora_rank is 0; it must be at least 1"),
        ({"lora_rank": 1, "lora_alpha": 0}, "lora_alpha is 0; it must be at least 1"),
        ({"lora_rate": 0.0}, "lora_rate is 0.0; it must be above 0"),
        ({"lora_rank": 1, "start_from": None}, "lora_rank needs start_from"),
    ):
        with pytest.raises(ConfigError) as caught:
            finetuning(data, data / "imported", **changes)
        assert str(caught.value) == message
    nothing = dataclasses.replace(finetuning(data, data), start_from=None)
    for make in (DecoderTask, lambda config: dry_run(DecoderTask, config)):
        with pytest.raises(ConfigError, match="there is no model to fine-tune: name one with --start-from"):
            make(nothing)
