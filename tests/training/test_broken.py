"""Broken pairs are left out and listed, and stop a program when they are too many."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dalle.checkpoint import load_image_tokenizer
from dalle.errors import ConfigError, DataError
from dalle.text.bpe import TextTokenizer
from tests.support.pairs import write_pairs
from tests.support.stages import vq_training, write_stage_1
from training.codes import write_token_shards
from training.pairs.shards import PairShards
from training.vq import VQTask

NUM_PAIRS = 120
BROKEN = 7


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    write_stage_1(folder)
    return folder


def _damaged(folder: Path, *broken: int, mute: int | None = None) -> Path:
    """A shard of pairs, some with a damaged picture and one with an empty caption."""
    (path,) = write_pairs(folder, "many", NUM_PAIRS)
    with tarfile.open(path) as archive:
        members = [(member, archive.extractfile(member)) for member in archive.getmembers()]
        contents = {member.name: file.read() for member, file in members if file is not None}
    for number in broken:
        contents[f"{number:05d}.webp"] = contents[f"{number:05d}.webp"][:20]
    if mute is not None:
        values = json.loads(contents[f"{mute:05d}.json"])
        contents[f"{mute:05d}.json"] = json.dumps(values | {"captions": ["a", " "]}).encode()
    with tarfile.open(path, "w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def _problems(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "problems.jsonl").read_text().splitlines()]


def _write(data: Path, path: Path, out: Path, max_broken: float) -> list[Path]:
    return write_token_shards(
        PairShards([path], max_broken=max_broken),
        load_image_tokenizer(data / "eyes"),
        TextTokenizer.load(data / "tokenizer.json"),
        out,
        num_captions=2,
        seed=0,
        device=torch.device("cpu"),
        max_broken=max_broken,
        overwrite=True,
    )


def test_codes_leave_broken_pairs_out(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = load_file(_write(data, write_pairs(tmp_path / "good", "many", NUM_PAIRS)[0], tmp_path / "whole", 0)[0])
    assert not (tmp_path / "whole/problems.jsonl").exists()
    path, out = _damaged(tmp_path, BROKEN, mute=50), tmp_path / "out"
    capsys.readouterr()
    rows = load_file(_write(data, path, out, 2 / NUM_PAIRS)[0])
    assert f"2 of {NUM_PAIRS} pairs are broken and left out, see {out / 'problems.jsonl'}" in capsys.readouterr().out
    kept = [number for number in range(NUM_PAIRS) if number not in (BROKEN, 50)]
    assert torch.equal(rows["codes"].long(), whole["codes"].long()[kept]) and len(rows["weights"]) == len(kept)
    mute, cut = _problems(out)
    assert mute["id"] == "many.tar: 00050" and "a caption is empty" in mute["problem"]
    assert cut["id"] == f"many.tar: picture {BROKEN}" and str(path) in cut["problem"]
    assert len(_write(data, path, out, 0.1)) == 1 and len(_problems(out)) == 2, "the list is of the last call"


def test_too_many_broken_pairs_stop_codes(data: Path, tmp_path: Path) -> None:
    path, out = _damaged(tmp_path, 3, BROKEN), tmp_path / "out"
    said = rf"2 of {NUM_PAIRS} pairs are broken; the limit \(max_broken\) is 0\.01: .*picture {BROKEN}.*; see {out}"
    with pytest.raises(DataError, match=said):
        _write(data, path, out, 0.01)
    assert len(_problems(out)) == 2 and not list(out.glob("*.safetensors"))
    with pytest.raises(DataError, match=r"max_broken is 1; it must be in \[0, 1\)"):
        _write(data, path, out, 1)


def test_stage_1_uses_the_next_picture(data: Path, tmp_path: Path) -> None:
    path = _damaged(tmp_path, BROKEN)

    def task(**changes: Any) -> VQTask:
        options: dict[str, Any] = {"train_shards": (str(path),), "flip": False, "loop": {"batch_size": NUM_PAIRS}}
        return VQTask(vq_training(data, run=str(tmp_path / "run"), **(options | changes)))

    first = task()
    images = first.batch(0)["images"]
    place = first.epochs.batch(0).tolist().index(BROKEN)
    assert torch.equal(images[place], first.pairs.images([BROKEN + 1])[0])
    (problem,) = _problems(tmp_path / "run")
    assert problem["id"] == f"many.tar: picture {BROKEN}"
    assert torch.equal(task().batch(0)["images"], images), "a batch stays a function of seed and step"
    task().batch(1)
    assert len(_problems(tmp_path / "run")) == 1, "however often it is met"
    with pytest.raises(DataError, match=r"1 of \d+ pairs are broken; the limit \(max_broken\) is 0: .*picture 7"):
        task(max_broken=0.0).batch(0)
    with pytest.raises(ConfigError, match="max_broken is -1"):
        task(max_broken=-1.0)


def test_two_members_of_one_name_are_no_pair(tmp_path: Path) -> None:
    path = _damaged(tmp_path)
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("00003.png")
        archive.addfile(member, io.BytesIO())
    pairs = PairShards([path])
    assert len(pairs) == NUM_PAIRS - 1
    (problem,) = pairs.problems
    assert problem.id == "many.tar: 00003" and "00003 has two pictures or two .json of the same name" in problem.problem
    with pytest.raises(DataError, match=rf"1 of {NUM_PAIRS} pairs are broken; the limit \(max_broken\) is 0: {path}"):
        PairShards([path], max_broken=0)
