"""Shards by URL, from a real web server and an object store in memory."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch

from dalle.errors import DataError
from tests.support.pairs import write_pairs
from tests.support.stages import NUM_TRAIN, decoder_training, vq_training, write_stage_2
from training.decoder import DecoderTask
from training.pairs import remote
from training.pairs.shards import PairShards, find_shards
from training.vq import VQTask


class _Handler(SimpleHTTPRequestHandler):
    """Serves files, and keeps the requests. A name that begins with `cut` loses its last bytes on the way."""

    asked: ClassVar[list[str]]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if not self.path.startswith("/cut"):
            super().do_GET()
            return
        content = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:-100])

    def log_message(self, format: str, *values: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path, list[str]]]:
    """A web server: its URL, the folder that it serves, and the paths that it was asked for. The cache is empty."""
    monkeypatch.setenv("DALLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("training.pairs.remote.time.sleep", lambda _: None)
    folder = tmp_path / "site"
    folder.mkdir()
    _Handler.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", folder, _Handler.asked
        server.shutdown()


def test_shards_are_fetched_once(site: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    url, folder, asked = site
    local = write_pairs(folder, "train", 23, per_shard=10)
    found = find_shards([f"{url}/train-{{000..002}}.tar"])
    assert [path.name for path in found] == ["train-000.tar", "train-001.tar", "train-002.tar"]
    assert all(path.is_relative_to(tmp_path / "cache/shards") for path in found)
    assert [path.read_bytes() for path in found] == [path.read_bytes() for path in local]
    assert torch.equal(PairShards(found).all_pictures(), PairShards(local).all_pictures())
    assert sorted(asked) == [f"/train-{number:03d}.tar" for number in range(3)]
    for path in local:
        path.unlink()
    assert find_shards([f"{url}/train-{{000..002}}.tar"]) == found and len(asked) == 3, "the cache needs no server"
    assert not list(tmp_path.rglob("*.part"))


def test_several_processes_fetch_a_shard_once(site: tuple[str, Path, list[str]]) -> None:
    url, folder, asked = site
    write_pairs(folder, "train", 5)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: find_shards([f"{url}/train.tar"])[0], range(8)))
    assert len(asked) == 1 and len({*found}) == 1 and len(PairShards(found[:1])) == 5


def test_both_stages_train_on_urls(site: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    url, folder, _ = site
    write_stage_2(folder)
    near = VQTask(vq_training(folder))
    far = VQTask(vq_training(folder, train_shards=(f"{url}/train-{{000..001}}.tar",), val_shards=(f"{url}/val.tar",)))
    assert len(far.pairs) == NUM_TRAIN
    assert all(torch.equal(far.batch(step)["images"], near.batch(step)["images"]) for step in range(3))
    near_rows = DecoderTask(decoder_training(folder))
    far_rows = DecoderTask(decoder_training(folder, train_shards=(f"{url}/codes/train/00000.safetensors",)))
    for step in range(3):
        there, here = far_rows.batch(step), near_rows.batch(step)
        assert all(torch.equal(there[name], here[name]) for name in here)


def test_what_cannot_be_fetched(site: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    url, folder, asked = site
    with pytest.raises(DataError, match=rf"{url}/gone\.tar cannot be fetched: it does not exist"):
        find_shards([f"{url}/gone.tar"])
    (folder / "cut.tar").write_bytes(np.random.default_rng(0).bytes(5000))
    asked.clear()
    with pytest.raises(DataError, match=rf"{url}/cut\.tar cannot be fetched: "):
        find_shards([f"{url}/cut.tar"])
    assert asked == ["/cut.tar"] * remote.TRIES
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:1/a\.tar cannot be fetched: "):
        find_shards(["http://127.0.0.1:1/a.tar"])
    with pytest.raises(DataError, match=r"nowhere://a\.tar is no URL that can be read: .*nowhere"):
        find_shards(["nowhere://a.tar"])
    with pytest.raises(DataError, match=r"dask://a\.tar needs another package: "):
        find_shards(["dask://a.tar"])
    with pytest.raises(DataError, match=r"train-\{000\.tar has a brace that is not closed"):
        find_shards(["train-{000.tar"])
    assert not [path for path in tmp_path.rglob("cache/shards/*/*") if path.name != ".lock"], "nothing is left"


def test_an_object_store_lists_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec's file system in memory stands in for S3."""
    monkeypatch.setenv("DALLE_CACHE", str(tmp_path / "cache"))
    local = write_pairs(tmp_path, "train", 12, per_shard=5)
    store = fsspec.filesystem("memory")
    for path in reversed(local):
        store.pipe(f"/bucket-of-shards/{path.name}", path.read_bytes())
    found = find_shards(["memory://bucket-of-shards/train-*.tar"])
    assert [path.read_bytes() for path in found] == [path.read_bytes() for path in local]
    with pytest.raises(DataError, match=r"no shards at memory://bucket-of-shards/val-\*\.tar"):
        find_shards(["memory://bucket-of-shards/val-*.tar"])


def test_braces_name_local_shards(tmp_path: Path) -> None:
    local = write_pairs(tmp_path, "train", 12, per_shard=5)
    assert find_shards([f"{tmp_path}/train-{{000..001}}.tar"]) == local[:2]
    (tmp_path / "a{0..1}.tar").write_bytes(local[0].read_bytes())
    assert find_shards([f"{tmp_path}/a{{0..1}}.tar"]) == [tmp_path / "a{0..1}.tar"], "a file's name is no pattern"
