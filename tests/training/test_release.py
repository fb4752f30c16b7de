"""Releases: the released model equals the trained one, and only parts that fit together are joined."""

import shutil
from pathlib import Path

import pytest
import torch

from dalle import DALLE, SamplingParams
from dalle.checkpoint import load_checkpoint, save_checkpoint
from dalle.errors import DataError
from dalle.files import CannotWriteError
from training.release import release


def test_a_release_draws_as_its_source_does(model_folder: Path, tmp_path: Path) -> None:
    release(model_folder, out=tmp_path / "copy", dtype="float32", about={"data": "none"})
    source, copy = DALLE.load(model_folder), DALLE.load(tmp_path / "copy")
    (first,), (second,) = source.generate("a red panda", seed=1), copy.generate("a red panda", seed=1)
    assert first.receipt.codes == second.receipt.codes
    assert load_checkpoint(tmp_path / "copy").about == {"licence": "none", "data": "none"}

    release(model_folder, out=tmp_path / "half", name="half", sampling=SamplingParams(top_p=0.5))
    half = load_checkpoint(tmp_path / "half")
    assert (half.name, half.sampling) == ("half", SamplingParams(top_p=0.5))
    size = sum(path.stat().st_size for path in (tmp_path / "half").glob("*.safetensors"))
    assert size < 0.6 * sum(path.stat().st_size for path in model_folder.glob("*.safetensors"))


def test_the_decoder_half_may_change_and_the_codes_may_not(model_folder: Path, tmp_path: Path) -> None:
    other = load_checkpoint(model_folder).image_tokenizer
    with torch.no_grad():
        next(other.decoder.parameters()).add_(0.1)
    save_checkpoint(tmp_path / "sharper", name="sharper", image_tokenizer=other)
    release(model_folder, out=tmp_path / "joined", image_tokenizer=tmp_path / "sharper")
    assert load_checkpoint(tmp_path / "joined").decoder is not None

    with torch.no_grad():
        next(other.encoder.parameters()).add_(0.1)
    save_checkpoint(tmp_path / "foreign", name="foreign", image_tokenizer=other)
    with pytest.raises(DataError, match="has other codes than"):
        release(model_folder, out=tmp_path / "never", image_tokenizer=tmp_path / "foreign")
    assert not (tmp_path / "never").exists()


def test_a_release_replaces_a_model_when_asked_and_never_its_source(model_folder: Path, tmp_path: Path) -> None:
    source, out = Path(shutil.copytree(model_folder, tmp_path / "source")), tmp_path / "out"
    release(source, out=out)
    with pytest.raises(CannotWriteError, match="out holds a model directory already; --overwrite replaces it"):
        release(source, out=out, name="second")
    release(source, out=out, name="second", overwrite=True)
    assert load_checkpoint(out).name == "second"
    (tmp_path / "link").symlink_to(source)
    before = load_checkpoint(source).digest
    for place in (source, tmp_path / "link", tmp_path / "out" / ".." / "source"):
        with pytest.raises(CannotWriteError, match="which is read"):
            release(source, out=place, overwrite=True)
        with pytest.raises(CannotWriteError, match="which is read"):
            release(model_folder, image_tokenizer=source, out=place, overwrite=True)
    assert load_checkpoint(source).digest == before
