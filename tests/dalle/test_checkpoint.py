"""Model directories: a saved model is loaded bit for bit, and a save that fails leaves the directory as it was."""

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dalle.checkpoint import load_checkpoint, load_image_tokenizer, save_checkpoint
from dalle.checkpoint.files import file_digest
from dalle.checkpoint.model_config import ModelConfig
from dalle.checkpoint.store import DEFAULT_MODEL, find_model
from dalle.checkpoint.weights import LazyTensor, write_safetensors
from dalle.decoder.decoder import Decoder
from dalle.decoder.sampling import SamplingParams
from dalle.errors import CheckpointError
from dalle.files import CannotWriteError
from dalle.text.bpe import TextTokenizer
from dalle.vq.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from dalle.vq.vqgan import ImageTokenizer
from tests.support.models import lively_decoder

DECODERS: dict[str, dict[str, object]] = {
    "default": {},
    "gpt-2": {"norm": "layernorm", "mlp": "gelu", "positions": "learned", "qk_norm": False, "qkv_bias": True}
    | {"output_bias": True, "mlp_bias": True, "head_bias": True},
    "axial, sparse, tied": {"positions": "axial", "patterns": ("row", "column"), "tie_embeddings": True},
    "sinusoidal": {"positions": "sinusoidal"},
    "sandwich, layer scale": {"sandwich_norm": True, "layer_scale": 0.5, "positions": "rotary"},
    "shared layers": {"depth": 3, "shared_attention": (0, 1, 0), "shared_mlp": (0,)},
}


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


@pytest.mark.parametrize("kind", ["vqgan", "discrete_vae"])
def test_a_config_is_written_as_it_was_read(kind: str, model_folder: Path, tmp_path: Path) -> None:
    folder = model_folder
    if kind != "vqgan":
        folder = tmp_path / "model"
        dvae = DiscreteVAE(DiscreteVAEConfig(image_size=8, num_layers=2))
        save_checkpoint(folder, name="dvae", image_tokenizer=dvae, about={"licence": "nobody's", "data": "빨강"})
        assert '"image_tokenizer": {\n    "kind": "discrete_vae",\n' in (folder / "config.json").read_text()
    assert ModelConfig.read(folder).to_json().encode() == (folder / "config.json").read_bytes()


def test_the_shipped_config_is_written_as_it_was_read() -> None:
    """Byte for byte, except that options which are newer than the file are added with their defaults."""
    folder = find_model(DEFAULT_MODEL)
    config = ModelConfig.read(folder)
    before, written = (folder / "config.json").read_bytes(), json.loads(config.to_json())
    for part, parsed in (("image_tokenizer", config.image_tokenizer), ("decoder", config.decoder)):
        for key in written[part].keys() - json.loads(before)[part].keys():
            assert getattr(parsed, key) == getattr(type(parsed), key), f"{part}.{key}"
            del written[part][key]
    assert (json.dumps(written, indent=2, ensure_ascii=False) + "\n").encode() == before


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
    """Format version 1 does not name the kind of the text tokenizer, and lacks the newer options."""
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
        return save_checkpoint(tmp_path / folder, name=name, image_tokenizer=image_tokenizer, overwrite=True, **options)

    first = save("a")
    assert first == file_digest(tmp_path / "a" / "config.json") == load_checkpoint(tmp_path / "a").digest
    assert save("b") == save("a") == first
    with torch.no_grad():
        image_tokenizer.quantizer.codebook[0, 0] += 1e-3
    others = [save("b"), save("a", name="noses"), save("a", about={"data": "none"}), save("a", dtype=torch.float16)]
    assert len({first, *others}) == 5


def test_files_can_be_read_by_others(model_folder: Path) -> None:
    files = ["config.json", "decoder.safetensors", "image_tokenizer.safetensors", "tokenizer.json"]
    assert names(model_folder) == files
    for path in model_folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path.name


@pytest.fixture
def model(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model directory, to be written over."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def test_an_interrupted_save_leaves_what_was_there(
    model: Path, monkeypatch: pytest.MonkeyPatch, image_tokenizer: ImageTokenizer
) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    loaded = load_checkpoint(model)

    def save_until_the_disk_is_full(path: Path, weights: dict[str, LazyTensor], **options: Any) -> None:
        write_safetensors(path, weights, **options)
        if path.name.startswith("decoder"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("dalle.checkpoint.checkpoint.write_safetensors", save_until_the_disk_is_full)
    for folder in (model, model.parent / "new"):
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(
                folder,
                name="next",
                image_tokenizer=image_tokenizer,
                text_tokenizer=loaded.text_tokenizer,
                decoder=loaded.decoder,
                overwrite=True,
            )
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert names(model.parent) == ["model"], "nothing is left beside it"
    monkeypatch.undo()
    save_checkpoint(model, name="next", image_tokenizer=image_tokenizer, overwrite=True)
    assert load_checkpoint(model).name == "next"
    assert names(model) == ["config.json", "image_tokenizer.safetensors"]


def test_only_a_model_directory_is_replaced_and_only_when_asked(
    tmp_path: Path, model: Path, image_tokenizer: ImageTokenizer
) -> None:
    def save(folder: Path, *, overwrite: bool = True) -> None:
        save_checkpoint(folder, name="eyes", image_tokenizer=image_tokenizer, overwrite=overwrite)

    (tmp_path / "home" / "letters").mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    foreign = {"config.json": '{"model_type": "t5"}', "model.safetensors": "theirs", "tokenizer.json": "theirs"}
    (tmp_path / "hub").mkdir()
    for name, content in foreign.items():
        (tmp_path / "hub" / name).write_text(content)
    before = load_checkpoint(model).digest
    with pytest.raises(CannotWriteError, match=r"model holds a model directory already; --overwrite replaces it"):
        save(model, overwrite=False)
    assert load_checkpoint(model).digest == before
    (model / "README.md").write_text("mine")
    for folder, said in (
        (tmp_path / "home", "it has no config.json, but letters"),
        (model, "it has README.md, which its config.json does not list"),
        (tmp_path / "file", "it is a file"),
        (tmp_path / "hub", "its config.json is of another program"),
    ):
        with pytest.raises(CannotWriteError, match=f"is not a model directory to be replaced: {said}"):
            save(folder)
    assert (tmp_path / "home" / "letters").is_dir()
    assert (model / "README.md").read_text() == (tmp_path / "file").read_text() == "mine"
    assert {path.name: path.read_text() for path in (tmp_path / "hub").iterdir()} == foreign
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty", overwrite=False)
    save(tmp_path / "empty")
    assert load_checkpoint(tmp_path / "empty").name == "eyes"
    (tmp_path / "empty" / "config.json").write_text("damaged")
    with pytest.raises(CannotWriteError, match=r"its config.json cannot be read"):
        save(tmp_path / "empty")


@pytest.mark.parametrize("name", ["two\nlines", "\udcff", " "])
def test_names_that_are_no_plain_text_are_refused(tmp_path: Path, name: str, image_tokenizer: ImageTokenizer) -> None:
    with pytest.raises(CheckpointError, match="a name has no control characters, and is not empty"):
        save_checkpoint(tmp_path / "model", name=name, image_tokenizer=image_tokenizer)
    assert names(tmp_path) == []


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
    """A loaded model may be trained, and its files may be overwritten while it is in use."""
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


def test_loading_does_not_import_the_compiler_of_torch(model: Path) -> None:
    """The import takes several times as long as loading a small model."""
    code = "import sys; from dalle.checkpoint import load_checkpoint; load_checkpoint(sys.argv[1])"
    code += "; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(model)], check=True, timeout=60)
