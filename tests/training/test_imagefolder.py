"""Folders in the layout of Hugging Face's imagefolder, as `training.folder` reads them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from dalle.errors import DataError
from training.folder import FolderOptions, Report, build, summary
from training.pairs.shards import PairShards


def _save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)
    return path


def _metadata(folder: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    path = folder / f"metadata.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path)


def _build(source: Path, out: Path, **options: Any) -> Report:
    return build(FolderOptions(source=source, out=out, size=8, **options))


def _captions(*shards: Path) -> dict[str, list[str]]:
    pairs = PairShards(shards)
    return {pairs.metadata(n)["id"]: pairs.metadata(n)["captions"] for n in range(len(pairs))}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_splits_stay_apart(tmp_path: Path, kind: str) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    for split, count in (("train", 5), ("validation", 3), ("test", 2)):
        for number in range(count):
            _save(source / split / f"{number}.png")
        rows = [{"file_name": f"{number}.png", "text": f"{split} {number}", "label": 1} for number in range(count)]
        _metadata(source / split, kind, rows)
    report = _build(source, out)
    assert report == Report(num_train=5, num_val=3, num_test=2, problems=[])
    assert summary(report, FolderOptions(source=source, out=out)) == (
        f"5 pairs for training, 3 for validation and 2 for tests in {out}"
    )
    assert _captions(out / "train-000.tar") == {f"train/{n}.png": [f"train {n}"] for n in range(5)}
    assert _captions(out / "val.tar") == {f"validation/{n}.png": [f"validation {n}"] for n in range(3)}
    assert _captions(out / "test.tar") == {f"test/{n}.png": [f"test {n}"] for n in range(2)}


def test_one_metadata_file_over_all_splits(tmp_path: Path) -> None:
    """Tests are for validation where there is none."""
    source, out = tmp_path / "source", tmp_path / "out"
    names = ["data/train/a.png", "data/train/b.png", "data/test/c.png"]
    for name in names:
        _save(source / name)
    _metadata(source, "jsonl", [{"image_file_name": name, "caption": name[-5]} for name in names])
    assert _build(source, out) == Report(num_train=2, num_val=1, problems=[])
    assert _captions(out / "val.tar") == {"data/test/c.png": ["c"]}


def test_without_splits_the_hash_decides(tmp_path: Path) -> None:
    for number in range(30):
        _save(tmp_path / f"source/{number}.png")
    rows = [{"file_name": f"{number}.png", "caption": "a", "text": "b"} for number in range(30)]
    _metadata(tmp_path / "source", "csv", rows)
    report = _build(tmp_path / "source", tmp_path / "out", val_fraction=0.3)
    assert report.num_train + report.num_val == 30 and 0 < report.num_val < 20
    assert all(captions == ["a"] for captions in _captions(tmp_path / "out/val.tar").values()), "`caption` goes before"
    _build(tmp_path / "source", tmp_path / "other", caption_column="text", val_fraction=0)
    assert _captions(tmp_path / "other/train-000.tar")["7.png"] == ["b"]


def test_what_cannot_be_used_is_listed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("train/a.png", "train/alone.png", "train/mute.png", "test/b.png"):
        _save(source / name)
    rows = [{"file_name": "a.png", "text": "a"}, {"file_name": "mute.png", "text": " "}, {"file_name": "gone.png"}]
    _metadata(source / "train", "jsonl", [*rows, {"text": "no name"}, {"file_name": "../test/b.png", "text": "b"}])
    _metadata(source / "test", "jsonl", [{"file_name": "b.png", "text": "b"}])
    report = _build(source, tmp_path / "out")
    assert (report.num_train, report.num_val) == (1, 1)
    assert _captions(tmp_path / "out/val.tar") == {"test/b.png": ["b"]}
    said = {problem.id: problem.problem for problem in report.problems}
    assert {*said} == {
        "train/metadata.jsonl, line 4",
        "train/mute.png",
        "train/gone.png",
        "train/alone.png",
        "test/b.png",
    }
    assert said["train/metadata.jsonl, line 4"] == "no picture path in 'file_name'"
    assert said["train/mute.png"] == "it has no caption: 'text' has no text"
    assert said["train/alone.png"] == "no metadata file names it"
    assert said["test/b.png"].endswith("metadata.jsonl names the same picture")


def test_what_is_ambiguous_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    _save(source / "a.png")
    _metadata(source, "jsonl", [{"file_name": "a.png", "text": "a", "prompt": "b"}])
    with pytest.raises(DataError, match=r"has the columns 'text' and 'prompt'; choose one with --caption-column"):
        _build(source, tmp_path / "out")
    _metadata(source, "jsonl", [{"left_file_name": "a.png", "right_file_name": "a.png", "text": "a"}])
    with pytest.raises(DataError, match=r"'left_file_name' and 'right_file_name'; choose one with --image-column"):
        _build(source, tmp_path / "out")
    _build(source, tmp_path / "chosen", image_column="left_file_name")
    _metadata(source, "csv", [{"file_name": "a.png", "text": "a"}])
    with pytest.raises(DataError, match=r"has both metadata\.csv and metadata\.jsonl; keep the one"):
        _build(source, tmp_path / "out")
    (source / "metadata.csv").write_text("file,text\na.png,a\n")
    (source / "metadata.jsonl").unlink()
    with pytest.raises(DataError, match=r"no column 'file_name'; the columns are 'file', 'text'"):
        _build(source, tmp_path / "out")
    assert not list(tmp_path.glob("out/*.tar"))


def test_a_table_with_the_columns_of_others(tmp_path: Path) -> None:
    _save(tmp_path / "a.png")
    (tmp_path / "table.csv").write_text("id,file_name,prompt\n1,a.png,a cat\n")
    _build(tmp_path / "table.csv", tmp_path / "out", val_fraction=0)
    assert _captions(tmp_path / "out/train-000.tar") == {"a.png": ["a cat"]}
