"""Model directories: what is saved is loaded, bit for bit, and every kind of damage is one clear error."""

import json
import pickle
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CAPTIONS, lively_decoder
from safetensors.torch import load_file, save_file
from torch import Tensor

from dalle.checkpoint import load_checkpoint, load_image_tokenizer, save_checkpoint
from dalle.checkpoint_files import file_digest
from dalle.errors import CheckpointError
from dalle.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from dalle.sampling import SamplingParams
from dalle.text_tokenizer import TextTokenizer
from dalle.transformer import Decoder
from dalle.weights import LazyTensor, write_safetensors

DECODERS: dict[str, dict[str, object]] = {
    "default": {},
    "gpt-2": {"norm": "layernorm", "mlp": "gelu", "positions": "learned", "qk_norm": False, "qkv_bias": True}
    | {"output_bias": True, "mlp_bias": True, "head_bias": True},
    "axial, sparse, tied": {"positions": "axial", "patterns": ("row", "column"), "tie_embeddings": True},
    "sinusoidal": {"positions": "sinusoidal"},
    "sandwich, layer scale": {"sandwich_norm": True, "layer_scale": 0.5, "positions": "rotary"},
    "shared layers": {"depth": 3, "shared_attention": (0, 1, 0), "shared_mlp": (0,)},
}


FILES = ("tokenizer.json", "image_tokenizer.safetensors", "decoder.safetensors")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def logits(decoder: Decoder) -> tuple[Tensor, Tensor]:
    """Text and image logits of three fixed rows."""
    generator = torch.Generator().manual_seed(5)
    text_ids = torch.randint(2, 258, (3, 12), generator=generator)
    text_ids[0, :4] = 0
    with torch.inference_mode():
        return decoder.teacher_forced(text_ids, torch.randint(32, (3, 4, 4), generator=generator))


@pytest.mark.parametrize("changes", DECODERS.values(), ids=DECODERS.keys())
def test_a_whole_model_comes_back_bit_for_bit(
    changes: dict[str, object], tmp_path: Path, image_tokenizer: ImageTokenizer, text_tokenizer: TextTokenizer
) -> None:
    decoder = lively_decoder(text_vocab_size=text_tokenizer.vocab_size, **changes)
    digest = save_checkpoint(
        tmp_path / "deep" / "model",
        name="tiny ä",
        image_tokenizer=image_tokenizer,
        text_tokenizer=text_tokenizer,
        decoder=decoder,
        about={"licence": "nobody's", "data": "빨강"},
        sampling=SamplingParams(guidance_scale=2.5),
    )
    loaded = load_checkpoint(str(tmp_path / "deep" / "model"))
    assert (loaded.name, loaded.about, loaded.digest) == ("tiny ä", {"licence": "nobody's", "data": "빨강"}, digest)
    assert loaded.sampling == SamplingParams(guidance_scale=2.5)
    assert loaded.decoder is not None and loaded.text_tokenizer is not None
    assert loaded.decoder.config == decoder.config
    assert not loaded.decoder.training and not loaded.image_tokenizer.training
    for before, after in zip(logits(decoder), logits(loaded.decoder), strict=True):
        assert torch.equal(before, after)
    assert loaded.text_tokenizer.digest == text_tokenizer.digest
    images = 2 * torch.rand(4, 3, 16, 16) - 1
    codes = image_tokenizer.encode(images)
    assert torch.equal(loaded.image_tokenizer.encode(images), codes)
    assert torch.equal(loaded.image_tokenizer.decode(codes), image_tokenizer.decode(codes))


def test_stage_1_alone(tmp_path: Path, image_tokenizer: ImageTokenizer) -> None:
    save_checkpoint(tmp_path / "model", name="eyes", image_tokenizer=image_tokenizer)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "image_tokenizer.safetensors",
    ]
    loaded = load_checkpoint(tmp_path / "model")
    assert (loaded.decoder, loaded.text_tokenizer) == (None, None)
    for tokenizer in (loaded.image_tokenizer, load_image_tokenizer(tmp_path / "model")):
        assert tokenizer.config == image_tokenizer.config
        for name, value in image_tokenizer.state_dict().items():
            assert torch.equal(tokenizer.state_dict()[name], value)


def test_what_layers_share_is_stored_once(tmp_path: Path, image_tokenizer: ImageTokenizer) -> None:
    decoder = lively_decoder(depth=3, shared_attention=(0, 1, 0), shared_mlp=(0,))
    save_checkpoint(tmp_path / "model", name="shared", image_tokenizer=image_tokenizer, decoder=decoder)
    stored = load_file(tmp_path / "model" / "decoder.safetensors")
    assert sorted(name for name in stored if "qkv" in name or "mlp.input" in name) == [
        "blocks.0.attention.qkv.weight",
        "blocks.0.mlp.input.weight",
        "blocks.1.attention.qkv.weight",
    ]
    loaded = load_checkpoint(tmp_path / "model")
    assert loaded.decoder is not None and loaded.text_tokenizer is None
    blocks = list(loaded.decoder.blocks)
    assert blocks[0].attention is blocks[2].attention


def test_a_model_of_the_first_format_is_read(model_folder: Path, tmp_path: Path) -> None:
    """It did not say what its text tokenizer is, and had none of the newer options."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["text_tokenizer"]
    config["format_version"] = 1
    for key in ("begin_ids", "unique_padding", "token_shift", "guidance", "text_head", "shared_mlp"):
        del config["decoder"][key]
    (folder / "config.json").write_text(json.dumps(config))
    before, after = load_checkpoint(model_folder), load_checkpoint(folder)
    assert before.decoder is not None and after.decoder is not None and after.text_tokenizer is not None
    for one, other in zip(logits(before.decoder), logits(after.decoder), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_is_close_and_loaded_as_float32(
    model_folder: Path, tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    whole, folder = load_checkpoint(model_folder), tmp_path / "half"
    assert whole.decoder is not None
    save_checkpoint(
        folder,
        name="half",
        image_tokenizer=whole.image_tokenizer,
        text_tokenizer=whole.text_tokenizer,
        decoder=whole.decoder,
        dtype=dtype,
    )
    half = load_checkpoint(folder)
    assert half.decoder is not None
    for before, after in zip(logits(whole.decoder), logits(half.decoder), strict=True):
        assert after.dtype == torch.float32
        assert 0 < (after - before).abs().max() < tolerance * before.abs().max()
    codes = torch.arange(32).reshape(2, 4, 4)
    before, after = whole.image_tokenizer.decode(codes), half.image_tokenizer.decode(codes)
    assert (after - before).abs().max() < 2 * tolerance
    name = "decoder.safetensors"
    assert (folder / name).stat().st_size < 0.6 * (model_folder / name).stat().st_size


def test_the_digest_is_of_the_content(tmp_path: Path, image_tokenizer: ImageTokenizer) -> None:
    def save(folder: str, name: str = "eyes", **options: Any) -> str:
        return save_checkpoint(tmp_path / folder, name=name, image_tokenizer=image_tokenizer, **options)

    first = save("a")
    assert first == file_digest(tmp_path / "a" / "config.json") == load_checkpoint(tmp_path / "a").digest
    assert save("b") == save("a") == first
    with torch.no_grad():
        image_tokenizer.quantizer.codebook[0, 0] += 1e-3
    others = [save("b"), save("a", name="noses"), save("a", about={"data": "none"}), save("a", dtype=torch.float16)]
    assert len({first, *others}) == 5


def test_files_can_be_read_by_others(model_folder: Path) -> None:
    assert names(model_folder) == sorted(["config.json", *FILES])
    for path in model_folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path.name


@pytest.fixture
def model(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model directory, to be damaged."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def edit_config(model: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = model / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


def fix_digests(model: Path) -> None:
    """Make the digests those of the damaged files, so that something else has to find the damage."""
    edit_config(model, lambda config: config.update(digests={name: file_digest(model / name) for name in FILES}))


def refusal(model: Path) -> str:
    """What is said when the directory is loaded: one line that names the folder."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model)
    text = str(caught.value)
    assert str(model) in text and "\n" not in text
    return text


def test_what_is_no_model_directory(tmp_path: Path, model: Path) -> None:
    assert "is no folder" in refusal(tmp_path / "missing")
    assert "is no folder" in refusal(model / "config.json")
    assert "has no config.json" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b'{"format": "dalle", ', "cannot be read"),
        (b"\xff\xfe{}", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[]", 'lacks "format": "dalle"'),
        (b"{}", 'lacks "format": "dalle"'),
        (b'{"model_type": "clip"}', 'lacks "format": "dalle"'),
    ],
)
def test_a_damaged_or_foreign_config(model: Path, content: bytes, said: str) -> None:
    (model / "config.json").write_bytes(content)
    assert said in refusal(model)


CONFIG_EDITS: dict[str, tuple[dict[str, Any], str]] = {
    "newer": ({"format_version": 3}, "format version 3; this release reads up to 2: upgrade to read it"),
    "version of another kind": ({"format_version": "1"}, "format version 1"),
    "no name": ({"name": None}, "lacks 'name', or it is no str"),
    "digests of another kind": ({"digests": ["decoder.safetensors"]}, "lacks 'digests', or it is no dict"),
    "unknown keys": ({"upscaler": {}, "clip": {}}, "unknown keys: clip, upscaler"),
    "no weights listed": ({"digests": {}}, "lists no digest of image_tokenizer.safetensors"),
    "decoder of another kind": ({"decoder": None}, "DecoderConfig must be an object, not NoneType"),
    "sampling out of range": ({"sampling": {"temperature": -1.0}}, "temperature"),
    "unknown sampling": ({"sampling": {"tempreature": 1.0}}, "SamplingParams has no key 'tempreature'"),
}


@pytest.mark.parametrize(("changes", "said"), CONFIG_EDITS.values(), ids=CONFIG_EDITS.keys())
def test_a_config_that_says_something_else(model: Path, changes: dict[str, Any], said: str) -> None:
    edit_config(model, lambda config: config.update(changes))
    assert said in refusal(model)


PART_EDITS: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown key": ("decoder", {"experts": 8}, "DecoderConfig has no key 'experts'"),
    "wrong type": ("image_tokenizer", {"patch_size": "2"}, "ImageTokenizerConfig.patch_size must be int, not '2'"),
    "contradiction": ("decoder", {"num_kv_heads": 3}, "num_heads 4 is no multiple of num_kv_heads 3"),
    "wider": ("decoder", {"width": 40}, "blocks.0.attention.output.weight has shape (32, 32), expected (40, 32)"),
    "deeper": ("decoder", {"depth": 3}, "blocks.2.attention.key_norm.weight has shape None, expected (8,)"),
    "shallower": ("decoder", {"depth": 1}, "blocks.1.attention.key_norm.weight has shape (8,), expected None"),
    "beyond an integer": ("decoder", {"text_vocab_size": 10**30}, "no decoder can be built from it"),
    "beyond memory": ("decoder", {"text_length": 10**15}, "no decoder can be built from it"),
    "more codes": ("image_tokenizer", {"codebook_size": 33}, "quantizer.codebook has shape (32, 4), expected (33, 4)"),
}


@pytest.mark.parametrize(("part", "changes", "said"), PART_EDITS.values(), ids=PART_EDITS.keys())
def test_a_network_of_another_shape(model: Path, part: str, changes: dict[str, Any], said: str) -> None:
    edit_config(model, lambda config: config[part].update(changes))
    assert said in refusal(model)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(model: Path, name: str) -> None:
    (model / name).unlink()
    assert refusal(model) == f"{model / name} is missing; config.json lists it"
    edit_config(model, lambda config: config["digests"].pop(name))
    assert f"lists no digest of {name}" in refusal(model)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit(model: Path, name: str) -> None:
    content = bytearray((model / name).read_bytes())
    content[len(content) // 2] ^= 1
    (model / name).write_bytes(content)
    assert f"{name} is damaged or not of this model: its SHA-256 is" in refusal(model)


def test_a_file_that_cannot_be_read(model: Path) -> None:
    path = model / "decoder.safetensors"
    path.unlink()
    path.symlink_to("/proc/self/mem")  # an ordinary file whose first byte cannot be read
    assert f"{path} cannot be read" in refusal(model)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _pickle(path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, path)


def _plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": [1.0]}))


def _endless_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


@pytest.mark.parametrize("damage", [_truncate, _empty, _pickle, _plain_pickle, _endless_header])
def test_no_safetensors(model: Path, damage: Callable[[Path], None]) -> None:
    path = model / "decoder.safetensors"
    damage(path)
    assert f"{path} is damaged or not of this model" in refusal(model)
    fix_digests(model)
    assert f"{path} cannot be read" in refusal(model)


def test_weights_of_another_network(model: Path) -> None:
    shutil.copy(model / "image_tokenizer.safetensors", model / "decoder.safetensors")
    fix_digests(model)
    assert "blocks.0.attention.key_norm.weight has shape None, expected (8,)" in refusal(model)


def test_a_missing_tensor_and_one_too_many(model: Path) -> None:
    path = model / "image_tokenizer.safetensors"
    weights = {name: value.clone() for name, value in load_file(path).items()}  # not the file that is written over
    codebook = weights.pop("quantizer.codebook")
    save_file(weights, path)
    fix_digests(model)
    assert "quantizer.codebook has shape None, expected (32, 4)" in refusal(model)
    save_file(weights | {"quantizer.codebook": codebook, "quantizer.more": codebook.clone()}, path)
    fix_digests(model)
    assert "quantizer.more has shape (32, 4), expected None" in refusal(model)


def test_the_text_tokenizer_of_another_model(model: Path) -> None:
    path = model / "tokenizer.json"
    for other, said in (
        (TextTokenizer.train(CAPTIONS * 3, vocab_size=290, text_length=12), "text vocabulary is 290"),
        (TextTokenizer.train(CAPTIONS, vocab_size=300, text_length=13, lowercase=True), "text length is 13"),
    ):
        other.save(path)
        edit_config(model, lambda config: config["digests"].pop("tokenizer.json", None))
        assert "lists no digest of tokenizer.json" in refusal(model), "it is never read without a digest"
        fix_digests(model)
        assert said in refusal(model)
    path.write_text('{"model": {"type": "WordPiece"}}')
    fix_digests(model)
    assert "is not a tokenizer.json written by this library" in refusal(model)


def test_another_image_tokenizer(model: Path) -> None:
    """One of the same shape is found by its digest, one of another codebook because it does not fit."""
    config = load_checkpoint(model).image_tokenizer.config
    assert isinstance(config, ImageTokenizerConfig)
    save_checkpoint(model.parent / "other", name="other", image_tokenizer=ImageTokenizer(config))
    shutil.copy(model.parent / "other" / "image_tokenizer.safetensors", model)
    assert "image_tokenizer.safetensors is damaged or not of this model" in refusal(model)

    values = config.to_dict() | {"codebook_size": 64}
    larger = ImageTokenizer(ImageTokenizerConfig.from_dict(values))
    save_checkpoint(model.parent / "larger", name="larger", image_tokenizer=larger)
    shutil.copy(model.parent / "larger" / "image_tokenizer.safetensors", model)
    edit_config(model, lambda config: config.update(image_tokenizer=values))
    fix_digests(model)
    assert "the tokenizer's codebook size is 64, the decoder's is 32: they are not of one model" in refusal(model)


@pytest.mark.parametrize("name", ["../secret", "..", ".", "", "/etc/passwd", "deep/../config.json", "nul\0"])
def test_digests_name_no_file_outside(model: Path, name: str) -> None:
    (model.parent / "secret").write_text("secret")
    (model / "deep").mkdir()
    digest = file_digest(model.parent / "secret")
    edit_config(model, lambda config: config["digests"].update({name: digest}))
    with pytest.raises(CheckpointError, match=r"is missing; config\.json lists it"):
        load_checkpoint(model)


def test_an_interrupted_save_leaves_what_was_there(
    model: Path, monkeypatch: pytest.MonkeyPatch, image_tokenizer: ImageTokenizer
) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    loaded = load_checkpoint(model)

    def save_until_the_disk_is_full(path: Path, weights: dict[str, LazyTensor], **options: Any) -> None:
        write_safetensors(path, weights, **options)
        if path.name.startswith("decoder"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("dalle.checkpoint.write_safetensors", save_until_the_disk_is_full)
    for folder in (model, model.parent / "new"):
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(
                folder,
                name="next",
                image_tokenizer=image_tokenizer,
                text_tokenizer=loaded.text_tokenizer,
                decoder=loaded.decoder,
            )
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert names(model.parent) == ["model"], "nothing is left beside it"
    monkeypatch.undo()
    save_checkpoint(model, name="next", image_tokenizer=image_tokenizer)
    assert load_checkpoint(model).name == "next"
    assert names(model) == ["config.json", "image_tokenizer.safetensors"]


def test_only_a_model_directory_is_replaced(tmp_path: Path, model: Path, image_tokenizer: ImageTokenizer) -> None:
    def save(folder: Path) -> None:
        save_checkpoint(folder, name="eyes", image_tokenizer=image_tokenizer)

    (tmp_path / "home" / "letters").mkdir(parents=True)
    (model / "README.md").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for folder, said in ((tmp_path / "home", "letters"), (model, "README.md"), (tmp_path / "file", "file")):
        with pytest.raises(CheckpointError, match=f"is no model directory to be replaced: it has {said}"):
            save(folder)
    assert (tmp_path / "home" / "letters").is_dir()
    assert (model / "README.md").read_text() == (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("damaged")
    save(tmp_path / "empty")
    assert load_checkpoint(tmp_path / "empty").name == "eyes"


def test_parts_that_do_not_fit_are_not_saved(
    tmp_path: Path, image_tokenizer: ImageTokenizer, text_tokenizer: TextTokenizer
) -> None:
    parts: dict[str, Any] = {"name": "odd", "image_tokenizer": image_tokenizer, "text_tokenizer": text_tokenizer}
    for changes, said in (
        ({"text_vocab_size": text_tokenizer.vocab_size + 1}, "text vocabulary"),
        (
            {"text_vocab_size": text_tokenizer.vocab_size, "codebook_size": 31},
            "codebook size is 32, the decoder's is 31",
        ),
    ):
        with pytest.raises(CheckpointError, match=said):
            save_checkpoint(tmp_path / "model", **parts, decoder=lively_decoder(**changes))
    assert not (tmp_path / "model").exists()


def test_a_loaded_model_does_not_hang_on_its_files(model: Path) -> None:
    """It may be trained, and its files may be written over while it is in use."""
    loaded = load_checkpoint(model)
    assert loaded.decoder is not None
    before = logits(loaded.decoder)
    digest = file_digest(model / "decoder.safetensors")
    with open(model / "decoder.safetensors", "r+b") as file:
        file.truncate(5000)
    assert all(map(torch.equal, before, logits(loaded.decoder)))
    assert file_digest(model / "decoder.safetensors") != digest

    text_logits, image_logits = loaded.decoder.teacher_forced(torch.ones(1, 12).long(), torch.zeros(1, 4, 4).long())
    (text_logits.sum() + image_logits.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in loaded.decoder.parameters())
    for network in (loaded.decoder, loaded.image_tokenizer):
        assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))
