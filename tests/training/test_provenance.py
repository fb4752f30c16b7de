"""Seed, version and digests in run folders and checkpoints; other data are refused."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from dalle.checkpoint import load_checkpoint
from dalle.errors import DataError
from dalle.version import __version__
from tests.support.pairs import write_pairs
from tests.support.stages import NUM_TRAIN, vq_training, write_stage_1
from training import provenance, vq
from training.provenance import check_stamp, code_version, data_digest


def test_a_run_says_where_it_comes_from_and_refuses_other_data(tmp_path: Path) -> None:
    write_stage_1(tmp_path)
    config = vq_training(tmp_path)
    assert vq.run(config)
    shards = sorted(tmp_path.glob("train-*.tar"))
    digest = data_digest(shards)
    with safe_open(tmp_path / "run" / "state.safetensors", framework="pt") as file:
        stamp = json.loads(bytes(file.get_tensor("stamp").tolist()))
    assert stamp == {
        "seed": "0",
        "code_version": code_version(),
        "train_pairs": str(NUM_TRAIN),
        "data_digest": digest,
    }
    inputs = tmp_path / "run" / "inputs.json"
    assert json.loads(inputs.read_text()) == {"train_pairs": NUM_TRAIN, "data_digest": digest}
    about = load_checkpoint(tmp_path / "run" / "model").about
    assert about["seed"] == "0" and about["data_digest"] == digest[:12] and about["code_version"] == code_version()

    write_pairs(tmp_path, "train", NUM_TRAIN, weights=(1.0,), per_shard=15)  # as many pairs, with other weights
    with pytest.raises(DataError, match="holds a run with data_digest = "):
        vq.run(config)
    inputs.unlink()  # a state of elsewhere is found by its stamp
    with pytest.raises(DataError, match=f"is of a run with data_digest = {digest}, not "):
        vq.run(config)


def test_another_version_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"was saved by version 0\.0\.1, and this is "):
        check_stamp({"code_version": "0.0.1"}, {"code_version": code_version(), "seed": "0"}, tmp_path)


def test_a_digest_is_of_contents(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(bytes(range(256)) * 2**13)
    two.write_bytes(one.read_bytes())
    assert data_digest([one]) == data_digest([two]) != data_digest([one, two])
    two.write_bytes(one.read_bytes()[:-1] + b"x")
    assert data_digest([one]) != data_digest([two]), "small files are read as a whole"


def test_without_a_checkout_there_is_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_version().startswith(__version__)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.code_version.__wrapped__() == __version__
