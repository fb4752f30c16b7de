"""Lines of files of prompts: how they are read and validated."""

import base64
import csv
import json
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from pyarrow import parquet

from dalle import DALLE
from dalle.checkpoint import load_facts
from dalle.errors import DataError
from serving.batch.items import InvalidLine, Item
from serving.batch.plan import FIELDS, Planner, PlanSettings, item_seed
from serving.batch.prompts import Line, read_prompts
from tests.support.batches import manifest, prompts_file, run
from tests.support.service import service


@pytest.fixture(scope="module")
def planner(model_folder: Path) -> Planner:
    return Planner(load_facts(model_folder), "lively", PlanSettings())


def invalid_line(planner: Planner, fields: dict[str, Any]) -> InvalidLine:
    entry = planner.entry(Line(number=7, fields=fields))
    assert isinstance(entry, InvalidLine), entry
    return entry


def test_every_kind_of_file_says_the_same(tmp_path: Path) -> None:
    items: list[dict[str, Any]] = [
        {"prompt": 'a "red", panda', "id": "x", "n": 2, "temperature": 0.5},
        {"prompt": "판다 🐼", "seed": 3},
    ]
    columns = ["prompt", "id", "n", "temperature", "seed"]
    with open(tmp_path / "p.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(items)
    parquet.write_table(
        pa.table({name: [item.get(name) for item in items] for name in columns}), tmp_path / "p.parquet"
    )
    prompts_file(tmp_path, items, "p.jsonl")
    read = {
        kind: [line.fields for line in read_prompts(f"{tmp_path}/p.{kind}", FIELDS)]
        for kind in ("jsonl", "csv", "parquet")
    }
    assert read["jsonl"] == items == read["parquet"]
    assert read["csv"] == [{name: str(value) for name, value in item.items()} for item in items]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("index", [None, "key", "id"])
def test_tables_that_pandas_wrote(kind: str, index: str | None, tmp_path: Path) -> None:
    """An index without a name is left out, and so is one that Parquet names; one of a known name is a field."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"prompt": ["a fish", "판다"], "id": ["x", "y"], "key": [7, 8]})
    frame = frame.drop(columns="key").iloc[::-1].iloc[::-1] if index is None else frame.set_index(index)
    frame = frame.drop(columns="key", errors="ignore")
    path = tmp_path / f"p.{kind}"
    frame.to_csv(path) if kind == "csv" else frame.to_parquet(path)
    if (kind, index) == ("csv", "key"):
        with pytest.raises(DataError, match=r"p\.csv: unknown column 'key'; known columns are"):
            list(read_prompts(str(path), FIELDS))
        return
    fields = [line.fields for line in read_prompts(str(path), FIELDS)]
    assert fields == [{"prompt": "a fish", "id": "x"}, {"prompt": "판다", "id": "y"}]


def test_an_index_that_was_written_twice(tmp_path: Path) -> None:
    lines = [",Unnamed: 0,prompt,id,", "0,0,a fish,x,", '1,1,"a, b",y,', "2,2,c,z,more"]
    (tmp_path / "p.csv").write_text("\n".join(lines))
    first, second, third = read_prompts(f"{tmp_path}/p.csv", FIELDS)
    assert [first.fields, second.fields] == [{"prompt": "a fish", "id": "x"}, {"prompt": "a, b", "id": "y"}]
    assert third.fault == "the cell 'more' is in a column without a name"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_encodings_of_windows(encoding: str, tmp_path: Path) -> None:
    for kind, text in (("txt", "a 판다\r\n"), ("csv", "prompt\r\na 판다\r\n"), ("jsonl", '{"prompt": "a 판다"}')):
        (tmp_path / f"p.{kind}").write_text(text, encoding=encoding, newline="")
        (line,) = read_prompts(f"{tmp_path}/p.{kind}", FIELDS)
        assert line.fields == {"prompt": "a 판다"}
    (tmp_path / "p.txt").write_bytes("a fish\n".encode("utf-16") + b"\x00\xd8\n\x00" + "b".encode("utf-16-le"))
    lines = list(read_prompts(f"{tmp_path}/p.txt", FIELDS))
    assert [line.fault for line in lines] == [None, "the line is not UTF-16", None]
    (tmp_path / "p.txt").write_bytes("a fish\n".encode("utf-16") + b"x")
    with pytest.raises(DataError, match=r"p\.txt cannot be read: .* truncated data"):
        list(read_prompts(f"{tmp_path}/p.txt", FIELDS))


def test_a_bad_row_of_parquet_takes_no_other_with_it(tmp_path: Path) -> None:
    bad = pa.StringArray.from_buffers(3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc"))
    parquet.write_table(pa.table({"prompt": bad}), tmp_path / "p.parquet")
    first, second, third = read_prompts(f"{tmp_path}/p.parquet", FIELDS)
    assert (first.fields, third.fields) == ({"prompt": "a"}, {"prompt": "c"})
    assert second.number == 2 and "the row has a value that cannot be read" in (second.fault or "")


def test_lines_are_numbered_as_an_editor_does(tmp_path: Path) -> None:
    prompts_file(tmp_path, ["", "one", "  ", "two"], "p.txt")
    assert [(line.number, line.fields["prompt"]) for line in read_prompts(f"{tmp_path}/p.txt", FIELDS)] == [
        (2, "one"),
        (4, "two"),
    ]
    (tmp_path / "p.csv").write_text('prompt,id\n"two\nlines",1\n\nthree,3,more\nfour,4\n')
    lines = list(read_prompts(f"{tmp_path}/p.csv", FIELDS))
    assert [line.number for line in lines] == [2, 5, 6]
    assert lines[1].fault == "the line has 3 cells, but the header has 2"
    assert lines[2].fields == {"prompt": "four", "id": "4"}


def test_a_bad_line_takes_no_other_with_it(tmp_path: Path) -> None:
    bad = [
        b"{",
        b"[1]",
        b'"x"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"prompt": "' + b"x" * 2**21 + b'"}',
        b"1" * 5000,
        b"nul\0l",
    ]
    good = b'{"prompt": "a fish"}'
    (tmp_path / "p.jsonl").write_bytes(b"\n".join([line for one in bad for line in (one, good)]))
    lines = list(read_prompts(f"{tmp_path}/p.jsonl", FIELDS))
    assert [line.number for line in lines] == list(range(1, 2 * len(bad) + 1))
    assert all(line.fields == {"prompt": "a fish"} and line.fault is None for line in lines[1::2])
    assert all(line.fault and len(line.fault) < 200 for line in lines[::2])


def test_the_limit_of_nesting_does_not_depend_on_the_caller(tmp_path: Path) -> None:
    """Brackets in strings do not count, and a string without an end takes no more than linear time."""
    lines = [
        '{"prompt": ' + "[" * 99 + "]" * 99 + "}",
        '{"prompt": ' + '{"x":[' * 50 + "1" + "]}" * 50 + "}",
        json.dumps({"prompt": '[{\\"' * 500}),
        '{"prompt": "' + '[\\"' * 200_000,
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    read = [list(read_prompts(f"{tmp_path}/p.jsonl", FIELDS)), in_deep_stack(tmp_path / "p.jsonl", 600)]
    assert read[0] == read[1]
    first, second, third, fourth = read[0]
    assert first.fault is None and first.fields["prompt"]
    assert second.fault == "the line is not valid JSON: it is nested 101 levels deep; the limit is 100"
    assert third.fields["prompt"] == '[{\\"' * 500
    assert "Unterminated string" in (fourth.fault or "")


def in_deep_stack(path: Path, depth: int) -> list[Line]:
    return in_deep_stack(path, depth - 1) if depth else list(read_prompts(str(path), FIELDS))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.doc", b"", "has an unknown extension"),
        ("none.txt", None, "none.txt cannot be read"),
        ("p.csv", b"text\na fish\n", "there is no column 'prompt'"),
        ("p.csv", b"prompt,prompt\n", "column names must be unique"),
        ("p.csv", b"prompt,tempature\na,1\n", "unknown column 'tempature'; did you mean temperature?"),
        ("p.parquet", b"no parquet", "p.parquet cannot be read"),
        ("p.txt", b"\n", "there are no prompts in"),
    ],
)
def test_a_file_of_no_use_is_a_mistake(
    name: str, content: bytes | None, message: str, model_folder: Path, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        run(model_folder, tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({}, "missing_required_parameter", "prompt is missing"),
        ({"prompt": ""}, "invalid_prompt", "the prompt is empty"),
        ({"prompt": "word " * 50}, "invalid_prompt", "the limit is 11"),
        ({"prompt": "a", "n": 0}, "invalid_value", "n is 0; it must be at least 1"),
        ({"prompt": "a", "n": 1001}, "invalid_value", "n is 1001; the limit is 1000"),
        ({"prompt": "a", "sed": 1}, "unknown_parameter", "unknown parameter 'sed'; did you mean seed?"),
        ({"prompt": "a", "num_inference_steps": 9}, "unsupported_parameter", "steps are a parameter of diffusion"),
        ({"prompt": "a", "stream": True}, "unsupported_parameter", "a batch does not stream"),
        ({"prompt": "a", "size": "9x9"}, "invalid_value", "the model lively draws 16x16"),
        ({"prompt": "a", "model": "other"}, "model_not_found", "there is no model 'other' here"),
        ({"prompt": "a", "temperature": 1e-9}, "invalid_value", "temperature is 1e-09"),
        ({"prompt": "a", "output_compression": 5}, "invalid_value", "png is lossless"),
        (
            {"prompt": "a", "guidance_scale": 1, "negative_prompt": "b"},
            "invalid_value",
            "guidance_scale must be above 1",
        ),
        ({"prompt": "a\0b"}, "invalid_prompt", "NUL"),
        ({"prompt": "a", "n": True}, "invalid_value", "n is true; it must be an integer"),
        ({"prompt": "a", "id": [1]}, "invalid_value", "id"),
        ({"prompt": 5}, "invalid_value", "prompt is 5"),
    ],
)
def test_an_invalid_line_has_a_code_and_a_reason(
    planner: Planner, fields: dict[str, Any], code: str, message: str
) -> None:
    invalid = invalid_line(planner, fields)
    assert (invalid.code, invalid.line) == (code, 7)
    assert message in invalid.message


def test_a_line_and_a_request_mean_the_same(model_folder: Path, planner: Planner, tmp_path: Path) -> None:
    """Both reject the same fields with the same messages, and draw the same bytes."""
    bodies: list[dict[str, Any]] = [
        {"prompt": "a", "sed": 1},
        {"prompt": ""},
        {"prompt": "a", "n": 0},
        {"prompt": "a", "size": "9x9"},
        {"prompt": "a", "top_p": 2},
        {"prompt": "a", "negative_prompt": "b", "guidance_scale": 1},
        {"prompt": "a", "style": "vivid"},
    ]
    with service(DALLE.load(model_folder)) as one, httpx.Client() as client:
        for body in bodies:
            error = client.post(one.url + "/v1/images/generations", json=body).json()["error"]
            invalid = invalid_line(planner, body)
            assert (error["code"], error["message"]) == (invalid.code, invalid.message.replace("id, ", ""))
        good = {"prompt": "a red panda", "seed": 5, "n": 2, "first_index": 3, "top_k": 9, "negative_prompt": "a fish"}
        answer = client.post(one.url + "/v1/images/generations", json=good).json()
    prompts = prompts_file(tmp_path, [good])
    assert run(model_folder, prompts, tmp_path / "out") == 0
    files = [(tmp_path / "out" / record["file"]).read_bytes() for record in manifest(tmp_path / "out")]
    assert files == [base64.b64decode(one["b64_json"]) for one in answer["data"]]


def test_a_seed_that_is_not_given_is_a_function_of_the_id(planner: Planner) -> None:
    def item(number: int, **fields: Any) -> Item:
        entry = planner.entry(Line(number=number, fields={"prompt": "a", **fields}))
        assert isinstance(entry, Item)
        return entry

    assert item(1).seed == item_seed(0, "line-1") == 756455318 != item(2).seed
    assert item(1, id="x").seed == item(2, id="x").seed == item_seed(0, "x")
    assert item(1, seed=0).seed == 0
