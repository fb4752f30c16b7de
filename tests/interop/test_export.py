"""`dalle export`: layouts of other projects, written and read back, and Flax's files."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dalle.checkpoint import load_checkpoint, load_image_tokenizer, save_checkpoint
from dalle.checkpoint.store import DEFAULT_MODEL, find_model
from dalle.checkpoint.weights import LazyTensor
from dalle.errors import CheckpointError
from dalle.interop.convert import import_checkpoint
from dalle.interop.export import export_checkpoint
from dalle.interop.flax_msgpack import read_flax, write_flax
from dalle.interop.pickles import module_weights
from dalle.interop.torch_files import read_torch
from dalle.vq.vqgan import ImageTokenizer, ImageTokenizerConfig
from tests.support.golden import TOLERANCE, distance, found
from tests.support.interop_command import run
from tests.support.interop_images import DDCONFIG, write_mindalle
from tests.support.references import VQGAN


def test_vqgan_jax_gets_its_own_bytes_back(tmp_path: Path) -> None:
    path = found("vqgan-jax/checkpoint")
    import_checkpoint(path, tmp_path / "mine")
    code, text = run("export", tmp_path / "mine", "--to", "vqgan-jax", "--out", tmp_path / "theirs")
    assert code == 0 and text == f"vqgan-jax: {tmp_path / 'theirs'}\n"
    assert (tmp_path / "theirs" / "flax_model.msgpack").read_bytes() == (path / "flax_model.msgpack").read_bytes()
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "theirs", path))
    for key in ("architectures", "transformers_version"):
        ours.pop(key, None), theirs.pop(key)
    assert ours == theirs
    import_checkpoint(tmp_path / "theirs", tmp_path / "again")
    weights = [load_file(tmp_path / name / "image_tokenizer.safetensors") for name in ("mine", "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_tokenizer_of_taming_goes_to_vqgan_jax(tmp_path: Path) -> None:
    """Pixels in [-1, 1] are noted in the exported configuration, and survive another import."""
    write_mindalle(tmp_path / "1.3B", VQGAN(DDCONFIG, embed_dim=6, n_embed=20))
    import_checkpoint(tmp_path / "1.3B", tmp_path / "mine")
    export_checkpoint(tmp_path / "mine", "vqgan-jax", tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["pixel_range"] == [-1, 1]
    import_checkpoint(tmp_path / "theirs", tmp_path / "again")
    mine, again = load_image_tokenizer(tmp_path / "mine"), load_image_tokenizer(tmp_path / "again")
    assert mine.config == again.config
    images = 2 * torch.rand(2, 3, 8, 8) - 1
    assert torch.equal(mine.encode(images), again.encode(images))
    assert torch.equal(mine.decode(mine.encode(images)), again.decode(mine.encode(images)))


def test_hf_has_the_names_of_the_projects(tmp_path: Path) -> None:
    theirs = {"DALLE-pytorch/vae.pt": read_torch(found("DALLE-pytorch/vae.pt"))["weights"]}
    theirs["taming/gumbel_f4_144"] = read_torch(found("taming/gumbel_f4_144/checkpoints/last.ckpt"))["state_dict"]
    halves = {
        side: module_weights(read_torch(found(f"openai-dVAE/{side}.pkl")), f"{side}.")
        for side in ("encoder", "decoder")
    }
    theirs["openai-dVAE"] = halves["encoder"] | halves["decoder"]
    for path, expected in theirs.items():
        out = tmp_path / path.replace("/", "-")
        import_checkpoint(found(path), out / "mine")
        export_checkpoint(out / "mine", "hf", out / "hf")
        weights = load_file(out / "hf" / "image_tokenizer" / "model.safetensors")
        assert {*weights} == {*expected} and all(torch.equal(weights[name], expected[name].load()) for name in weights)


def test_hf_of_a_whole_model(tmp_path: Path, model_folder: Path) -> None:
    code, text = run("export", model_folder, "--to", "hf", "--out", tmp_path / "hf")
    assert code == 0, text
    files = sorted(str(path.relative_to(tmp_path / "hf")) for path in (tmp_path / "hf").rglob("*") if path.is_file())
    assert files == sorted(
        ["config.json", "tokenizer.json"]
        + [f"{part}/{name}" for part in ("decoder", "image_tokenizer") for name in ("config.json", "model.safetensors")]
    )
    loaded = load_checkpoint(model_folder)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["model_type"], config["name"]) == ("dalle", loaded.name)
    described = json.loads((tmp_path / "hf" / "image_tokenizer" / "config.json").read_text())
    assert described.pop("model_type") == "vqgan" and described == loaded.image_tokenizer.config.to_dict()
    assert loaded.decoder is not None
    decoder = load_file(tmp_path / "hf" / "decoder" / "model.safetensors")
    for name, value in loaded.decoder.state_dict().items():
        assert torch.equal(decoder[name], value)
    weights = load_file(tmp_path / "hf" / "image_tokenizer" / "model.safetensors")
    state = loaded.image_tokenizer.state_dict()
    assert torch.equal(weights["quantize.embedding.weight"], state["quantizer.codebook"])
    assert torch.equal(weights["decoder.conv_out.bias"], state["decoder.9.bias"]) and len(weights) == len(state)


def test_the_network_that_finds_alpha_keeps_its_names(tmp_path: Path) -> None:
    """The default model has one, which no other project has."""
    export_checkpoint(find_model(DEFAULT_MODEL), "hf", tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "image_tokenizer" / "model.safetensors")
    ours = load_image_tokenizer(find_model(DEFAULT_MODEL)).state_dict()
    matting = {name for name in ours if name.startswith("matting.")}
    assert matting and len(weights) == len(ours)
    assert all(torch.equal(weights[name].float(), ours[name]) for name in matting)


def test_what_cannot_be_exported(tmp_path: Path, model_folder: Path) -> None:
    code, text = run("export", model_folder, "--to", "vqgan-jax", "--out", tmp_path / "x")
    assert code == 2 and "vqgan-jax cannot describe this image tokenizer: it has patch_size above 1" in text
    code, text = run("export", model_folder, "--to", "gguf", "--out", tmp_path / "x")
    assert code == 2 and "there is no layout 'gguf'; there are vqgan-jax, hf" in text
    import_checkpoint(found("openai-dVAE"), tmp_path / "mine")
    code, text = run("export", tmp_path / "mine", "--to", "vqgan-jax", "--out", tmp_path / "x")
    assert code == 2 and "of the kind openai_dvae, not a VQGAN" in text
    code, text = run("export", tmp_path / "mine", "--out", tmp_path)
    assert code == 2 and "exists already" in text
    assert not (tmp_path / "x").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["mine"]


def test_flax_files(tmp_path: Path) -> None:
    """Sizes on both sides of each encoding's limit are written and read; damage is reported in one line."""
    arrays = {f"a/b{i}/c": torch.randn(n) for i, n in enumerate([0, 1, 7, 60, 63, 64, 16383, 16384, 20000])}
    arrays |= {"a/half": torch.randn(2, 300, 3).half(), "brain": torch.randn(4).bfloat16(), "n" * 40: torch.ones(1)}
    arrays |= {f"many/{i}": torch.tensor(float(i)) for i in range(20)}
    path = tmp_path / "flax_model.msgpack"
    write_flax(path, {name: LazyTensor.of(value) for name, value in arrays.items()})
    weights = read_flax(path)
    assert {*weights} == {*arrays}
    assert all(torch.equal(weights[name].load(), arrays[name]) for name in arrays)
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"\x00", b"", b"\x91\x01", b"\x81\xa1a\xc0", b"\x81\xa1a" * 100 + b"\x80"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"flax_model\.msgpack") as caught:
            read_flax(path)
        assert "\n" not in str(caught.value)


if find_spec("vqgan_jax"):  # in the dependency group `peers`; not on a package registry

    def test_vqgan_jax_itself(tmp_path: Path) -> None:
        """vqgan-jax reads the exported folder and computes the same codes and pictures."""
        import numpy as np
        from vqgan_jax.modeling_flax_vqgan import VQModel

        config = ImageTokenizerConfig(
            image_size=16,
            widths=(32, 64),
            base_width=32,
            num_res_blocks=2,
            attention_levels=(1,),
            z_channels=12,
            codebook_dim=6,
            codebook_size=50,
            normalize_codes=False,
            pixel_range="unit",
        )
        tokenizer = ImageTokenizer(config).eval()
        torch.nn.init.normal_(tokenizer.quantizer.codebook)
        save_checkpoint(tmp_path / "mine", name="mine", image_tokenizer=tokenizer)
        export_checkpoint(tmp_path / "mine", "vqgan-jax", tmp_path / "theirs")
        model = VQModel.from_pretrained(str(tmp_path / "theirs"))
        images = torch.rand(2, 3, 16, 16)
        _, codes = model.encode(images.permute(0, 2, 3, 1).numpy())
        assert np.array_equal(codes, tokenizer.encode(2 * images - 1).flatten(1).numpy())
        pictures = torch.from_numpy(np.asarray(model.decode_code(codes))).permute(0, 3, 1, 2)
        mine = tokenizer.decode(tokenizer.encode(2 * images - 1))
        assert distance((mine + 1) / 2, pictures.clamp(0, 1)) < TOLERANCE
