"""ImageStore: expiry, size, and other files in its folder."""

import asyncio
import os
import re
import time
from pathlib import Path

import httpx
import pytest

from dalle import DALLE
from dalle.errors import ConfigError
from serving.ingress import store as module
from serving.ingress.store import ImageStore
from tests.support.service import PROMPT, post, service

LARGE = 10_000


def test_a_picture_comes_back_by_its_name_alone_until_its_time_is_over(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "pictures", seconds=60, max_bytes=LARGE)
    name = store.put(b"picture", "webp")
    picture, seconds = store.get(name) or (b"", 0)
    assert picture == b"picture" and 50 < seconds <= 60
    for bad in ("", name[1:], f"../pictures/{name}", f".{name}.part", name.upper()):
        assert store.get(bad) is None
    os.utime(tmp_path / "pictures" / name, (0, 0))
    assert store.get(name) is None


def test_the_oldest_go_when_there_is_no_room(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, seconds=60, max_bytes=1000)
    names = []
    for age in range(30, 0, -1):
        names.append(store.put(b"x" * 100, "png"))
        os.utime(tmp_path / names[-1], (time.time() - age,) * 2)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000
    kept = [store.get(name) is not None for name in names]
    assert kept == sorted(kept) and sum(kept) >= 9, "the newest, and hardly fewer than there is room for"


def test_another_store_s_pictures_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.0)
    one, other = (ImageStore(tmp_path, seconds=60, max_bytes=1000) for _ in range(2))
    for _ in range(20):
        newest = one.put(b"x" * 100, "png"), other.put(b"x" * 100, "png")
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000
    assert one.get(newest[1]) and other.get(newest[0])


def test_what_else_is_in_the_folder_stays(tmp_path: Path) -> None:
    theirs = [tmp_path / name for name in ("holiday.png", "notes.txt", ".hidden")]
    for path in theirs:
        path.write_bytes(b"x" * 2000)
        os.utime(path, (0, 0))
    (tmp_path / "folder").mkdir()
    ours = tmp_path / f".{'a' * 32}.png.part"
    ours.write_bytes(b"x")
    os.utime(ours, (0, 0))
    store = ImageStore(tmp_path, seconds=60, max_bytes=1000)
    store.put(b"x" * 100, "png")
    assert all(path.exists() for path in theirs) and (tmp_path / "folder").exists()
    assert not ours.exists(), "a picture whose writer has died"


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written to"):
        ImageStore(tmp_path / "file", seconds=60, max_bytes=LARGE)


def test_other_pages_may_show_them_and_the_event_loop_does_not_wait(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    for name in ("put", "get"):
        method = getattr(ImageStore, name)

        def noted(self: ImageStore, *arguments: object, method: object = method) -> object:
            called.append(asyncio._get_running_loop())
            return method(self, *arguments)  # type: ignore[operator]

        monkeypatch.setattr(ImageStore, name, noted)
    with service(DALLE.load(model_folder), store=tmp_path, store_seconds=100) as one:
        answer = post(one, **PROMPT, n=2, response_format="url").json()
        for drawn in answer["data"]:
            picture = httpx.get(drawn["url"])
            assert picture.status_code == 200 and picture.headers["content-type"] == "image/png"
            assert picture.headers["cross-origin-resource-policy"] == "cross-origin"
            seconds = re.fullmatch(r"private, max-age=(\d+), immutable", picture.headers["cache-control"])
            assert seconds and 90 < int(seconds[1]) <= 100, "no longer than the store has it"
            assert picture.headers["x-content-type-options"] == "nosniff"
    assert called == [None] * 4, "beside the event loop"
