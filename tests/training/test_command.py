"""A training program that cannot write reports it in one line and ends with exit code 2."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dalle.errors import DataError
from tests.support.pairs import write_pairs
from tests.support.stages import write_stage_1
from training import bpe, codes, folder, release
from training.command import mistakes_in_words
from training.emoji import program as emoji

NOWHERE = Path("/proc/nowhere/out")
"""No folder can be made there, not even by root."""
FULL = Path("/dev/full")
"""The kernel's own full disk."""


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        (NOWHERE.mkdir, f"error: {NOWHERE}: No such file or directory"),
        (lambda: FULL.write_text("a"), "error: No space left on device"),
        (lambda: save_file({"a": torch.zeros(1)}, NOWHERE), "error: Error while serializing: I/O error: No such file"),
        (lambda: (_ for _ in ()).throw(DataError("two\x1b[2J lines")), "error: two\\u001b[2J lines"),
    ],
    ids=["folder", "full disk", "safetensors", "mistake"],
)
def test_one_line_and_exit_code_2(fail: Callable[[], Any], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, mistakes_in_words():
        fail()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


@pytest.mark.parametrize("error", [OSError("no word of the system's"), RuntimeError("ours"), AssertionError("ours")])
def test_our_own_mistakes_keep_their_trace(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, mistakes_in_words():
        raise error
    assert caught.value is error


@pytest.mark.parametrize("name", ["bpe", "bpe, disk full", "codes", "release", "folder", "emoji"])
def test_programs_that_cannot_write(
    name: str,
    tmp_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main: Callable[[], None]
    arguments: list[Any]
    match name:
        case "bpe" | "bpe, disk full":
            main, arguments = bpe.main, write_pairs(tmp_path, "train", 2)
        case "codes":
            write_stage_1(tmp_path)
            inputs = ["--image-tokenizer", tmp_path / "eyes", "--text-tokenizer", tmp_path / "tokenizer.json"]
            main, arguments = codes.main, [tmp_path / "val.tar", *inputs]
        case "release":
            main, arguments = release.main, [model_folder]
        case "folder":
            Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
            (tmp_path / "a.txt").write_text("a")
            main, arguments = folder.main, [tmp_path]
        case _:
            main, arguments = emoji.main, ["--limit", 1]
    capsys.readouterr()
    monkeypatch.setattr(
        "sys.argv", ["program", *map(str, arguments), "--out", str(FULL if "full" in name else NOWHERE)]
    )
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if "error" in line]
    assert line.startswith("error: ")
    assert ("No space left on device" if "full" in name else "No such file or directory") in line
