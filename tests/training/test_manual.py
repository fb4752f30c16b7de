"""docs/training.md to the letter: its trial of all steps, on 64 pictures, in an empty folder."""

import importlib
import shlex
import sys
from pathlib import Path

import pytest

from dalle import DALLE
from dalle.images import load_image
from tests.support.recipes import write_pictures
from training.pairs.shards import PairShards

MANUAL = Path(__file__).parents[2] / "docs" / "training.md"


def commands_after(text: str) -> list[list[str]]:
    """The commands of the first indented block after a text of the manual, each as its words."""
    block = MANUAL.read_text(encoding="utf-8").partition(text)[2].lstrip("\n").partition("\n\n")[0]
    assert block and all(line.startswith("    python -m ") for line in block.splitlines())
    return [shlex.split(line)[2:] for line in block.splitlines()]


def test_the_trial_of_all_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(list(write_pictures(tmp_path / "PICTURES").glob("*.png"))) == 64
    commands = commands_after("To try all steps in a few minutes:")
    assert [name for name, *_ in commands] == [
        f"training.{name}" for name in "folder bpe vq codes codes decoder evaluate release".split()
    ]
    for name, *arguments in commands:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        code = None
        try:
            importlib.import_module(name).main()
        except SystemExit as end:
            code = end.code
        assert not code, (name, arguments, capsys.readouterr().err)
    assert 1 <= len(PairShards([tmp_path / "data/mine/val.tar"])) < 10
    assert "# mine, " in capsys.readouterr().out
    (picture,) = DALLE.load(tmp_path / "my-model").generate(["a red square"], seed=1)
    picture.image.save(tmp_path / "picture.png")
    assert load_image(tmp_path / "picture.png").size == (128, 128)
