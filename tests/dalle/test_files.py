"""Atomic writes: a file or folder is complete under its name, or what was there before stays."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dalle.files import CannotWriteError, atomic_file, atomic_folder, atomic_write, check_claimed, check_output


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
        with atomic_folder(tmp_path / "deep" / "folder", check=lambda _: None) as folder:
            (folder / name).touch()
            assert not (tmp_path / "deep" / "folder" / name).exists()
    assert names(tmp_path / "deep") == ["folder"]
    assert names(tmp_path / "deep" / "folder") == ["second"]


def test_a_folder_that_must_not_be_replaced_stays(tmp_path: Path) -> None:
    folder = tmp_path / "folder"

    def write_while_another_folder_appears() -> None:
        with atomic_folder(folder) as files:
            (files / "ours").touch()
            folder.mkdir()
            (folder / "theirs").touch()

    with pytest.raises(OSError, match="folder"):
        write_while_another_folder_appears()
    assert names(tmp_path) == ["folder"] and names(folder) == ["theirs"]


def test_a_folder_that_appears_while_another_is_written_is_checked(tmp_path: Path) -> None:
    folder = tmp_path / "folder"

    def refuse(moved: Path) -> None:
        assert names(moved) == ["theirs"] and not folder.exists()
        raise CannotWriteError("it is theirs")

    def write() -> None:
        with atomic_folder(folder, check=refuse) as files:
            (files / "ours").touch()
            folder.mkdir()
            (folder / "theirs").touch()

    with pytest.raises(CannotWriteError, match="it is theirs"):
        write()
    assert names(tmp_path) == ["folder"] and names(folder) == ["theirs"]


def test_a_link_stays_and_its_folder_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "file").touch()
    assert (tmp_path / "link").is_symlink() and names(tmp_path / "real") == ["file"]


WRITER = """
import sys, time
from pathlib import Path
from dalle.files import atomic_folder

number, folder = sys.argv[1:]
for _ in range(60):
    with atomic_folder(Path(folder), check=lambda _: None) as files:
        for i in range(5):
            (files / f"{i}").write_text(number)
"""


def test_two_programs_that_write_one_folder_never_mix(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, number, folder]) for number in "12"]
    seen: set[str] = set()
    while any(writer.poll() is None for writer in writers):
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # between two versions
            continue
        with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
            contents = []
            for i in range(5):
                with open(os.open(f"{i}", os.O_RDONLY, dir_fd=descriptor)) as file:
                    contents.append(file.read())
            assert len(set(contents)) == 1, contents
            seen |= {*contents}
        os.close(descriptor)
    assert [writer.wait() for writer in writers].count(0) >= 1 and seen <= {"1", "2"} and seen
    assert names(folder) == ["0", "1", "2", "3", "4"]


def test_what_is_read_is_never_replaced_by_any_spelling(tmp_path: Path) -> None:
    (tmp_path / "a" / "source" / "inside").mkdir(parents=True)
    (tmp_path / "a" / "source" / "inside" / "file").touch()
    source = tmp_path / "a" / "source"
    (tmp_path / "link").symlink_to(source)
    for out, relation in (
        (source, "is"),
        (tmp_path / "a" / ".." / "a" / "source", "is"),
        (tmp_path / "link", "is"),
        (tmp_path / "a", "contains"),
        (source / "inside", "is inside"),
        (tmp_path / "link" / "inside", "is inside"),
    ):
        for given in (source, tmp_path / "link"):
            with pytest.raises(CannotWriteError, match=f"{out} {relation} {given}, which is read"):
                check_output(out, "a folder", lambda _: None, overwrite=True, sources=[given])
    check_output(source / "new", "a folder", lambda _: "theirs", overwrite=False, sources=[source])
    check_output(tmp_path / "link", "a folder", lambda _: None, overwrite=True)


def test_a_folder_of_several_files_is_recognised_by_one(tmp_path: Path) -> None:
    check_claimed(tmp_path, names(tmp_path), "ours.json", ["table", "*.tar"])
    (tmp_path / "notes.txt").touch()
    check_claimed(tmp_path, names(tmp_path), "ours.json", ["table", "*.tar"])
    (tmp_path / "1.tar").touch()
    with pytest.raises(CannotWriteError, match=r"holds 1.tar, which would be replaced; without ours.json"):
        check_claimed(tmp_path, names(tmp_path), "ours.json", ["table", "*.tar"])
    (tmp_path / "ours.json").touch()
    check_claimed(tmp_path, names(tmp_path), "ours.json", ["table", "*.tar"])


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    atomic_write(Path(os.devnull), b"anything")
    assert Path(os.devnull).is_char_device()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    atomic_write(pipe, b"content")
    assert os.read(reader, 100) == b"content" and names(tmp_path) == ["pipe"]
    os.close(reader)


def test_a_folder_takes_the_place_of_folders_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "file", "link"):
        with pytest.raises(NotADirectoryError), atomic_folder(tmp_path / name, check=lambda _: None):
            pytest.fail("the body must not run")
    assert (tmp_path / "pipe").is_fifo() and names(tmp_path) == ["file", "link", "pipe"]


def test_the_working_directory_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for folder in (Path(), Path("..")):
        with pytest.raises(OSError, match="this program runs in it"), atomic_folder(folder, check=lambda _: None):
            pytest.fail("the body must not run")
    with atomic_folder(Path("another")):
        pass
    assert names(tmp_path / "here" / "below") == ["another"]
