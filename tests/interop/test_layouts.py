"""Checkpoints as users have them: in other containers, renamed, wrapped by torch, beside unrelated files, and with the
configuration of another network."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

import dalle
from dalle.checkpoint.weights import LazyTensor
from dalle.errors import CheckpointError
from dalle.interop.convert import Imported, import_checkpoint
from dalle.interop.flax_msgpack import read_flax, write_flax
from tests.support.decoder_references import LlamaGen
from tests.support.golden import TOLERANCE, distance
from tests.support.interop_decoders import DATA

# Flax


def flax_text(text: str) -> bytes:
    return bytes([0xD9, len(text)]) + text.encode()


def chunked(value: Tensor, size: int, scratch: Path, *, shape: tuple[int, ...] | None = None) -> bytes:
    """The bytes of an array in chunks, as Flax writes one that is too large for a message."""
    runs = []
    for i, run in enumerate(value.flatten().split(size)):
        write_flax(scratch, {"x": LazyTensor.of(run)})
        runs.append(flax_text(str(i)) + scratch.read_bytes().removeprefix(b"\x81\xa1x"))
    axes = [flax_text(str(i)) + bytes([extent]) for i, extent in enumerate(value.shape if shape is None else shape)]
    return b"".join(
        [
            b"\x83" + flax_text("__msgpack_chunked_array__") + b"\xc3",
            flax_text("shape") + bytes([0x80 | len(axes)]) + b"".join(axes),
            flax_text("chunks") + bytes([0x80 | len(runs)]) + b"".join(runs),
        ]
    )


def test_flax_arrays_in_runs(tmp_path: Path) -> None:
    path, scratch = tmp_path / "flax_model.msgpack", tmp_path / "run"
    arrays = {"a/kernel": torch.randn(3, 5, 2), "a/half": torch.randn(7).bfloat16(), "embedding": torch.randn(4, 4)}
    whole = b"\x82\xa1a\x82\xa6kernel" + chunked(arrays["a/kernel"], 8, scratch)
    whole += b"\xa4half" + chunked(arrays["a/half"], 3, scratch)
    whole += b"\xa9embedding" + chunked(arrays["embedding"], 16, scratch)
    path.write_bytes(whole)
    found = read_flax(path)
    assert {*found} == {*arrays}
    for name, value in arrays.items():
        assert (found[name].shape, found[name].dtype) == (tuple(value.shape), value.dtype)
        assert torch.equal(found[name].load(), value)
    one = chunked(torch.zeros(4), 2, scratch)
    for damaged in (
        chunked(torch.zeros(4), 2, scratch, shape=(5,)),
        one.replace(b"\xc3", b"\xc2"),
        one.replace(b"shape", b"share"),
        one.replace(b"chunks", b"drinks"),
        one.replace(flax_text("1"), flax_text("2")),
        one[:-1],
        one.replace(b"\x82" + flax_text("0"), b"\x80" + flax_text("0")),
    ):
        path.write_bytes(b"\x81\xa1a" + damaged)
        with pytest.raises(CheckpointError, match=r"flax_model\.msgpack is not a msgpack file of Flax"):
            read_flax(path)


# LlamaGen

SIZES: dict[str, Any] = {"width": 48, "depth": 2, "heads": 6, "kv_heads": 2, "base": 10000.0}
ARGUMENTS = {"dim": 48, "n_layer": 2, "n_head": 6, "n_kv_head": 2, "block_size": 9, "vocab_size": 256, "num_classes": 5}


def llamagen() -> LlamaGen:
    return LlamaGen(num_classes=5, codes=(256, 3), **SIZES)


def same_as(peer: LlamaGen, path: Path, out: Path) -> Imported:
    done = import_checkpoint(path, out)
    model = dalle.load(out, device="cpu")
    labels, codes = torch.tensor([0, 4, 5]), torch.randint(256, (3, 9))
    assert distance(model.logits(labels, codes), peer.logits(labels, codes)) < TOLERANCE
    return done


def test_llamagen_as_its_scripts_push_it_to_the_hub(tmp_path: Path) -> None:
    """Each network is a folder with model.safetensors, and the arguments of ModelArgs in config.json."""
    peer = llamagen()
    tokenizer = torch.load(DATA / "LlamaGen/vq_ds.pt", weights_only=True)["model"]
    described = {"codebook_size": 256, "codebook_embed_dim": 8, "codebook_l2_norm": True}
    for name, weights, values in (("gpt", peer.w, ARGUMENTS), ("vq", tokenizer, described)):
        (tmp_path / "theirs" / name).mkdir(parents=True)
        save_file(
            {key: value.contiguous() for key, value in weights.items()}, tmp_path / f"theirs/{name}/model.safetensors"
        )
        (tmp_path / f"theirs/{name}/config.json").write_text(json.dumps(values))
    for i, path in enumerate(("theirs", "theirs/gpt", "theirs/gpt/model.safetensors")):
        same_as(peer, tmp_path / path, tmp_path / str(i))
    done = import_checkpoint(tmp_path / "theirs/vq", tmp_path / "vq")
    assert "codes are compared at unit length, as config.json says" in done.converted.derived
    content = (tmp_path / "theirs/gpt/model.safetensors").read_bytes()
    (tmp_path / "theirs/gpt/model.safetensors").write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a safetensors file, or an incomplete one"):
        import_checkpoint(tmp_path / "theirs", tmp_path / "cut")


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_llamagen_wrapped_renamed_and_among_strangers(wrapper: str, tmp_path: Path) -> None:
    """The path is the decoder's file; beside it lie a file that cannot be read and an image tokenizer."""
    theirs, peer = tmp_path / "theirs", llamagen()
    theirs.mkdir()
    shutil.copy(DATA / "LlamaGen/vq_ds.pt", theirs / "tokenizer.ckpt")
    torch.save({"model": {wrapper + name: value for name, value in peer.w.items()}}, theirs / "mine.bin")
    (theirs / "mine_config.json").write_text(json.dumps(ARGUMENTS))
    torch.save(torch.nn.Linear(2, 2), theirs / "another.pt")  # a class that is rejected
    (theirs / "picture.pt").write_bytes(b"\x89PNG\r\n")
    same_as(peer, theirs / "mine.bin", tmp_path / "ours")
    content = (theirs / "tokenizer.ckpt").read_bytes()
    (theirs / "tokenizer.ckpt").write_bytes(content[:-1000])
    with pytest.raises(CheckpointError, match=r"tokenizer\.ckpt is truncated"):
        import_checkpoint(theirs / "mine.bin", tmp_path / "cut")
    (theirs / "tokenizer.ckpt").unlink()
    with pytest.raises(
        CheckpointError, match=r"needs is not beside it, unless .* cannot be read: .*another\.pt asks for"
    ):
        import_checkpoint(theirs / "mine.bin", tmp_path / "alone")


def test_llamagen_says_how_many_heads_it_supposes(tmp_path: Path) -> None:
    peer = LlamaGen(num_classes=3, codes=(256, 2), width=768, depth=1, heads=12, kv_heads=12, base=10000.0)
    torch.save(peer.w, tmp_path / "consolidated.pth")
    shutil.copy(DATA / "LlamaGen/vq_ds.pt", tmp_path)
    done = import_checkpoint(tmp_path, tmp_path / "ours")
    assert "heads: 12, as in the project's models with 768 channels" in done.converted.derived


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 100}, r"config\.json says vocab_size 100; the weights of .*c2i\.pt have 256"),
        ({"n_kv_head": 6}, r"config\.json says n_kv_head 6; the weights of .*c2i\.pt have 2"),
        ({"num_classes": 7}, r"config\.json says num_classes 7; the weights of .*c2i\.pt have 5"),
        ({"cls_token_num": 2}, r"config\.json says cls_token_num 2; the weights of .*c2i\.pt have 1"),
    ],
)
def test_llamagen_described_as_another(changes: dict[str, int], said: str, tmp_path: Path) -> None:
    torch.save({"model": llamagen().w}, tmp_path / "c2i.pt")
    shutil.copy(DATA / "LlamaGen/vq_ds.pt", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(ARGUMENTS | changes))
    with pytest.raises(CheckpointError, match=said):
        import_checkpoint(tmp_path, tmp_path / "ours")


@pytest.mark.parametrize("name", ["vq_ds", "vq_ds.pt.1"])
def test_llamagen_under_any_name(name: str, tmp_path: Path) -> None:
    shutil.copy(DATA / "LlamaGen/vq_ds.pt", tmp_path / name)
    assert import_checkpoint(tmp_path / name, tmp_path / "ours").family == "llamagen"


def test_strangers_beside_a_file_are_passed_over(tmp_path: Path) -> None:
    peer = llamagen()
    torch.save({"model": peer.w}, tmp_path / "mine.pt")
    (tmp_path / "config.json").write_text(json.dumps(ARGUMENTS))
    shutil.copy(DATA / "LlamaGen/vq_ds.pt", tmp_path)
    (tmp_path / "pickle.bin").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "text.bin").write_text("This is no checkpoint")
    with zipfile.ZipFile(tmp_path / "zip.bin", "w") as archive:
        archive.writestr("a.txt", "nor this")
    save_file({"x": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / "eight_bits.safetensors")
    same_as(peer, tmp_path / "mine.pt", tmp_path / "ours")


def test_llamagen_of_two_shapes(tmp_path: Path) -> None:
    content = torch.load(DATA / "LlamaGen/vq_ds.pt", weights_only=True)
    name = "encoder.conv_blocks.0.res.0.conv1.weight"
    content["model"][name] = torch.zeros(96, *content["model"][name].shape[1:])
    torch.save(content, tmp_path / "vq.pt")
    with pytest.raises(CheckpointError, match=r"with encoder_ch_mult other than decoder_ch_mult: .* \[96, 32\]"):
        import_checkpoint(tmp_path, tmp_path / "ours")


# minDALL-E


def mindalle(folder: Path, change: Any) -> Path:
    """The golden checkpoint with its configuration changed."""
    shutil.copytree(DATA / "minDALL-E/checkpoint", folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_mindalle_without_the_settings_that_its_weights_give(tmp_path: Path) -> None:
    """A configuration may leave a stage out, since the project merges defaults; merges may have Windows line ends."""

    def change(config: dict[str, Any]) -> None:
        del config["stage1"]
        config["stage2"] = {"hparams": {"n_heads": 4}}

    theirs = mindalle(tmp_path / "theirs", change)
    merges = theirs / "tokenizer/bpe-16k-merges.txt"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    import_checkpoint(theirs, tmp_path / "ours")
    import_checkpoint(DATA / "minDALL-E/checkpoint", tmp_path / "plain")
    ours, plain = (dalle.load(tmp_path / name, device="cpu") for name in ("ours", "plain"))
    assert ours.decoder.config == plain.decoder.config
    assert ours.text_tokenizer is not None and plain.text_tokenizer is not None
    assert ours.text_tokenizer.content == plain.text_tokenizer.content


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        (
            "stage2",
            {"vocab_size_img": 9},
            r"config\.yaml says vocab_size_img 9; the weights of .*stage2_last\.ckpt have 256",
        ),
        ("hparams", {"n_layers": 42}, "says n_layers 42; the weights of .* have 3"),
        ("hparams", {"mlp_bias": False}, "says mlp_bias False; the weights of .* have True"),
        ("dataset", {"context_length": 64}, "text length"),
        ("stage2", {"type": "igpt", "use_cls_cond": True}, "has a stage2 of type igpt, which is not read"),
    ],
)
def test_mindalle_described_as_another(stage: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        (config["stage2"]["hparams"] if stage == "hparams" else config[stage]).update(changes)

    with pytest.raises(CheckpointError, match=said):
        import_checkpoint(mindalle(tmp_path / "theirs", change), tmp_path / "ours")


def test_what_mindalle_is_fine_tuned_to_is_refused_by_name(tmp_path: Path) -> None:
    """minDALL-E's class-conditional ImageGPT: one file of Lightning, and a configuration of any name."""
    (tmp_path / "transfer-imagenet-clscond-gen.yaml").write_text(
        yaml.safe_dump({"stage1": {"type": "vqgan"}, "stage2": {"type": "igpt", "use_cls_cond": True}})
    )
    torch.save({"state_dict": {"stage2.sos.weight": torch.zeros(3, 4)}}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"clscond-gen\.yaml has a stage2 of type igpt, which is not read"):
        import_checkpoint(tmp_path, tmp_path / "ours")
