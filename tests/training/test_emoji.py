"""The emoji builder, offline: the first 75 pairs are built from the needed parts of the real packages, which are in
`tests/data/emoji_packages.tar.xz`, and compared with `tests/data/emoji_reference.jsonl`, which was built elsewhere."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dalle.errors import DataError
from dalle.files import CannotWriteError
from dalle.images import to_rgb
from training.emoji.compare import compare, comparison_table
from training.emoji.packages import fetch_packages
from training.emoji.program import EmojiOptions, build, main
from training.emoji.sets import (
    CLDR_PACKAGES,
    SETS,
)
from training.pairs.shard_writer import ShardWriter, encode_webp

DATA = Path(__file__).parents[1] / "data"
NUM_REFERENCE = 75


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the needed parts of all packages, as if they were downloaded and unpacked."""
    cache = tmp_path_factory.mktemp("packages")
    with tarfile.open(DATA / "emoji_packages.tar.xz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
        archive.extractall(cache)
    for folder in list(cache.iterdir()):
        (cache / (f"{folder.name}.tgz" if "openclipart" not in folder.name else "openclipart-svg_0.18.deb")).touch()
    return cache


@pytest.fixture(scope="module")
def built(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    build(EmojiOptions(out=out, packages=packages, workers=1, limit=NUM_REFERENCE))
    return out


def _members(shards: Path) -> dict[str, tuple[str, dict[str, Any], Image.Image]]:
    """Shard, metadata and picture by key."""
    found: dict[str, tuple[str, dict[str, Any], Image.Image]] = {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as archive:
            names = archive.getnames()
            for name in names[::2]:
                key = name.removesuffix(".json")
                content = [archive.extractfile(f"{key}.{suffix}") for suffix in ("json", "webp")]
                assert content[0] is not None and content[1] is not None
                metadata, picture = json.loads(content[0].read()), Image.open(io.BytesIO(content[1].read()))
                found[key] = (path.stem, metadata, picture)
            assert len(names) == 2 * len({name.split(".")[0] for name in names})
    return found


def test_pairs_are_those_built_elsewhere(built: Path) -> None:
    members = _members(built)
    reference = [json.loads(line) for line in (DATA / "emoji_reference.jsonl").read_text().splitlines()]
    assert len(members) == len(reference) == NUM_REFERENCE
    assert {record["metadata"]["style"] for record in reference} == {picture_set.style for picture_set in SETS}
    for record in reference:
        shard, metadata, picture = members[record["key"]]
        assert (shard, metadata) == (record["shard"], record["metadata"])
        assert picture.size == (128, 128)
        thumbnail = np.asarray(to_rgb(picture).resize((8, 8), Image.Resampling.BOX)).astype(int)
        expected = np.frombuffer(bytes.fromhex(record["pixels_8x8"]), np.uint8).reshape(8, 8, 3)
        assert np.abs(thumbnail - expected).max() <= 3, record["metadata"]["id"]


def test_build_goes_on_where_it_was(built: Path, packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    options = EmojiOptions(out=out, packages=packages, workers=1, limit=20)
    build(options)
    before = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    assert "train-000.tar" in before and len(before) > 1
    (out / "train-000.tar").unlink()
    kept = out / next(name for name in before if name != "train-000.tar")
    changed = kept.stat().st_mtime_ns
    build(options)
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == before
    assert kept.stat().st_mtime_ns == changed
    with pytest.raises(DataError, match=r"another limit \(20, now 30\)"):
        build(EmojiOptions(out=out, packages=packages, workers=1, limit=30))


def test_two_processes_write_the_same_bytes_as_one(built: Path, packages: Path, tmp_path: Path) -> None:
    build(EmojiOptions(out=tmp_path, packages=packages, workers=2, limit=NUM_REFERENCE))
    shards = sorted(path.name for path in built.glob("*.tar"))
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == shards
    assert all((tmp_path / name).read_bytes() == (built / name).read_bytes() for name in shards)


@pytest.mark.parametrize("name", ["train-000.tar", "NOTICE", "contact_sheet.png"])
def test_foreign_files_are_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(CannotWriteError, match=rf"holds {name}, which would be replaced; without build.json"):
        build(EmojiOptions(out=tmp_path, limit=1))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"mine")]


def test_notice_names_every_set_author_and_licence(built: Path) -> None:
    text = (built / "NOTICE").read_text()
    for picture_set in SETS:
        assert f"{picture_set.package} {picture_set.version}\n" in text
    for said in ("Google Inc", "Twitter", "Emoji One", "LobeHub", "Streamline", "CC-BY-4.0", "UNICODE LICENSE V3"):
        assert said in text
    assert "Public Domain Dedication" in text
    assert {picture_set.licence for picture_set in SETS} == {"Apache-2.0", "CC-BY-4.0", "MIT", "CC0/PD"}


def test_a_changed_licence_stops_the_build(packages: Path, tmp_path: Path) -> None:
    cache = tmp_path / "packages"
    cache.mkdir()
    for path in packages.iterdir():
        (cache / path.name).symlink_to(path)
    name = "iconify-json-twemoji-1.2.5"
    (cache / name).unlink()
    (cache / name / "package").mkdir(parents=True)
    for path in (packages / name / "package").iterdir():
        content = path.read_text().replace("CC-BY-4.0", "CC-BY-SA-4.0")
        (cache / name / "package" / path.name).write_text(content)
    with pytest.raises(DataError, match=r"twemoji states the licence CC-BY-SA-4\.0 .* the data says CC-BY-4\.0"):
        build(EmojiOptions(out=tmp_path / "out", packages=cache, workers=1, limit=1))


def test_contact_sheet_shows_the_pictures(built: Path) -> None:
    with Image.open(built / "contact_sheet.png") as sheet:
        assert sheet.width > 24 * 128 and sheet.height > 4 * 128
        assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 1000


def test_compare_counts_what_differs(built: Path, tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train-000") as writer:
        for key, (shard, metadata, picture) in _members(built).items():
            if shard != "train-000":
                continue
            if key == "000000":
                metadata = metadata | {"weight": 0.9}
            if key == "000001":
                picture.putpixel((0, 0), (255, 255, 0))
            writer.write(key, encode_webp(picture), metadata)
        writer.write(
            "999999", encode_webp(Image.new("RGB", (128, 128))), {"id": "new", "style": "new", "captions": ["new"]}
        )
    styles = compare(built, tmp_path)
    everything = styles["all"]
    assert everything.found == everything.pairs - 1 == everything.equal_metadata + 1 == everything.equal_pixels + 1
    assert (styles["new"].pairs, styles["new"].found) == (1, 0)
    assert (styles["line icon"].max_difference, styles["emojione"].max_difference) == (255, 0)
    assert styles["line icon"].sum_difference == pytest.approx(255 / (128 * 128 * 3))
    assert comparison_table(styles).splitlines()[-1].split()[:2] == ["all", str(everything.pairs)]


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(DataError, match="workers is 0"):
        EmojiOptions(workers=0)
    with pytest.raises(DataError, match="limit is -1"):
        EmojiOptions(limit=-1)


def test_missing_clients_are_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["--out", str(tmp_path / "out"), "--limit", "1"])
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("error: npm is not installed") and "iconify-json-noto-1.2.9.tgz" in line and "by hand" in line
    )
    npm = {picture_set.package: picture_set.version for picture_set in SETS if picture_set.kind != "clip art"}
    cache = tmp_path / "cache"
    cache.mkdir()
    for path in packages.iterdir():
        if "openclipart" not in path.name:
            (cache / path.name).symlink_to(path)
    with pytest.raises(DataError, match=r"apt-get is not installed.* apt-get update"):
        fetch_packages({**npm, **CLDR_PACKAGES}, cache)
