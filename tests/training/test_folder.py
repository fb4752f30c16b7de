"""The folder program, end to end on generated pictures."""

import csv
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from dalle.errors import DataError
from dalle.files import CannotWriteError
from training.folder import FolderOptions, Report, build, main, position
from training.pairs.shards import PairShards, find_shards


def _save(path: Path, size: tuple[int, int] = (20, 20), colour: str = "red", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def _pairs(shards: Path) -> dict[str, tuple[dict[str, Any], np.ndarray]]:
    """Metadata and pixels (H, W, 3) by id, over all shards of a folder."""
    pairs = PairShards(find_shards([shards]))
    found = {}
    for number in range(len(pairs)):
        metadata = pairs.metadata(number)
        found[metadata["id"]] = (metadata, pairs.picture(number).permute(1, 2, 0).numpy())
    assert len(found) == len(pairs)
    return found


def _build(source: Path, out: Path, **options: Any) -> Report:
    return build(FolderOptions(source=source, out=out, **options))


def test_a_folder_of_pictures_with_texts(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    for path, text in (
        ("a.png", "a red square\n\n  red  \n"),
        ("deep/b.JPG", "another"),
        ("c.webp", "ein rotes Rechteck ä"),
    ):
        picture = _save(source / path)
        picture.with_suffix(".txt").write_text(text, encoding="utf-8")
    report = _build(source, tmp_path / "out", size=16, val_fraction=0)
    assert report == Report(num_train=3, num_val=0, problems=[])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["problems.jsonl", "train-000.tar"]
    pairs = _pairs(tmp_path / "out")
    assert {id: metadata["captions"] for id, (metadata, _) in pairs.items()} == {
        "a.png": ["a red square", "red"],
        "deep/b.JPG": ["another"],
        "c.webp": ["ein rotes Rechteck ä"],
    }
    metadata, pixels = pairs["a.png"]
    assert metadata == {
        "id": "a.png",
        "style": "",
        "captions": ["a red square", "red"],
        "weight": 1.0,
        "keywords_en": [],
    }
    assert pixels.shape == (16, 16, 3) and (pixels == [255, 0, 0]).all()


def test_pictures_are_cut_turned_and_laid_over_white(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    source.mkdir()
    wide = Image.new("RGB", (40, 20), "blue")
    wide.paste("lime", (10, 0, 30, 20))
    wide.save(source / "wide.png")
    turned = Image.new("RGB", (20, 20), "black")
    turned.paste("white", (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera lay on its side: turn by 90 degrees clockwise.
    turned.save(source / "turned.png", exif=exif)
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 10, 20))
    clear.save(source / "clear.png")
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([200, 10, 10, 0, 0, 0])
    palette.save(source / "palette.gif", transparency=0)
    for path in list(source.iterdir()):
        path.with_suffix(".txt").write_text(path.stem)
    report = _build(source, tmp_path / "out", size=8, val_fraction=0)
    assert report.problems == []
    pixels = {metadata["captions"][0]: picture for metadata, picture in _pairs(tmp_path / "out").values()}
    assert pixels["wide"][..., 1].min() > 200 and pixels["wide"][..., 2].max() < 50
    for name in ("turned", "clear"):
        # Black on the left, white on the right; the filter rings a little.
        assert pixels[name][:, :2].max() < 20 and pixels[name][:, 6:].min() > 235, name
    assert (pixels["palette"] == 255).all()


def test_transparency_stays(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    source.mkdir()
    image = Image.new("RGBA", (16, 16), (200, 100, 50, 0))
    image.paste((200, 100, 50, 255), (0, 0, 8, 16))
    image.paste((0, 0, 255, 128), (0, 8, 8, 16))
    image.save(source / "a.png")
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([200, 10, 10, 0, 0, 0])
    palette.save(source / "b.gif", transparency=0)
    _save(source / "c.jpg")
    for path in list(source.iterdir()):
        path.with_suffix(".txt").write_text(path.stem)
    _build(source, tmp_path / "out", size=16, val_fraction=0)
    pairs = PairShards(find_shards([tmp_path / "out"]))
    numbers = {pairs.metadata(number)["id"]: number for number in range(3)}
    kept = pairs.picture(numbers["a.png"], channels=4)
    assert kept[:, 0, 0].tolist() == [200, 100, 50, 255] and kept[:, 15, 0].tolist() == [0, 0, 255, 128]
    assert (kept[3, :, 8:] == 0).all()
    assert (pairs.picture(numbers["b.gif"], channels=4)[3] == 0).all()
    assert (pairs.picture(numbers["c.jpg"], channels=4)[3] == 255).all()


def _bomb() -> bytes:
    """A PNG of a few bytes whose header states 100,000 x 100,000 pixels."""
    parts = [b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"")]
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_problems_are_listed_and_not_fatal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "pictures", tmp_path / "out"
    for name in ("bomb", "broken", "cut", "good", "latin", "mute", "silent"):
        _save(source / f"{name}.png", size=(64, 64))
        (source / f"{name}.txt").write_text(name)
    (source / "bomb.png").write_bytes(_bomb())
    (source / "broken.png").write_bytes(b"no picture")
    (source / "cut.png").write_bytes((source / "good.png").read_bytes()[:60])
    (source / "latin.txt").write_bytes(b"caf\xe9")
    (source / "mute.txt").unlink()
    (source / "silent.txt").write_text(" \n")
    (source / "orphan.txt").write_text("an orphan")
    (source / "link.png").symlink_to("gone.png")
    (source / "link.txt").write_text("a link")
    main([str(source), "--out", str(out), "--size", "16"])
    assert capsys.readouterr().out == (
        f"1 pairs for training, 0 for validation in {out}; 8 skipped, see {out / 'problems.jsonl'}\n"
        "no pair is for validation, there is only one pair: validate on the training shards\n"
        f"next: python -m training.bpe '{out}/train-*.tar'\n"
    )
    assert list(_pairs(out)) == ["good.png"]
    lines = [json.loads(line) for line in (out / "problems.jsonl").read_text().splitlines()]
    problems = {line["id"]: line["problem"] for line in lines}
    assert list(problems) == [
        "bomb.png",
        "broken.png",
        "cut.png",
        "latin.png",
        "link.png",
        "mute.png",
        "silent.png",
        "orphan.txt",
    ]
    for id, said in (
        ("bomb.png", "pixels"),
        ("broken.png", "is damaged, or not a PNG"),
        ("cut.png", "cannot be read"),
        ("latin.png", "latin.txt cannot be read: 'utf-8' codec"),
        ("link.png", "or a link to one that is missing"),
        ("mute.png", "mute.txt is missing"),
        ("silent.png", "silent.txt is empty"),
        ("orphan.txt", "no picture orphan beside it"),
    ):
        assert said in problems[id]


def test_a_csv_file_with_its_own_columns(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        _save(tmp_path / f"images/{name}.png")
    table = tmp_path / "table.csv"
    with open(table, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "text", "other"])
        writer.writerow(["images/a.png", 'a "red" square, plain', "x"])
        writer.writerow(["images/a.png", "two\nlines", "x"])
        writer.writerow(["images/b.png", "", "x"])
        writer.writerow(["", "nothing", "x"])
        writer.writerow(["images/a.png", "two", "x"])
        writer.writerow([str(tmp_path / "images/c.png"), "by its whole path", "x"])
        writer.writerow(["images/gone.png", "gone", "x"])
    out = tmp_path / "out"
    report = _build(table, out, size=8, val_fraction=0, image_column="file", caption_column="text")
    assert report.num_train == 2
    captions = {id: metadata["captions"] for id, (metadata, _) in _pairs(out).items()}
    assert captions == {
        "images/a.png": ['a "red" square, plain', "two", "lines"],
        str(tmp_path / "images/c.png"): ["by its whole path"],
    }
    assert [problem.id for problem in report.problems] == ["table.csv, line 6", "images/b.png", "images/gone.png"]
    with pytest.raises(DataError, match=r"no column 'image'; the columns are 'file', 'text', 'other'"):
        _build(table, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_jsonl_file_with_lists_of_captions(tmp_path: Path) -> None:
    _save(tmp_path / "a.png")
    _save(tmp_path / "b.png")
    rows = [
        json.dumps({"image": "a.png", "caption": ["one", "two", 3, "one"], "more": {}}),
        "",
        "{broken",
        '"a string"',
        json.dumps({"image": "b.png", "caption": "half \ud83d"}),
        json.dumps({"image": "b.png"}),
        json.dumps({"image": 7, "caption": "seven"}),
        json.dumps({"image": "b.png", "caption": "späte Zeile"}),
    ]
    table = tmp_path / "table.jsonl"
    table.write_text("\n".join(rows))
    report = _build(table, tmp_path / "out", size=8, val_fraction=0)
    captions = {id: metadata["captions"] for id, (metadata, _) in _pairs(tmp_path / "out").items()}
    assert captions == {"a.png": ["one", "two"], "b.png": ["späte Zeile"]}
    assert [problem.id for problem in report.problems] == [f"table.jsonl, line {line}" for line in (3, 4, 5, 7)]
    said = [problem.problem for problem in report.problems]
    assert (
        "not valid JSON" in said[0] and "not an object" in said[1] and "surrogate" in said[2] and "'image'" in said[3]
    )


def test_a_bad_row_takes_no_other_with_it(tmp_path: Path) -> None:
    for number in range(6):
        _save(tmp_path / f"{number}.png")
    rows = ["image,caption", "0.png,a flag", '1.png,"an open quote', "2.png,third", "3.png,a comma, and more", "4.png,"]
    rows += ["5.png," + "x" * 200_000, "0.png," + "y" * 2**21]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    report = _build(tmp_path / "table.csv", tmp_path / "out", size=8, val_fraction=0)
    captions = {id: metadata["captions"] for id, (metadata, _) in _pairs(tmp_path / "out").items()}
    assert captions == {"0.png": ["a flag"], "2.png": ["third"], "5.png": ["x" * 200_000]}
    assert [(problem.id, problem.problem) for problem in report.problems] == [
        ("table.csv, line 3", "the line is not valid CSV: a quote is opened and not closed"),
        ("table.csv, line 5", "the line has 3 cells, but the header has 2"),
        ("table.csv, line 8", "the line is not valid CSV: the line has more than 1048576 characters"),
        ("4.png", "it has no caption: 'caption' has no text"),
    ]


def test_a_quote_takes_no_row_into_its_caption(tmp_path: Path) -> None:
    """A line that names a picture is a row, even where a later quote would close the open one. Other lines of a cell
    are captions, with commas too."""
    for number in range(5):
        _save(tmp_path / f"{number}.png")
    rows = [
        '0.png,"a flag',
        "1.png,a cat",
        '2.png,5" wide, or 6"',
        '3.png,"two',
        "lines, each",
        'a caption"',
        "4.png,end",
    ]
    (tmp_path / "table.csv").write_text("\n".join(["image,caption", *rows]))
    report = _build(tmp_path / "table.csv", tmp_path / "out", size=8, val_fraction=0)
    captions = {id: metadata["captions"] for id, (metadata, _) in _pairs(tmp_path / "out").items()}
    assert captions == {"1.png": ["a cat"], "3.png": ["two", "lines, each", "a caption"], "4.png": ["end"]}
    assert [(problem.id, problem.problem) for problem in report.problems] == [
        ("table.csv, line 2", "the line is not valid CSV: a quote is opened and not closed"),
        ("table.csv, line 4", "the line has 3 cells, but the header has 2"),
    ]


def test_names_of_cameras_and_texts_of_windows(tmp_path: Path) -> None:
    """The case of a suffix does not matter, and a text may be UTF-16; if there are two texts, .txt is read."""
    source = tmp_path / "pictures"
    for name in ("IMG_1.JPG", "b.png", "c.png", "d.png"):
        _save(source / name)
    (source / "IMG_1.TXT").write_bytes("a café".encode("utf-16"))
    (source / "b.txt").write_bytes("ä b".encode("utf-16-le"))
    (source / "d.txt").write_bytes("odd".encode("utf-16") + b"x")
    (source / "c.txt").write_text("lower")
    (source / "c.TXT").write_text("upper")
    report = _build(source, tmp_path / "out", size=8, val_fraction=0)
    captions = {id: metadata["captions"] for id, (metadata, _) in _pairs(tmp_path / "out").items()}
    assert captions == {"IMG_1.JPG": ["a café"], "b.png": ["ä b"], "c.png": ["lower"]}
    assert [problem.id for problem in report.problems] == ["d.png", "c.TXT"]
    assert "d.txt cannot be read: 'utf-16-le' codec" in report.problems[0].problem


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("index", [None, "key", "image"])
def test_tables_that_pandas_wrote(kind: str, index: str | None, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    _save(tmp_path / "a.png")
    _save(tmp_path / "b.png")
    frame = pandas.DataFrame({"image": ["a.png", "b.png", None], "caption": ["one", None, "three"], "key": [7, 8, 9]})
    frame = frame.iloc[::-1] if index is None else frame.set_index(index)
    path = tmp_path / f"table.{kind}"
    if kind == "jsonl":
        frame.reset_index().to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path) if kind == "csv" else frame.to_parquet(path)
    report = _build(path, tmp_path / "out", size=8, val_fraction=0)
    assert {id: metadata["captions"] for id, (metadata, _) in _pairs(tmp_path / "out").items()} == {"a.png": ["one"]}
    numbers = {"csv": (2, 4), "parquet": (1, 3), "jsonl": (1, 3)}[kind]
    where = f"table.{kind}, {'row' if kind == 'parquet' else 'line'} {numbers[index is not None]}"
    assert [problem.id for problem in report.problems] == [where, "b.png"]


@pytest.mark.parametrize("content", [",k,,image,caption\n0,1,2,a.png,one\n", "image,caption,\na.png,one,0\n"])
def test_columns_without_a_name_are_left_out(content: str, tmp_path: Path) -> None:
    """Such as one of several levels of an index, which pandas writes."""
    _save(tmp_path / "a.png")
    (tmp_path / "table.csv").write_text(content)
    assert not _build(tmp_path / "table.csv", tmp_path / "out", size=8, val_fraction=0).problems
    assert _pairs(tmp_path / "out")["a.png"][0]["captions"] == ["one"]


def test_lists_of_captions_in_parquet_and_files_that_are_none(tmp_path: Path) -> None:
    _save(tmp_path / "a.png")
    table = pa.table({"image": ["a.png"], "caption": [["one", "two"]], "pixels": [[[1, 2]]]})
    parquet.write_table(table, tmp_path / "table.parquet")
    _build(tmp_path / "table.parquet", tmp_path / "out", size=8, val_fraction=0)
    assert _pairs(tmp_path / "out")["a.png"][0]["captions"] == ["one", "two"]
    for name, content, said in (
        ("none.parquet", b"no table", "none.parquet cannot be read after row 0: "),
        ("semicolons.csv", b"image;caption\n", "the columns are 'image;caption'; cells must be separated by commas"),
        ("twice.csv", b"image,caption,image\n", "column names must be unique"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=said):
            _build(tmp_path / name, tmp_path / "none")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_encodings_of_windows(encoding: str, tmp_path: Path) -> None:
    _save(tmp_path / "ä.png")
    (tmp_path / "table.csv").write_text("image,caption\r\nä.png,ein Käfer 판다\r\n", encoding=encoding, newline="")
    (tmp_path / "table.jsonl").write_text('{"image": "ä.png", "caption": "ein Käfer 판다"}\n', encoding=encoding)
    for kind in ("csv", "jsonl"):
        _build(tmp_path / f"table.{kind}", tmp_path / kind, size=8, val_fraction=0)
        assert _pairs(tmp_path / kind)["ä.png"][0]["captions"] == ["ein Käfer 판다"]


@pytest.mark.parametrize(
    ("num", "val_fraction", "expected", "said"),
    [
        (64, 0.001, (63, 1), "no pair would be for validation: one is moved there"),
        (2, 0.01, (1, 1), "no pair would be for validation"),
        (2, 0.999, (1, 1), "no pair would be for training"),
        (1, 0.999, (1, 0), "there is only one pair: validate on the training shards"),
        (2, 0.0, (2, 0), "with val-fraction 0: validate on the training shards"),
    ],
)
def test_no_split_is_empty(
    num: int, val_fraction: float, expected: tuple[int, int], said: str, tmp_path: Path, capsys: Any
) -> None:
    source, out = tmp_path / "pictures", tmp_path / "out"
    for number in range(num):
        _save(source / f"{number}.png").with_suffix(".txt").write_text(str(number))
    main([str(source), "--out", str(out), "--size", "8", "--val-fraction", str(val_fraction)])
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first == f"{expected[0]} pairs for training, {expected[1]} for validation in {out}" and said in second
    assert len(_pairs(out)) == num
    assert len(PairShards(find_shards([out / "train-000.tar"]))) == expected[0]
    if val_fraction and num > 1:
        pairs = PairShards([out / "val.tar"])
        nearest = min((f"{number}.png" for number in range(num)), key=position)
        assert [pairs.metadata(number)["id"] for number in range(len(pairs))] == [nearest]


def test_validation_is_by_hash_and_does_not_move(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    for number in range(60):
        _save(source / f"{number}.png").with_suffix(".txt").write_text(str(number))
    report = _build(source, tmp_path / "out", size=8, val_fraction=0.25)
    expected = {f"{number}.png" for number in range(60) if position(f"{number}.png") < 0.25}
    assert report.num_val == len(expected) > 5 and report.num_train == 60 - len(expected)
    (val,) = find_shards([tmp_path / "out" / "val.tar"])
    pairs = PairShards([val])
    assert {pairs.metadata(number)["id"] for number in range(len(pairs))} == expected
    (source / "0.png").unlink()
    (source / "0.txt").unlink()
    _build(source, tmp_path / "fewer", size=8, val_fraction=0.25)
    pairs = PairShards([tmp_path / "fewer" / "val.tar"])
    assert {pairs.metadata(number)["id"] for number in range(len(pairs))} == expected - {"0.png"}


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    for number in range(7):
        _save(source / f"{number}.png", colour=f"rgb({number}, 0, 0)").with_suffix(".txt").write_text(str(number))
    for out in ("one", "two"):
        _build(source, tmp_path / out, size=8, val_fraction=0.3)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["problems.jsonl", "train-000.tar", "val.tar"]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


def test_sources_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for source, said in (
        (tmp_path / "missing", "does not exist"),
        (_save(tmp_path / "picture.png"), "neither a folder nor a .csv, .jsonl or .parquet file"),
        (empty, "has no picture with a caption that can be used"),
    ):
        with pytest.raises(SystemExit, match=r"^2$"):
            main([str(source), "--out", str(tmp_path / "out")])
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert line.startswith("error: ") and said in line
    assert not list(tmp_path.glob("out/*.tar*"))
    _save(empty / "mute.png")
    with pytest.raises(DataError, match=r"the first of 1 problems: .*mute\.txt is missing"):
        _build(empty, tmp_path / "out")
    (tmp_path / "out" / "train-007.tar").touch()
    with pytest.raises(DataError, match=r"already holds train-007\.tar"):
        _build(empty, tmp_path / "out")


def test_options_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"size is 4; it must be in 8\.\.2048"):
        FolderOptions(source=tmp_path, out=tmp_path, size=4)
    with pytest.raises(DataError, match=r"val-fraction is 1\.0"):
        FolderOptions(source=tmp_path, out=tmp_path, val_fraction=1.0)


def test_a_list_of_another_program_is_not_replaced(tmp_path: Path) -> None:
    _save(tmp_path / "source" / "a.png")
    (tmp_path / "source" / "a.txt").write_text("red")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "problems.jsonl").write_text('{"mine": 1}\n')
    with pytest.raises(CannotWriteError, match=r"problems.jsonl is not a list of problems to be replaced"):
        build(FolderOptions(source=tmp_path / "source", out=tmp_path / "out", size=16))
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ['{"mine": 1}\n']
