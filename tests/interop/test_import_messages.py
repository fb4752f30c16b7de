"""Messages of `dalle import`: each names the input, the file and the weight at fault."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from tests.support.golden import decoder_of, found
from tests.support.interop_command import run
from tests.support.interop_decoders import DATA
from tests.support.interop_images import ddconfig, discrete_vae, write_taming
from tests.support.references import VQGAN

VAE = discrete_vae()
TAMING = VQGAN(ddconfig(ch_mult=[1, 1]), embed_dim=6, n_embed=20)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def refusal(path: Path, folder: Path, name: str = "ours") -> str:
    """The error of `dalle import`, one line; nothing is written, and the output is not named."""
    before = sorted(folder.iterdir())
    code, text = run("import", path, "--out", folder / name)
    assert code == 2 and text.startswith("error: ") and text.count("\n") == 1, text
    assert str(folder / name) not in text and sorted(folder.iterdir()) == before
    return text


def damaged(value: Any) -> Callable[[Tensor], Tensor]:
    def change(weight: Tensor) -> Tensor:
        weight = weight.clone()
        weight.view(-1)[-1] = value
        return weight

    return change


UNFIT = "numbers that are NaN or infinite"


@pytest.mark.parametrize("name", ["encoder.0.0.weight", "codebook.weight", "decoder.0.bias"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (damaged(float("nan")), UNFIT),
        (damaged(float("-inf")), UNFIT),
        (lambda weight: damaged(float("inf"))(weight.half()), UNFIT),
        (lambda weight: weight.double() + 1e300, UNFIT),
        (lambda weight: weight.to(torch.int32), "numbers of type int32; weights are floating-point"),
        (lambda weight: weight > 0, "numbers of type bool"),
        (lambda weight: weight.to(torch.complex64), "numbers of type complex64"),
    ],
)
def test_weights_that_are_no_finite_numbers(
    name: str, change: Callable[[Tensor], Tensor], said: str, tmp_path: Path
) -> None:
    weights = dict(VAE.w)
    weights[name] = change(weights[name])
    torch.save({"hparams": VAE.h, "weights": weights}, tmp_path / "vae.pt")
    assert f"{tmp_path / 'vae.pt'}: {name} has {said}" in refusal(tmp_path / "vae.pt", tmp_path)


def changed_decoder(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> Path:
    content = torch.load(DATA / "DALLE-pytorch/dalle_full_shift.pt", weights_only=True)
    content["weights"][name] = change(content["weights"][name])
    torch.save(content, folder / "dalle.pt")
    return folder / "dalle.pt"


QKV = "transformer.layers.layers.0.0.fn.fn.fn.fn.fn.to_qkv.weight"


@pytest.mark.parametrize("name", [QKV, "text_emb.weight", "to_logits.1.bias", "to_logits.0.weight"])
def test_every_weight_of_a_decoder_is_checked(name: str, tmp_path: Path) -> None:
    path = changed_decoder(tmp_path, name, damaged(float("nan")))
    assert f"{path}: {name} has {UNFIT}" in refusal(path, tmp_path)
    path = changed_decoder(tmp_path, name, lambda weight: weight.long())
    assert f"{path}: {name} has numbers of type int64" in refusal(path, tmp_path)


def test_a_model_that_cannot_draw_is_not_left_behind(tmp_path: Path) -> None:
    path = changed_decoder(tmp_path, "to_logits.1.weight", lambda weight: torch.full_like(weight, 3e38))
    assert f"{path} cannot draw: the decoder's logits are not finite" in refusal(path, tmp_path)
    weights = dict(VAE.w)
    signs = {name: torch.randn_like(value).sign() for name, value in weights.items() if name.startswith("decoder.")}
    weights |= {name: 3e38 * sign for name, sign in signs.items()}
    torch.save({"hparams": VAE.h, "weights": weights}, tmp_path / "vae.pt")
    text = refusal(tmp_path / "vae.pt", tmp_path)
    assert f"{tmp_path / 'vae.pt'} cannot draw: the image tokenizer computes numbers that are not finite" in text


def test_complex_numbers_in_safetensors(tmp_path: Path) -> None:
    content = torch.load(DATA / "LlamaGen/vq_ds.pt", weights_only=True)
    weights = {name: value.contiguous() for name, value in content.get("model", content).items()}
    weights["quant_conv.bias"] = weights["quant_conv.bias"].to(torch.complex64)
    save_file(weights, tmp_path / "vq_ds.safetensors")
    path = tmp_path / "vq_ds.safetensors"
    assert f"{path}: quant_conv.bias has numbers of type C64" in refusal(path, tmp_path)


def transposed(weight: Tensor) -> Tensor:
    return weight.transpose(0, 1).contiguous()


@pytest.mark.parametrize(
    "name",
    [
        *("encoder.conv_in.weight", "encoder.conv_out.weight", "decoder.conv_in.weight", "decoder.conv_out.weight"),
        *("quant_conv.weight", "quantize.embedding.weight"),
    ],
)
def test_a_transposed_weight_of_a_vqgan(name: str, tmp_path: Path) -> None:
    write_taming(tmp_path / "run", TAMING)
    path = tmp_path / "run/checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    weight = content["state_dict"][name] = transposed(content["state_dict"][name])
    torch.save(content, path)
    assert f"{path}: {name} has shape {tuple(weight.shape)}; " in refusal(tmp_path / "run", tmp_path)


@pytest.mark.parametrize("name", ["text_emb.weight", "image_emb.weight", "to_logits.1.weight", QKV])
def test_a_transposed_weight_of_a_decoder(name: str, tmp_path: Path) -> None:
    path = changed_decoder(tmp_path, name, transposed)
    text = refusal(path, tmp_path)
    assert str(path) in text and name in text


@pytest.mark.parametrize(
    "name", [f"{name}.weight" for name in ("tok_emb_txt", "tok_emb_img", "pos_emb_txt", "pos_emb_img", "head_img")]
)
def test_a_transposed_weight_of_mindalle(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "minDALL-E/checkpoint", tmp_path / "theirs"))
    content = torch.load(folder / "stage2_last.ckpt", weights_only=True)
    content["state_dict"][name] = transposed(content["state_dict"][name])
    torch.save(content, folder / "stage2_last.ckpt")
    assert f"{folder / 'stage2_last.ckpt'}: {name} has shape" in refusal(folder, tmp_path)


def test_a_configuration_that_is_missing_or_damaged(tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    write_taming(run_folder, TAMING)
    checkpoint = run_folder / "checkpoints/last.ckpt"
    (config,) = (run_folder / "configs").glob("*-project.yaml")
    for damage, said in (
        ("model:\n  target: [taming\n  params: {", "cannot be read: line 3: expected ',' or ']'"),
        (POINTER, "is a pointer of Git LFS"),
        (None, ""),
    ):
        config.unlink() if damage is None else config.write_text(damage)
        for path in (run_folder, checkpoint):
            text = refusal(path, tmp_path)
            assert str(checkpoint) in text and "is missing" in text and "known family" not in text
            assert damage is None or f"{config} {said}" in text


def test_a_tokenizer_of_another_size(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "minDALL-E/checkpoint", tmp_path / "theirs"))
    vocabulary = folder / "tokenizer/bpe-16k-vocab.json"
    entries = json.loads(vocabulary.read_text())
    vocabulary.write_text(json.dumps(entries | {f"[new{i}]": len(entries) + i for i in range(50)}))
    text = refusal(folder, tmp_path)
    assert f"{vocabulary} is of another model: its text vocabulary is 402, that of the decoder in" in text
    assert f"{folder / 'stage2_last.ckpt'} is 352" in text
    shutil.copytree(DATA / "ru-dalle", tmp_path / "ru")
    shutil.copy(DATA / "DALLE-pytorch/tokenizers/yttm.model", tmp_path / "ru/tokenizer/bpe.model")
    text = refusal(tmp_path / "ru/Malevich_v3/pytorch_model_v3.bin", tmp_path)
    assert f"{tmp_path / 'ru/tokenizer/bpe.model'} is of another model: its text vocabulary is 300" in text


def test_an_image_tokenizer_of_another_size(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "LlamaGen", tmp_path / "theirs"))
    content = torch.load(folder / "vq_ds.pt", weights_only=True)
    weights = content.get("model", content)
    weights["quantize.embedding.weight"] = weights["quantize.embedding.weight"].repeat(2, 1)
    torch.save(content, folder / "vq_ds.pt")
    text = refusal(folder / "c2i_stage.pt", tmp_path)
    assert f"{folder / 'vq_ds.pt'} is of another model: its codebook size is 512" in text


def test_a_stage_that_is_given_twice(tmp_path: Path) -> None:
    for stage, other in (("stage1_last.ckpt", "stage2_last.ckpt"), ("stage2_last.ckpt", "stage1_last.ckpt")):
        folder = Path(shutil.copytree(DATA / "minDALL-E/checkpoint", tmp_path / stage))
        shutil.copy(folder / stage, folder / other)
        assert f"{folder / other} has the weights of stage {stage[5]}" in refusal(folder, tmp_path)


def test_pointers_of_git_lfs(tmp_path: Path) -> None:
    (tmp_path / "pt").mkdir()
    mindalle = Path(shutil.copytree(DATA / "minDALL-E/checkpoint", tmp_path / "mindalle"))
    flax = Path(shutil.copytree(found("vqgan-jax/checkpoint"), tmp_path / "flax"))
    with_text = decoder_of(tmp_path / "text", 815)
    (tmp_path / "hub").mkdir()
    for pointer, path in (
        (tmp_path / "pt/vae.pt", tmp_path / "pt"),
        (tmp_path / "pt/vae.pt", tmp_path / "pt/vae.pt"),
        (mindalle / "stage2_last.ckpt", mindalle),
        (flax / "flax_model.msgpack", flax),
        (tmp_path / "hub/model.safetensors", tmp_path / "hub"),
        (with_text / "bpe_simple_vocab.txt", with_text),
    ):
        pointer.write_text(POINTER)
        assert f"{pointer} is a pointer of Git LFS instead of the file itself" in refusal(path, tmp_path)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/null"), Path("/dev/zero"), tmp_path / "pipe"):
        assert f"{path} is a device, a pipe or a socket" in refusal(path, tmp_path)
    folder = Path(shutil.copytree(DATA / "minDALL-E/checkpoint", tmp_path / "theirs"))
    stage = folder / "stage2_last.ckpt"
    for target in ("/dev/zero", "nowhere", None):
        stage.unlink()
        if target is None:
            os.mkfifo(stage)
        else:
            stage.symlink_to(target)
        assert f"{stage} is not a file, but a device, a pipe or a link to nothing" in refusal(folder, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_files_that_may_not_be_read(tmp_path: Path) -> None:
    torch.save({"hparams": VAE.h, "weights": dict(VAE.w)}, tmp_path / "vae.pt")
    (tmp_path / "vae.pt").chmod(0)
    assert f"{tmp_path / 'vae.pt'} cannot be read: Permission denied" in refusal(tmp_path / "vae.pt", tmp_path)


def test_names_with_a_line_break(tmp_path: Path) -> None:
    folder = tmp_path / "two\nlines"
    write_taming(folder, TAMING)
    code, text = run("import", folder, "--out", tmp_path / "ours")
    assert code == 0 and "two\\nlines/checkpoints/last.ckpt" in text
    (config,) = (folder / "configs").glob("*-project.yaml")
    config.write_text(yaml.safe_dump({"model": {"target": "taming.models.vqgan.VQModel"}}))
    code, text = run("import", folder, "--out", tmp_path / "theirs")
    assert code == 2 and text.count("\n") == 1 and "two\\nlines" in text
    code, text = run("import", DATA / "DALLE-pytorch/vae.pt", "--out", tmp_path / "new\nname")
    assert code == 2 and "the model's name is 'new\\nname'" in text and not (tmp_path / "new\nname").exists()


@pytest.mark.parametrize("num_lines", [0, 1, -10])
def test_merges_that_end_early_are_refused(num_lines: int, tmp_path: Path) -> None:
    """They would tokenize without an error, to other ids."""
    theirs = tmp_path / "theirs"
    shutil.copytree(found("minDALL-E/checkpoint"), theirs)
    merges = theirs / "tokenizer/bpe-16k-merges.txt"
    merges.write_text("".join(merges.read_text().splitlines(keepends=True)[:num_lines]))
    said = refusal(theirs, tmp_path)
    assert f"{merges} has no merge for '14</w>', the last of " in said and "is it complete?" in said
