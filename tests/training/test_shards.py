"""Shard readers: every pair has its number, and damage is found before training."""

import io
import json
import pickle
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.pair_shards import write_linked_shards
from dalle.errors import DataError
from dalle.images import to_tensor
from tests.support.pairs import pair, write_pairs
from training.pairs import shard_index
from training.pairs.shard_writer import encode_webp
from training.pairs.shards import PairShards, find_shards, from_pixels


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    """A tar of these files, as any other program might write it."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def picture_bytes(colour: str = "red", size: tuple[int, int] = (16, 16), format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format)
    return buffer.getvalue()


def metadata_bytes(**values: Any) -> bytes:
    return json.dumps({"captions": ["a"]} | values).encode()


def test_every_pair_is_at_its_number(tmp_path: Path) -> None:
    paths = write_pairs(tmp_path, "train", 23, weights=(1.0, 0.3, 2.5), per_shard=10)
    assert [path.name for path in paths] == ["train-000.tar", "train-001.tar", "train-002.tar"]
    pairs = PairShards(paths)
    assert len(pairs) == 23
    assert pairs.weights.tolist() == ([1.0, 0.3, 2.5] * 8)[:23]
    for number in range(23):
        image, metadata = pair(number)
        assert pairs.metadata(number) == metadata | {"weight": pairs.weights[number]}
        assert torch.equal(pairs.picture(number).float() / 127.5 - 1, to_tensor(image))
    numbers = np.array([22, 0, 7, 7])
    images = pairs.images(numbers)
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.float32
    assert torch.equal(images, torch.stack([to_tensor(pair(int(number))[0]) for number in numbers]))


def test_shards_of_another_program(tmp_path: Path) -> None:
    """Other picture formats, folders and dots in names, additional files, any order of members; the default weight is
    1."""
    path = write_tar(
        tmp_path / "other.tar",
        {
            "deep/a.b.json": metadata_bytes(weight=2),
            "c.JPG": picture_bytes("blue", format="JPEG"),
            "deep/a.b.png": picture_bytes("lime"),
            "c.cls": b"7",
            "c.json": metadata_bytes(captions=["c", "d"]),
        },
    )
    pairs = PairShards([path])
    assert pairs.weights.tolist() == [2.0, 1.0]
    assert pairs.picture(0)[:, 0, 0].tolist() == [0, 255, 0]
    assert pairs.picture(1)[2].min() > 250
    assert pairs.metadata(1)["captions"] == ["c", "d"]


def test_members_that_are_no_files_are_skipped(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"deep/a.json": metadata_bytes(), "deep/a.png": picture_bytes()})
    with tarfile.open(path, "a") as archive:
        for name, kind in (("deep", tarfile.DIRTYPE), ("other.png", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "deep/a.png"
            archive.addfile(member)
    assert len(PairShards([path])) == 1


def test_what_is_transparent_goes_over_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 16, 8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    pairs = PairShards([write_tar(tmp_path / "a.tar", {"a.json": metadata_bytes(), "a.png": buffer.getvalue()})])
    assert pairs.picture(0).dtype == torch.uint8
    assert pairs.picture(0)[:, 0, 0].tolist() == [0, 0, 255]
    assert pairs.picture(0)[:, 15, 0].tolist() == [255, 255, 255]
    assert torch.equal(pairs.images([0])[0], to_tensor(image))


def test_transparency_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    image = Image.new("RGBA", (16, 16), (10, 20, 30, 0))
    image.paste((0, 200, 255, 51), (0, 0, 16, 8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    files = {"a.png": buffer.getvalue(), "b.png": picture_bytes("lime")}
    pairs = PairShards([write_tar(tmp_path / "a.tar", files | {f"{key}.json": metadata_bytes() for key in "ab"})])
    assert pairs.picture(0, channels=4)[:, 0, 0].tolist() == [0, 200, 255, 51], "straight, as it is stored"
    assert pairs.picture(1, channels=4)[:, 0, 0].tolist() == [0, 255, 0, 255], "what has none is opaque"
    images = pairs.images([0, 1], channels=4)
    assert images.shape == (2, 4, 16, 16)
    assert torch.equal(images[0], to_tensor(image, channels=4))
    premultiplied = [2 * value * 0.2 / 255 - 1 for value in (0, 200, 255, 255)]
    assert images[0, :, 0, 0].tolist() == pytest.approx(premultiplied, abs=1e-6)
    assert images[0, :, 15, 0].tolist() == [-1] * 4, "of what cannot be seen nothing is left"


def test_all_pictures_come_in_their_order(tmp_path: Path) -> None:
    pairs = PairShards(write_pairs(tmp_path, "train", 40, per_shard=15))
    for channels in (3, 4):
        pixels = pairs.all_pictures(channels=channels)
        assert pixels.shape == (40, channels, 16, 16) and pixels.dtype == torch.uint8
        assert torch.equal(pixels, torch.stack([pairs.picture(number, channels=channels) for number in range(40)]))
        assert torch.equal(from_pixels(pixels), pairs.images(range(40), channels=channels))
    assert torch.equal(pairs.pictures([7, 3]), pairs.all_pictures()[[7, 3]])


def test_transparency_is_found_in_a_sample(tmp_path: Path) -> None:
    assert PairShards(write_pairs(tmp_path / "clear", "train", 3, transparent=True)).has_transparency()
    assert not PairShards(write_pairs(tmp_path / "opaque", "train", 3)).has_transparency()
    faint = Image.new("RGBA", (16, 16), "red")
    faint.putpixel((3, 5), (255, 0, 0, 254))
    buffer = io.BytesIO()
    faint.save(buffer, "PNG")
    files = {f"{number}.png": picture_bytes() for number in range(5)} | {"4.png": buffer.getvalue()}
    files |= {f"{number}.json": metadata_bytes() for number in range(5)}
    pairs = PairShards([write_tar(tmp_path / "a.tar", files)])
    assert pairs.has_transparency() and pairs.has_transparency(2), "the first and the last are in every sample"
    assert not pairs.has_transparency(1)


def test_patterns_name_shards(tmp_path: Path) -> None:
    write_pairs(tmp_path, "train", 2, per_shard=1)
    write_pairs(tmp_path, "val", 1)
    (tmp_path / "notes.txt").touch()

    def found(*patterns: str | Path) -> list[str]:
        return [path.name for path in find_shards(patterns)]

    assert found(tmp_path) == ["train-000.tar", "train-001.tar", "val.tar"]
    assert found(f"{tmp_path}/train-*.tar") == ["train-000.tar", "train-001.tar"]
    assert found(f"{tmp_path}/val.tar", tmp_path / "train-001.tar") == ["val.tar", "train-001.tar"]
    assert found(f"{tmp_path.parent}/{tmp_path.name[:-1]}?/va*.tar") == ["val.tar"], "wildcards in folders too"
    (tmp_path / "codes [1]").mkdir()
    for name in ("00001.safetensors", "00000.safetensors"):
        (tmp_path / "codes [1]" / name).touch()
    assert found(tmp_path / "codes [1]") == ["00000.safetensors", "00001.safetensors"]
    assert found(tmp_path / "codes [1]" / "00001.safetensors") == ["00001.safetensors"], "a file's name is no pattern"
    with pytest.raises(DataError, match=r"no shards at .*test-\*\.tar: `python -m training\.emoji`"):
        found(tmp_path, f"{tmp_path}/test-*.tar")
    with pytest.raises(DataError, match=r"no shards at .*\.safetensors: `python -m training\.codes` writes some"):
        found(f"{tmp_path}/codes/*.safetensors")


@pytest.mark.parametrize("where", ["first header", "later header", "between members", "in a member", "empty"])
def test_a_damaged_tar_is_found_when_it_is_indexed(tmp_path: Path, where: str) -> None:
    (path,) = write_pairs(tmp_path, "train", 5)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        third = archive.getmembers()[4]
    if where == "first header":
        content[3] ^= 1
    elif where == "later header":
        content[third.offset + 3] ^= 1
    elif where == "between members":
        del content[third.offset :]
    elif where == "in a member":
        del content[third.offset_data + 7 :]
    else:
        content.clear()
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        PairShards([path])
    assert str(path) in str(caught.value)


def test_what_is_no_tar(tmp_path: Path) -> None:
    path = tmp_path / "train.tar"
    path.write_bytes(b"no tar, but long enough for a header" * 100)
    with pytest.raises(DataError, match=r"train\.tar is not a readable tar shard"):
        PairShards([path])
    with pytest.raises(DataError, match=r"gone\.tar is not a readable tar shard.*No such file"):
        PairShards([tmp_path / "gone.tar"])
    with pytest.raises(DataError, match="no picture-caption pairs in"):
        PairShards([write_tar(tmp_path / "empty.tar", {})])


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.webp": b"x"}, "a lacks its .json"),
        ({"a.json": b"{}"}, "a lacks its picture"),
        ({"a.txt": b"a"}, "a lacks its .json"),
        ({"a.png": b"x", "a.json": b"{"}, "a.json is not an object with captions"),
        ({"a.png": b"x", "a.json": b"\xff"}, "a.json is not an object with captions"),
        ({"a.png": b"x", "a.json": b"[]"}, "a.json is not an object with captions"),
        ({"a.png": b"x", "a.json": b"{}"}, "a.json is not an object with captions: KeyError('captions')"),
        ({"a.png": b"x", "a.json": metadata_bytes(captions=[])}, "no list of captions"),
        ({"a.png": b"x", "a.json": metadata_bytes(captions=["a", 1])}, "no list of captions"),
        ({"a.png": b"x", "a.json": metadata_bytes(captions=[["a"]])}, "no list of captions"),
        ({"a.png": b"x", "a.json": metadata_bytes(captions="a")}, "no list of captions"),
        ({"a.png": b"x", "a.json": metadata_bytes(weight="much")}, "could not convert string to float: 'much'"),
    ],
)
def test_what_is_no_pair(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    good = {"good.png": picture_bytes(), "good.json": metadata_bytes()}
    path = write_tar(tmp_path / "train.tar", good | files)
    with pytest.raises(DataError) as caught:
        PairShards([path])
    assert str(path) in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_picture_is_named(tmp_path: Path, format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, format)
    good = buffer.getvalue()
    cut, garbage = good[: len(good) // 2], b"no picture at all"
    files = {"a.png": good, "b.png": cut, "c.png": garbage, "d.png": b""}
    path = write_tar(tmp_path / "train.tar", files | {f"{key}.json": metadata_bytes() for key in "abcd"})
    pairs = PairShards([path])
    assert pairs.picture(0).shape == (3, 32, 32)
    for number in (1, 2, 3):
        with pytest.raises(DataError) as caught:
            pairs.images([0, number])
        assert str(caught.value).startswith(f"{path}: picture {number}: ")


def test_pictures_of_different_sizes_make_no_batch(tmp_path: Path) -> None:
    files = {"a.png": picture_bytes(size=(16, 16)), "b.png": picture_bytes(size=(16, 8))}
    path = write_tar(tmp_path / "train.tar", files | {f"{key}.json": metadata_bytes() for key in "ab"})
    pairs = PairShards([path])
    assert pairs.images([1, 1]).shape == (2, 3, 8, 16)
    with pytest.raises(DataError, match=r"different sizes in one batch: \[\(3, 8, 16\), \(3, 16, 16\)\]"):
        pairs.images([0, 1])


def test_the_index_is_kept_and_built_again_when_a_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DALLE_CACHE", str(tmp_path / "cache"))
    paths = write_pairs(tmp_path, "train", 23, weights=(1.0, 0.3), per_shard=10)
    built: list[str] = []
    read = shard_index._pairs_in

    def reading(shard: int, path: Path) -> Any:
        built.append(path.name)
        return read(shard, path)

    monkeypatch.setattr(shard_index, "_pairs_in", reading)
    first = PairShards(paths)
    assert built == [path.name for path in paths]
    monkeypatch.chdir(tmp_path)
    again = PairShards([Path(path.name) for path in paths])
    assert len(built) == 3, "the same files by another path"
    assert again.weights.tolist() == first.weights.tolist() and len(again) == 23
    assert torch.equal(again.all_pictures(), first.all_pictures())
    PairShards(paths[:2])
    assert len(built) == 5, "other shards have an index of their own"

    write_tar(paths[2], {"a.json": metadata_bytes(weight=7), "a.png": picture_bytes("lime"), "b.png": b""})
    changed = PairShards(paths, max_broken=0.1)
    assert built[5:] == built[:3]
    assert changed.weights.tolist() == [1.0, 0.3] * 10 + [7.0]
    (problem,) = changed.problems
    assert (problem.id, problem.problem) == ("train-002.tar: b", f"{paths[2]}: b lacks its .json")
    assert PairShards(paths, max_broken=0.1).problems == changed.problems and len(built) == 8, "problems are kept too"
    assert torch.equal(first.images(range(20)), changed.images(range(20))), "an index that was opened stays"

    (index,) = [
        path for path in tmp_path.glob("cache/indexes/*/index.json") if '"firsts": [0, 10, 20, 21]' in path.read_text()
    ]
    for name, content in (("index.json", b"{"), ("weights.bin", b"cut"), ("places.bin", b"")):
        (index.parent / name).write_bytes(content)
        assert len(PairShards(paths, max_broken=0.1)) == 21 and built[-3:] == built[:3], "a damaged one is replaced"
    assert len(built) == 17
    assert sorted(path.name for path in index.parent.parent.iterdir() if path.suffix != ".lock") == sorted(
        path.parent.name for path in tmp_path.glob("cache/indexes/*/index.json")
    ), "nothing else is left"


def test_an_index_that_cannot_be_kept_is_made_for_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("DALLE_CACHE", str(tmp_path / "cache"))
    paths = write_pairs(tmp_path, "train", 5)
    with pytest.warns(UserWarning, match="the index of the shards cannot be kept in .*cache/indexes: "):
        pairs = PairShards(paths)
    assert torch.equal(pairs.images([4])[0], to_tensor(pair(4)[0]))
    assert torch.equal(pickle.loads(pickle.dumps(pairs)).images([4]), pairs.images([4]))


def test_the_index_takes_a_few_bytes_for_each_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While 3,000 pairs in 20 shards are indexed, Python's memory holds one shard's part at most; then, nothing."""
    monkeypatch.setenv("DALLE_CACHE", str(tmp_path / "cache"))
    paths = write_linked_shards(tmp_path, 150)
    for number in range(19):
        paths.append(tmp_path / f"more-{number}.tar")
        paths[-1].hardlink_to(paths[0])
    PairShards(paths[:1])
    tracemalloc.start()
    pairs = PairShards(paths)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pairs) == 3000 and kept < 30 * 3000 and most < 150 * 3000
    assert sum(path.stat().st_size for path in tmp_path.glob("cache/indexes/*/*.bin")) == 40 * (3000 + 150)


class _Pictures(Dataset[torch.Tensor]):
    def __init__(self, pairs: PairShards) -> None:
        self.pairs = pairs

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.pairs.images([number])


@pytest.mark.parametrize(("context", "num_workers"), [("fork", 2), ("spawn", 1)])
def test_workers_read_the_same_pictures(tmp_path: Path, context: str, num_workers: int) -> None:
    pairs = PairShards(write_pairs(tmp_path, "train", 12, per_shard=5))
    expected = pairs.images(range(12))  # the files are open here by now: workers must not share their positions
    loader = DataLoader(
        _Pictures(pairs),
        batch_size=None,
        sampler=range(12),
        num_workers=num_workers,
        multiprocessing_context=context,
    )
    assert torch.equal(torch.cat(list(loader)), expected)
    assert torch.equal(pickle.loads(pickle.dumps(pairs)).images(range(12)), expected)


def test_the_writer_s_pictures_are_lossless(tmp_path: Path) -> None:
    image, metadata = pair(3)
    path = write_tar(tmp_path / "a.tar", {"a.webp": encode_webp(image), "a.json": json.dumps(metadata).encode()})
    assert torch.equal(PairShards([path]).images([0])[0], to_tensor(image))
