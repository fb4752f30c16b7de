"""`dalle import` of files as users have them: renamed, beside unrelated files, or weights alone."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dalle.errors import CheckpointError
from dalle.interop.convert import import_checkpoint
from tests.support import golden
from tests.support.interop_decoders import DATA
from tests.support.interop_images import ddconfig, discrete_vae, imported, write_taming
from tests.support.references import VQGAN

VAE = discrete_vae()
TAMING = VQGAN(ddconfig(ch_mult=[1, 1]), embed_dim=6, n_embed=20)


def weights_of(path: Path, out: Path) -> dict[str, torch.Tensor]:
    import_checkpoint(path, out)
    return load_file(out / "image_tokenizer.safetensors")


def same_weights(path: Path, expected: dict[str, torch.Tensor], out: Path) -> None:
    found = weights_of(path, out)
    assert {*found} == {*expected} and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("name", ["epoch 3.bin", "vae", "last.CKPT", "last.pt.1"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_is_given_may_have_any_name(name: str, legacy: bool, tmp_path: Path) -> None:
    write_taming(tmp_path / "run", TAMING)
    checkpoint = tmp_path / "run/checkpoints/last.ckpt"
    expected = weights_of(tmp_path / "run", tmp_path / "a")
    content = torch.load(checkpoint, weights_only=True)
    checkpoint.unlink()
    torch.save(content, checkpoint.with_name(name), _use_new_zipfile_serialization=not legacy)
    same_weights(checkpoint.with_name(name), expected, tmp_path / "b")
    torch.save({"hparams": VAE.h, "weights": dict(VAE.w)}, tmp_path / "vae.pt")
    expected = weights_of(tmp_path / "vae.pt", tmp_path / "c")
    content = {"hparams": VAE.h, "weights": dict(VAE.w)}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    same_weights(tmp_path / name, expected, tmp_path / "d")


def test_a_file_of_something_else_is_of_no_family(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("dear")
    with pytest.raises(CheckpointError, match="notes is not a checkpoint of a known family"):
        import_checkpoint(tmp_path / "notes", tmp_path / "ours")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "notes")
    with pytest.raises(CheckpointError, match="notes is not a checkpoint of a known family"):
        import_checkpoint(tmp_path / "notes", tmp_path / "ours")


def test_the_configuration_that_is_named_like_the_weights(tmp_path: Path) -> None:
    """Several models in one folder, as notebooks download them, are kept apart."""
    for name, size in (("vqgan_f2_16", 16), ("vqgan_f2_160", 20), ("vqgan_f2_1600", 30)):
        reference = VQGAN(ddconfig(ch_mult=[1, 1]), embed_dim=6, n_embed=size)
        params = {"ddconfig": reference.d, "embed_dim": 6, "n_embed": size}
        config = {"model": {"target": "taming.models.vqgan.VQModel", "params": params}}
        (tmp_path / f"{name}.config.yml").write_text(yaml.safe_dump(config))
        torch.save({"state_dict": dict(reference.w)}, tmp_path / f"{name}.model.ckpt")
    for name, size in (("vqgan_f2_16", 16), ("vqgan_f2_160", 20), ("vqgan_f2_1600", 30)):
        tokenizer, done = imported(tmp_path / f"{name}.model.ckpt", tmp_path / name)
        assert tokenizer.config.codebook_size == size
        assert tmp_path / f"{name}.config.yml" in done.read
    torch.save({"hparams": VAE.h, "weights": dict(VAE.w)}, tmp_path / "vae.pt")
    assert imported(tmp_path / "vae.pt", tmp_path / "ours")[1].family == "dalle-pytorch"
    with pytest.raises(CheckpointError, match=r"several families|has 3 files"):
        import_checkpoint(tmp_path, tmp_path / "none")


def test_weights_without_the_state_of_training(tmp_path: Path) -> None:
    write_taming(tmp_path / "run", TAMING)
    expected = weights_of(tmp_path / "run", tmp_path / "a")
    torch.save(dict(TAMING.w), tmp_path / "run/checkpoints/last.ckpt")
    same_weights(tmp_path / "run", expected, tmp_path / "b")
    theirs = golden.find("ru-dalle/vae/vqgan.gumbelf8-sber.model.ckpt")
    assert theirs is not None
    expected = weights_of(theirs, tmp_path / "c")
    torch.save(torch.load(theirs, weights_only=True)["state_dict"], tmp_path / theirs.name)
    same_weights(tmp_path / theirs.name, expected, tmp_path / "d")


def test_pictures_of_other_channels_are_refused(tmp_path: Path) -> None:
    for changes, said in (({"in_channels": 1}, "in_channels 1"), ({"out_ch": 12}, "out_ch 12")):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        write_taming(tmp_path / "run", TAMING)
        (config,) = (tmp_path / "run/configs").glob("*-project.yaml")
        content = yaml.safe_load(config.read_text())
        content["model"]["params"]["ddconfig"] |= changes
        config.write_text(yaml.safe_dump(content))
        with pytest.raises(CheckpointError, match=f"has {said}; expected 3 for colours"):
            import_checkpoint(tmp_path / "run", tmp_path / "ours")


def test_weights_of_other_channels_are_refused(tmp_path: Path) -> None:
    """A wavelet head has 12 channels, which only ruDALL-E's family accepts."""
    write_taming(tmp_path / "run", TAMING)
    checkpoint = tmp_path / "run/checkpoints/last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    for name in ("weight", "bias"):
        value = content["state_dict"][f"decoder.conv_out.{name}"]
        content["state_dict"][f"decoder.conv_out.{name}"] = torch.cat([value] * 4)
    torch.save(content, checkpoint)
    with pytest.raises(CheckpointError, match=r"says out_ch 3; the weights of .* have 12"):
        import_checkpoint(tmp_path / "run", tmp_path / "ours")


def test_a_plain_checkpoint_beside_another_description(tmp_path: Path) -> None:
    """minDALL-E's own configuration is used, even if another one lies in its folder."""
    folder = tmp_path / "theirs"
    shutil.copytree(DATA / "minDALL-E/checkpoint", folder)
    (folder / "transfer.yaml").write_text(yaml.safe_dump({"stage1": {}, "stage2": {"type": "igpt"}}))
    assert import_checkpoint(folder, tmp_path / "ours").family == "mindalle"
