"""Where `dalle import` and `dalle export` write: nothing that they have not written themselves is replaced."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from dalle.checkpoint import load_checkpoint
from tests.support.golden import found
from tests.support.interop_command import run
from tests.support.interop_images import discrete_vae

VAE = discrete_vae()


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    torch.save({"hparams": VAE.h, "weights": dict(VAE.w)}, tmp_path / "vae.pt")
    return tmp_path / "vae.pt"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(path: Path, out: Path, *options: str) -> str:
    """The error of `dalle import`; nothing beside or in the output has changed."""
    before = content(out.parent)
    code, text = run("import", path, "--out", out, *options)
    assert code == 2 and text.startswith("error: ") and text.count("\n") == 1, text
    assert content(out.parent) == before
    return text


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_what_another_program_wrote_is_never_replaced(theirs: Path, tmp_path: Path, options: list[str]) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (hub / name).write_text('{"model_type": "t5"}')
    assert "hub is not a model directory to be replaced: its config.json is of another" in refusal(
        theirs, hub, *options
    )
    (tmp_path / "file").write_text("mine")
    assert "file is not a model directory to be replaced: it is a file" in refusal(theirs, tmp_path / "file", *options)
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is a device or a pipe: give another place" in refusal(theirs, tmp_path / "pipe", *options)
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("dear")
    assert "it has no config.json, but letter.txt" in refusal(theirs, tmp_path / "letters", *options)


def test_a_model_is_replaced_when_asked(theirs: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    assert run("import", theirs, "--out", out)[0] == 0, "an empty folder is no obstacle"
    before = load_checkpoint(out).digest
    assert "mine holds a model directory already; --overwrite replaces it" in refusal(theirs, out)
    torch.save({"hparams": VAE.h, "weights": dict(VAE.w) | {"codebook.weight": torch.zeros(1)}}, tmp_path / "bad.pt")
    assert "bad.pt" in refusal(tmp_path / "bad.pt", out, "--overwrite")
    assert load_checkpoint(out).digest == before, "what was there stays"
    assert run("import", found("DALLE-pytorch/vae.pt"), "--out", out, "--overwrite")[0] == 0
    assert load_checkpoint(out).digest != before
    (out / "notes.txt").write_text("mine")
    assert "it has notes.txt, which its config.json does not list" in refusal(theirs, out, "--overwrite")


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_the_source_is_never_replaced(tmp_path: Path, options: list[str]) -> None:
    source = tmp_path / "all" / "source"
    shutil.copytree(found("vqgan-jax/checkpoint"), source)
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "other").mkdir()
    for out in (source, tmp_path / "link", tmp_path / "other" / ".." / "all" / "source", tmp_path / "all"):
        for path in (source, source / "flax_model.msgpack"):
            text = refusal(path, out, *options)
            assert "which is read: give another place" in text
    assert run("import", source, "--out", source / "ours")[0] == 0
    assert "is inside" in refusal(source, source / "ours", "--overwrite")


def test_an_export_replaces_nothing(theirs: Path, tmp_path: Path) -> None:
    assert run("import", theirs, "--out", tmp_path / "mine")[0] == 0
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").touch()
    before = content(tmp_path)
    for out in ("mine", "link", "file", "../" + tmp_path.name + "/mine"):
        code, text = run("export", tmp_path / "mine", "--out", tmp_path / out)
        assert code == 2 and "exists already: an export overwrites nothing" in text
    assert content(tmp_path) == before
