"""Atomic writes: a file or folder is complete under its name, or what was there before stays."""

import os
from pathlib import Path

import pytest

from dalle.files import atomic_file, atomic_folder, atomic_write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_replaces_another(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"first", "그 다음"):
        atomic_write(path, content)
    assert path.read_text(encoding="utf-8") == "그 다음"
    with atomic_file(path, part=tmp_path / "fixed", fsync=True) as part:
        part.write_bytes(b"third")
        assert names(tmp_path) == ["file", "fixed"]
    assert path.read_bytes() == b"third" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def fail(unfinished: Path) -> None:
        if unfinished.is_dir():
            unfinished /= "half"
        else:
            assert unfinished.name == f"file.{os.getpid()}.part", "other processes have other names"
        unfinished.write_bytes(b"half")
        raise error

    with pytest.raises(type(error)), atomic_file(path) as part:
        fail(part)
    with pytest.raises(type(error)), atomic_folder(tmp_path / "folder") as folder:
        fail(folder)
    assert path.read_bytes() == b"before" and names(tmp_path) == ["file"]


def test_a_name_that_cannot_be_taken_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        atomic_write(tmp_path / "folder", b"a file")
    assert names(tmp_path) == ["folder"]


def test_a_folder_replaces_another(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with atomic_folder(tmp_path / "deep" / "folder") as folder:
            (folder / name).touch()
            assert not (tmp_path / "deep" / "folder" / name).exists()
    assert names(tmp_path / "deep") == ["folder"]
    assert names(tmp_path / "deep" / "folder") == ["second"]


def test_a_folder_that_must_not_be_replaced_stays(tmp_path: Path) -> None:
    folder = tmp_path / "folder"

    def write_while_another_folder_appears() -> None:
        with atomic_folder(folder, replace=False) as files:
            (files / "ours").touch()
            folder.mkdir()
            (folder / "theirs").touch()

    with pytest.raises(OSError, match="folder"):
        write_while_another_folder_appears()
    assert names(tmp_path) == ["folder"] and names(folder) == ["theirs"]


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    atomic_write(Path(os.devnull), b"anything")
    assert Path(os.devnull).is_char_device()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    atomic_write(pipe, b"content")
    assert os.read(reader, 100) == b"content" and names(tmp_path) == ["pipe"]
    os.close(reader)
