"""Pictures inside of tables: data sets that Hugging Face's `datasets` has written, as `training.folder` reads them."""

import io
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from dalle.errors import DataError
from training.folder import FolderOptions, Report, build
from training.pairs.embedded import embedded_pictures
from training.pairs.problems import Problem
from training.pairs.shards import PairShards

DATASETS = Path(__file__).parents[1] / "data" / "datasets"
"""What `datasets` has written; its README.md says how."""
COLOURS = {0: (255, 0, 0), 1: (0, 255, 0), 2: (0, 0, 255), 3: (255, 255, 0), 4: (255, 255, 255), 5: (0, 0, 0)}
NAMES = ["red", "lime", "blue", "yellow", "white", "black"]


def _build(source: Path, out: Path, **options: Any) -> Report:
    return build(FolderOptions(source=source, out=out, size=8, **options))


def _pairs(*shards: Path) -> dict[int, tuple[str, list[str]]]:
    """Id and captions of each pair by the number of its picture, which has the colour of this number."""
    pairs = PairShards(shards)
    found = {}
    for place in range(len(pairs)):
        pixels, metadata = pairs.picture(place), pairs.metadata(place)
        number = int(pixels[0, 0, 0])
        assert pixels[:, 0, 0].tolist() == [number, 0, 0] and tuple(pixels[:, 4, 4].tolist()) == COLOURS[number]
        found[number] = (metadata["id"], metadata["captions"])
    assert len(found) == len(pairs)
    return found


def _png(seed: int, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_parquet_files_of_the_hub(tmp_path: Path) -> None:
    report = _build(DATASETS / "hub", tmp_path / "out")
    broken = "data/validation-00000-of-00001.parquet, row 2"
    assert (report.num_train, report.num_val, report.num_test) == (3, 1, 1)
    (problem,) = report.problems
    assert problem.id == broken and "picture" in problem.problem
    assert json.loads((tmp_path / "out/problems.jsonl").read_text())["id"] == broken
    first, second = (f"data/train-{part:05d}-of-00002.parquet" for part in (0, 1))
    assert _pairs(tmp_path / "out/train-000.tar") == {
        0: (f"{first}, row 1", ["a red square"]),  # and in the second file, with the same caption
        1: (f"{first}, row 2", ["a lime square"]),
        2: (f"{second}, row 1", ["a blue square"]),
    }
    assert {*_pairs(tmp_path / "out/val.tar")} == {3} and {*_pairs(tmp_path / "out/test.tar")} == {5}
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix not in (".tar", ".jsonl")]


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    """Without a validation split, tests are for validation; one split alone is divided by its hashes."""
    report = _build(DATASETS / "saved", tmp_path / "out")
    assert report == Report(num_train=4, num_val=1, problems=[])
    pairs = _pairs(tmp_path / "out/train-000.tar")
    assert {number: captions for number, (_, captions) in pairs.items()} == {
        number: [f"a {NAMES[number]} square", NAMES[number]] for number in (0, 1, 2, 4)
    }
    assert pairs[4][0] == "train/data-00001-of-00002.arrow, row 2"
    assert {*_pairs(tmp_path / "out/val.tar")} == {3}
    report = _build(DATASETS / "saved" / "train", tmp_path / "alone", val_fraction=0.5)
    assert report.num_train + report.num_val == 4 and report.num_val >= 1


def test_rows_with_the_same_picture_are_one_pair(tmp_path: Path) -> None:
    """A pair does not change sides when rows are added before it, and bytes alone are a picture too."""
    pictures = [_png(0), _png(1), _png(0), _png(2), _png(0)]
    captions = ["a", "b", None, ["c", "d"], ["e", "a"]]
    texts = [value if isinstance(value, list) else [value] if value else None for value in captions]
    parquet.write_table(pa.table({"jpg": pictures, "caption": texts}), tmp_path / "table.parquet")
    assert _build(tmp_path / "table.parquet", tmp_path / "out", val_fraction=0) == Report(
        num_train=3, num_val=0, problems=[]
    )
    pairs = PairShards([tmp_path / "out/train-000.tar"])
    joined = {pairs.metadata(n)["id"]: pairs.metadata(n)["captions"] for n in range(3)}
    assert joined == {
        f"table.parquet, row {row}": texts for row, texts in ((1, ["a", "e"]), (2, ["b"]), (4, ["c", "d"]))
    }
    rows: dict[str, list[Any]] = {"jpg": [*map(_png, range(40))], "caption": [str(number) for number in range(40)]}
    for name, order in (("some", range(20, 40)), ("all", range(40))):
        table = pa.table({key: [values[number] for number in order] for key, values in rows.items()})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
        _build(tmp_path / f"{name}.parquet", tmp_path / name, val_fraction=0.3)
    chosen = [PairShards([tmp_path / name / "val.tar"]) for name in ("some", "all")]
    some, all_ = ({pairs.metadata(n)["captions"][0] for n in range(len(pairs))} for pairs in chosen)
    assert some == {caption for caption in all_ if int(caption) >= 20}


def test_rows_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    (tmp_path / "beside.png").write_bytes(_png(1))
    pictures = [
        {"bytes": _png(0), "path": None},
        {"bytes": None, "path": "beside.png"},
        {"bytes": None, "path": "gone.png"},
        None,
        {"bytes": b"", "path": None},
        {"bytes": _png(2)[:60], "path": "cut.png"},
        {"bytes": _png(3), "path": None},
    ]
    table = pa.table({"image": pictures, "text": ["a", "b", "c", "d", "e", "f", " "]})
    parquet.write_table(table, tmp_path / "table.parquet", row_group_size=2)
    report = _build(tmp_path / "table.parquet", tmp_path / "out", val_fraction=0)
    assert report.num_train == 2
    problems = {problem.id.removeprefix("table.parquet, "): problem.problem for problem in report.problems}
    assert {*problems} == {f"row {number}" for number in range(3, 8)}
    assert "'image' has no bytes, and gone.png cannot be read" in problems["row 3"]
    assert problems["row 4"] == problems["row 5"] == "no picture in 'image'"
    assert "picture" in problems["row 6"] and problems["row 7"] == "it has no caption"
    assert report.problems[0] == Problem("table.parquet, row 3", problems["row 3"])


def test_tables_that_cannot_be_used(tmp_path: Path) -> None:
    saved = shutil.copytree(DATASETS / "saved" / "train", tmp_path / "saved")
    cut = saved / "data-00001-of-00002.arrow"
    cut.write_bytes(cut.read_bytes()[:700])
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow cannot be read"):
        _build(saved, tmp_path / "out")
    cut.unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow cannot be read"):
        _build(saved, tmp_path / "out")
    (saved / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"state\.json is not of datasets\.Dataset\.save_to_disk: KeyError"):
        _build(saved, tmp_path / "out")
    columns = {"left": [{"bytes": _png(0)}], "right": [{"bytes": _png(1)}], "prompt": ["a"], "text": ["b"]}
    parquet.write_table(pa.table(columns), tmp_path / "table.parquet")
    with pytest.raises(DataError, match=r"has the columns 'left' and 'right'; choose one with --image-column"):
        _build(tmp_path / "table.parquet", tmp_path / "out")
    with pytest.raises(DataError, match=r"has the columns 'prompt' and 'text'; choose one with --caption-column"):
        _build(tmp_path / "table.parquet", tmp_path / "out", image_column="left")
    _build(tmp_path / "table.parquet", tmp_path / "chosen", image_column="right", caption_column="text")
    parquet.write_table(pa.table({"image": [{"bytes": _png(0)}]}), tmp_path / "mute.parquet")
    with pytest.raises(DataError, match=r"mute\.parquet: there is no column 'caption'; the columns are 'image'"):
        _build(tmp_path / "mute.parquet", tmp_path / "out")
    assert not list(tmp_path.glob("out/*.tar"))


def test_memory_holds_a_few_rows(tmp_path: Path) -> None:
    """Memory holds some of 128 pictures of 100 kB: a row group of Parquet, or a part of a batch of Arrow."""
    random = np.random.default_rng(0)
    pictures = [{"bytes": random.bytes(100_000)} for _ in range(128)]
    table = pa.table({"image": pictures, "text": ["a"] * 128})
    parquet.write_table(table, tmp_path / "table.parquet", compression="none", row_group_size=8)
    folder = tmp_path / "saved"
    folder.mkdir()
    with pa.OSFile(str(folder / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    whole = table.nbytes
    del pictures, table
    for path in (tmp_path / "table.parquet", folder / "data.arrow"):
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        most = 0
        for _ in embedded_pictures([path], path.parent, image_column=None, caption_column=None):
            most = max(most, pa.total_allocated_bytes() - before)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most + peak < 0.6 * whole, path
