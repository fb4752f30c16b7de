"""Model directories that are damaged, foreign, or mixed from two models: each is rejected with one clear error."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dalle.checkpoint import load_checkpoint, save_checkpoint
from dalle.checkpoint.files import file_digest
from dalle.errors import CheckpointError
from dalle.text.bpe import TextTokenizer
from dalle.vq.vqgan import ImageTokenizer, ImageTokenizerConfig
from tests.support.models import CAPTIONS

FILES = ("tokenizer.json", "image_tokenizer.safetensors", "decoder.safetensors")


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
    """Replace the digests by those of the damaged files, so that another check has to find the damage."""
    edit_config(model, lambda config: config.update(digests={name: file_digest(model / name) for name in FILES}))


def refusal(model: Path) -> str:
    """The error message when the directory is loaded: one line that names the folder."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model)
    text = str(caught.value)
    assert str(model) in text and "\n" not in text
    return text


def test_what_is_no_model_directory(tmp_path: Path, model: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "missing")
    assert "is not a folder" in refusal(model / "config.json")
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
    "no name": ({"name": None}, "'name' is missing, or is not text"),
    "digests of another kind": ({"digests": ["decoder.safetensors"]}, "'digests' is missing, or is not an object"),
    "unknown keys": ({"upscaler": {}, "clip": {}}, "unknown keys: clip, upscaler"),
    "no weights listed": ({"digests": {}}, "lists no digest of image_tokenizer.safetensors"),
    "decoder of another kind": ({"decoder": None}, "DecoderConfig must be an object, not NoneType"),
    "sampling out of range": ({"sampling": {"temperature": -1.0}}, "temperature"),
    "about of another kind": ({"about": {"data": 1}}, "about has 1 for 'data'; it must be text"),
    "a digest of another kind": ({"digests": {"decoder.safetensors": 1}}, "digests has 1 for 'decoder.safetensors'"),
    "image tokenizer of another kind": (
        {"image_tokenizer": {"kind": "vqgan-2"}},
        "image_tokenizer is of the kind 'vqgan-2'; known are vqgan, discrete_vae, openai_dvae",
    ),
    "text tokenizer of another kind": ({"text_tokenizer": "wordpiece"}, "text tokenizer of kind 'wordpiece'"),
    "text tokenizer of no kind": ({"text_tokenizer": None}, "'text_tokenizer' is missing, or is not text"),
    "unknown sampling": ({"sampling": {"tempreature": 1.0}}, "SamplingParams has no key 'tempreature'"),
}


@pytest.mark.parametrize(("changes", "said"), CONFIG_EDITS.values(), ids=CONFIG_EDITS.keys())
def test_a_config_that_says_something_else(model: Path, changes: dict[str, Any], said: str) -> None:
    edit_config(model, lambda config: config.update(changes))
    assert said in refusal(model)


PART_EDITS: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown key": ("decoder", {"experts": 8}, "DecoderConfig has no key 'experts'"),
    "wrong type": ("image_tokenizer", {"patch_size": "2"}, "ImageTokenizerConfig.patch_size must be int, not '2'"),
    "contradiction": ("decoder", {"num_kv_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
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
    """A tokenizer of the same shape is rejected by its digest, one of another codebook size by the decoder's."""
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
    assert "the tokenizer's codebook size is 64, the decoder's is 32: they belong to different models" in refusal(model)


@pytest.mark.parametrize("name", ["../secret", "..", ".", "", "/etc/passwd", "deep/../config.json", "nul\0"])
def test_digests_name_no_file_outside(model: Path, name: str) -> None:
    (model.parent / "secret").write_text("secret")
    (model / "deep").mkdir()
    digest = file_digest(model.parent / "secret")
    edit_config(model, lambda config: config["digests"].update({name: digest}))
    with pytest.raises(CheckpointError, match=r"is missing; config\.json lists it"):
        load_checkpoint(model)
