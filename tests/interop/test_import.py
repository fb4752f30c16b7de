"""`dalle import`: recognition, the report, damaged files, and atomic writing."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dalle.checkpoint import load_checkpoint
from dalle.interop.convert import import_checkpoint
from tests.support.golden import distance, found
from tests.support.interop_command import run
from tests.support.interop_images import DDCONFIG, write_mindalle
from tests.support.references import VQGAN, PlainDVAE

FAMILIES = {
    "vqgan-jax/checkpoint": "vqgan-jax",
    "taming/gumbel_f4_144": "taming",
    "taming/gumbel_f4_144/checkpoints/last.ckpt": "taming",
    "DALLE-pytorch/vae.pt": "dalle-pytorch",
    "openai-dVAE": "openai-dvae",
}


def refusal(path: Path, out: Path, *options: object) -> str:
    """The error of `dalle import`: one line; no folder is written, and nothing is left beside it."""
    before = sorted(out.parent.iterdir())
    code, text = run("import", path, "--out", out, *options)
    assert code == 2 and text.startswith("error: ") and text.count("\n") == 1, text
    assert not out.exists() and sorted(out.parent.iterdir()) == before
    return text


@pytest.mark.parametrize(("path", "family"), FAMILIES.items())
def test_a_family_is_recognised_and_reported(path: str, family: str, tmp_path: Path) -> None:
    code, text = run("import", found(path), "--out", tmp_path / "mine")
    assert code == 0, text
    lines = [line.split(maxsplit=1) for line in text.splitlines()]
    assert lines[0][0] == "family" and lines[0][1].startswith(f"{family}: {found(path.partition('/checkpoints')[0])}")
    read = {Path(line[1]).name for line in lines if line[0] == "read"}
    files = [file for file in found(path).rglob("*") if file.is_file()] if found(path).is_dir() else [found(path)]
    assert read >= {file.name for file in files if file.suffix in {".msgpack", ".json", ".ckpt", ".yaml", ".pkl"}}
    assert any(line[0] == "licence" for line in lines)
    loaded = load_checkpoint(tmp_path / "mine")
    assert loaded.name == "mine" and loaded.about["family"] == family
    assert run("import", found(path), "--out", tmp_path / "again", "--family", family)[0] == 0
    weights = [(tmp_path / name / "image_tokenizer.safetensors").read_bytes() for name in ("mine", "again")]
    assert weights[0] == weights[1]


def test_what_is_ignored_and_derived_is_reported(tmp_path: Path) -> None:
    _, text = run("import", found("taming/gumbel_f4_144"), "--out", tmp_path / "mine")
    assert "ignored  state of training: callbacks, epoch, global_step" in text
    assert "derived  codes: the most likely; the project's own encode adds Gumbel noise" in text
    _, text = run("import", found("vqgan-jax/checkpoint"), "--out", tmp_path / "other")
    assert "derived  pixels: [0, 1] in the network, as DALL-E mini uses it" in text


def test_licences_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = VQGAN(DDCONFIG, embed_dim=6, n_embed=20)
    write_mindalle(tmp_path / "1.3B", reference)
    done = import_checkpoint(tmp_path / "1.3B", tmp_path / "mine")
    assert "CC-BY-NC-SA" in done.converted.about["licence"]
    assert "CC-BY-NC-SA" in load_checkpoint(tmp_path / "mine").about["licence"]
    monkeypatch.setenv("DALLE_MODELS", str(tmp_path))
    assert "CC-BY-NC-SA" in run("models")[1]


def test_wrong_paths(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    assert f"{tmp_path / 'nowhere'} does not exist" in refusal(tmp_path / "nowhere", out)
    (tmp_path / "empty").mkdir()
    text = refusal(tmp_path / "empty", out)
    assert "is not a checkpoint of a known family" in text and "vqgan-jax: a folder with config.json and" in text
    assert "there is no family 'dalle3'; there are vqgan-jax, taming" in refusal(tmp_path, out, "--family", "dalle3")
    for family, said in (
        ("vqgan-jax", "has no flax_model.msgpack (the weights"),
        ("taming", "has no *.yaml with model.target taming.models.* (the configuration)"),
        ("mindalle", "has no config.yaml (the configuration"),
        ("llamagen", "has no vq_ds*.pt (the image tokenizer"),
        ("dalle-pytorch", "has no vae.pt or dalle.pt (the model"),
        ("rudalle", "has no vqgan.gumbelf8-sber*.ckpt (the image tokenizer"),
        ("min-dalle", "has no vqgan/detoker.pt (the image detokenizer"),
        ("openai-dvae", "has no encoder.pkl (a pickled dall_e.encoder.Encoder"),
    ):
        assert f"{tmp_path / 'empty'} {said}" in refusal(tmp_path / "empty", out, "--family", family)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    torch.save({"embeddings.weight": torch.zeros(3, 4)}, tmp_path / "bert" / "pytorch_model.bin")
    assert "is not a checkpoint of a known family" in refusal(tmp_path / "bert", out)
    both = tmp_path / "both"
    shutil.copytree(found("vqgan-jax/checkpoint"), both / "a")
    shutil.copytree(found("openai-dVAE"), both / "b")
    assert "is of several families: vqgan-jax" in refusal(both, out)
    assert run("import", both, "--out", tmp_path / "chosen", "--family", "openai-dvae")[0] == 0


def test_transformers_that_are_not_read(tmp_path: Path) -> None:
    """DALL-E mini's encoder-decoder, in its own layout and in min-dalle's."""
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "config.json").write_text('{"model_type": "dallebart", "d_model": 1024}')
    (tmp_path / "mini" / "flax_model.msgpack").write_bytes(b"\x80")
    assert "is for dallebart: DALL-E mini's encoder-decoder" in refusal(tmp_path / "mini", tmp_path / "x")
    (tmp_path / "pretrained" / "dalle_bart_mega").mkdir(parents=True)
    torch.save({"embed_tokens.weight": torch.zeros(2, 2)}, tmp_path / "pretrained" / "dalle_bart_mega" / "decoder.pt")
    text = refusal(tmp_path / "pretrained", tmp_path / "x")
    assert "pretrained has no vqgan/detoker.pt (the image detokenizer" in text


def test_a_missing_half(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    for path, missing in (
        ("vqgan-jax/checkpoint", "config.json"),
        ("vqgan-jax/checkpoint", "flax_model.msgpack"),
        ("taming/gumbel_f4_144", "checkpoints/last.ckpt"),
        ("openai-dVAE", "decoder.pkl"),
        ("openai-dVAE", "encoder.pkl"),
    ):
        folder = Path(shutil.copytree(found(path), tmp_path / "copy"))
        (folder / missing).unlink()
        text = refusal(folder, out)
        assert str(folder) in text and (missing.rpartition("/")[2] in text or "*.ckpt" in text), text
        shutil.rmtree(folder)
    write_mindalle(tmp_path / "1.3B", VQGAN(DDCONFIG, embed_dim=6, n_embed=20))
    (tmp_path / "1.3B" / "stage1_last.ckpt").unlink()
    assert "1.3B has no stage1_last.ckpt (stage 1, the image" in refusal(tmp_path / "1.3B", out)


@pytest.mark.parametrize("share", [0.0, 0.4, 0.999])
def test_half_a_download(share: float, tmp_path: Path) -> None:
    for path, cut in (
        ("vqgan-jax/checkpoint", "flax_model.msgpack"),
        ("vqgan-jax/checkpoint", "config.json"),
        ("taming/gumbel_f4_144", "checkpoints/last.ckpt"),
        ("openai-dVAE", "encoder.pkl"),
    ):
        folder = Path(shutil.copytree(found(path), tmp_path / "copy"))
        content = (folder / cut).read_bytes()
        (folder / cut).write_bytes(content[: int(share * (len(content) - 2))])
        assert str(folder / cut) in refusal(folder, tmp_path / "mine")
        shutil.rmtree(folder)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def test_a_malicious_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    vae = PlainDVAE(HPARAMS)
    torch.save({"hparams": HPARAMS, "weights": dict(vae.w), "more": Runs()}, tmp_path / "vae.pt")
    text = refusal(tmp_path / "vae.pt", tmp_path / "mine")
    assert f"{tmp_path / 'vae.pt'} asks for posix.system on loading" in text
    assert "posix.system" in refusal(tmp_path / "vae.pt", tmp_path / "mine", "--family", "dalle-pytorch")
    assert not (tmp_path / "ran").exists()


HPARAMS = {"image_size": 8, "num_layers": 1, "num_tokens": 12, "codebook_dim": 4, "hidden_dim": 6}


HPARAMS |= {"num_resnet_blocks": 0}


def test_contents_of_another_kind(tmp_path: Path) -> None:
    """Any wrong content in place of weights is reported in one line."""
    out = tmp_path / "mine"
    weights = dict(PlainDVAE(HPARAMS).w)
    for content, said in (
        ({"hparams": None, "weights": weights}, "has no parameters of its DiscreteVAE"),
        ({"hparams": HPARAMS, "weights": None}, "with weights"),
        ({"hparams": HPARAMS, "weights": {}}, "has no weights"),
        ({"hparams": HPARAMS | {"num_layers": "1"}, "weights": weights}, "num_layers must be int, not '1'"),
        ({"hparams": HPARAMS | {"num_layers": 10**9}, "weights": weights}, "num_layers is 1000000000"),
        (
            {"hparams": HPARAMS | {"num_tokens": 13}, "weights": weights},
            "codebook.weight has shape (12, 4); the others imply",
        ),
        ({"hparams": HPARAMS | {"experts": 13}, "weights": weights}, "a DiscreteVAE with experts"),
        ({"hparams": HPARAMS, "weights": weights | {"more": torch.zeros(1)}}, "vae.pt has more, which no"),
        (
            {"hparams": HPARAMS | {"normalization": 3}, "weights": weights},
            "is not a complete checkpoint of dalle-pytorch",
        ),
        ({"hparams": {}, "vae_params": HPARAMS, "weights": weights}, "lacks codebook.weight"),
        ({"hparams": {}, "vae_params": None, "vae_class_name": "X", "weights": weights}, "of class 'X'"),
    ):
        torch.save(content, tmp_path / "vae.pt")
        assert said in refusal(tmp_path / "vae.pt", out), said


def test_half_precision_stays_half_as_large(tmp_path: Path) -> None:
    vae = PlainDVAE(HPARAMS)
    sizes = {}
    for dtype in (torch.float32, torch.float16, torch.float64):
        path, out = tmp_path / "vae.pt", tmp_path / str(dtype)
        torch.save({"hparams": HPARAMS, "weights": {name: value.to(dtype) for name, value in vae.w.items()}}, path)
        import_checkpoint(path, out)
        sizes[dtype] = sum(t.numel() * t.itemsize for t in load_file(out / "image_tokenizer.safetensors").values())
        weight = load_checkpoint(out).image_tokenizer.state_dict()["codebook"]
        assert weight.dtype == torch.float32
        assert distance(weight, vae.w["codebook.weight"].to(dtype).float()) == 0
    assert sizes[torch.float32] == sizes[torch.float64] == 2 * sizes[torch.float16]
