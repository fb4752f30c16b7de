"""Batches with lines, files and folders that could damage others, or the files that already exist."""

import base64
import json
import shutil
import tarfile
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import typer
from PIL import Image
from pyarrow import parquet
from typer.testing import CliRunner

from dalle.checkpoint import load_facts
from dalle.errors import DalleError
from serving.batch.__main__ import batch
from serving.batch.items import InvalidLine, Item
from serving.batch.merge import merge
from serving.batch.plan import FIELDS, Planner, PlanSettings
from serving.batch.prompts import Line, read_prompts
from serving.batch.storage import LocalStorage, StorageError
from tests.support.batches import PROMPTS, contents, log_of, manifest, prompts_file, run


@pytest.fixture(scope="module")
def planner(model_folder: Path) -> Planner:
    return Planner(load_facts(model_folder), "lively", PlanSettings())


def entry(planner: Planner, **fields: Any) -> Item | InvalidLine:
    return planner.entry(Line(number=7, fields=fields))


def num_drawn(out: Path) -> int:
    return sum(line["num_drawn"] for line in log_of(out) if line["event"] == "shard")


def openai(name: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": "/v1/images/generations", "body": body}


# -- lines


def test_what_ends_a_line_elsewhere_ends_none_here(model_folder: Path, tmp_path: Path) -> None:
    prompts = ["a\u2028fish", "a\u2029fish", "a\x85fish", "a\x1cfish"]
    file = prompts_file(tmp_path, [openai(f"x\u2028{prompt}", prompt=prompt) for prompt in prompts])
    assert run(model_folder, file, tmp_path / "out") == 0
    for name in ("manifest.jsonl", "openai_output.jsonl", "shards/000000.jsonl"):
        lines = (tmp_path / "out" / name).read_text(encoding="utf-8").splitlines()
        assert len([json.loads(line) for line in lines if "prompt" in line or "custom_id" in line]) == 4
    assert [record["prompt"] for record in manifest(tmp_path / "out")] == prompts
    assert [record["id"] for record in manifest(tmp_path / "out")] == [f"x\u2028{prompt}" for prompt in prompts]
    before = contents(tmp_path / "out")
    assert run(model_folder, file, tmp_path / "out") == 0
    assert contents(tmp_path / "out") == before and num_drawn(tmp_path / "out") == 4


def test_a_line_that_cannot_be_written_is_invalid(model_folder: Path, tmp_path: Path) -> None:
    depths = [100, 500, 800, 900, 950, 970, 980, 985, 990, 995, 2000]
    bad = [
        r'{"prompt": "a", "id": "\ud800"}',
        r'{"prompt": "a", "\ud800": 1}',
        r'{"prompt": "\udc00"}',
        r'{"prompt": "a", "model": "\udc00"}',
        r'{"custom_id": "\ud800", "method": "\ud800", "url": "x", "body": {}}',
        json.dumps({"prompt": "a", "x" * 10**5: 1}),
        json.dumps({"prompt": "a", "id": "x" * 1001}),
        *('{"prompt": ' + "[" * depth + "]" * depth + "}" for depth in depths),
        *('{"prompt": "a", "n": ' + '{"x":' * depth + "1" + "}" * depth + "}" for depth in depths),
    ]
    prompts = prompts_file(tmp_path, [item for one in bad for item in (one, {"prompt": "a", "seed": 1})])
    assert run(model_folder, prompts, tmp_path / "out") == 3
    records = manifest(tmp_path / "out")
    assert all(record["error"] is None for record in records[1::2])
    assert all(record["error"] and len(record["error"]) <= 1000 for record in records[::2])
    assert len(records) == 2 * len(bad)


def test_a_quote_that_is_not_closed_takes_no_line_with_it(tmp_path: Path) -> None:
    items = ["prompt,id", '"open,1', "good,2", '"two', 'lines",4', 'a 5" pizza,5', '"q"x,6', '"never,7', "last,8"]
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "p.csv").write_bytes(end.join(items).encode())
        lines = list(read_prompts(f"{tmp_path}/p.csv", FIELDS))
        assert [(line.number, line.fields.get("id")) for line in lines] == [
            (2, None),
            (3, "2"),
            (4, "4"),
            (6, "5"),
            (7, None),
            (8, None),
            (9, "8"),
        ]
        assert lines[2].fields["prompt"] == f"two{end}lines"
        assert all((line.fault or "").startswith("the line is not valid CSV") for line in (lines[0], *lines[4:6]))
    (tmp_path / "p.csv").write_text('"prompt\na fish\n')
    with pytest.raises(DalleError, match="the header is not valid CSV"):
        list(read_prompts(f"{tmp_path}/p.csv", FIELDS))
    (tmp_path / "p.csv").write_text("prompt,id\n" + "x" * 3 * 2**20 + ",1\na fish,2\n")
    long, short = read_prompts(f"{tmp_path}/p.csv", FIELDS)
    assert "more than 1048576 characters" in (long.fault or "") and short.number == 3


def test_ids_of_tables_are_kept(planner: Planner, tmp_path: Path) -> None:
    table = pa.table({"prompt": [b"a", b"b", b"c"], "id": [7.0, None, 1e15], "seed": [1.0, float("nan"), 2.0]})
    parquet.write_table(table, tmp_path / "p.parquet")
    entries = [planner.entry(line) for line in read_prompts(f"{tmp_path}/p.parquet", FIELDS)]
    assert [one.id for one in entries] == ["7", "line-2", "1000000000000000"]
    assert [one.prompt for one in entries] == ["a", "b", "c"]
    named = entry(planner, prompt="a", id="x" * 1000)
    assert named.id == "x" * 1000
    invalid = entry(planner, prompt="a", id="x" * 1001)
    assert isinstance(invalid, InvalidLine) and "the limit is 1000" in invalid.message


def test_a_negative_prompt_at_fault_is_named(planner: Planner) -> None:
    invalid = entry(planner, prompt="a", negative_prompt="word " * 50)
    assert isinstance(invalid, InvalidLine)
    assert invalid.param == "negative_prompt" and "the negative prompt" in invalid.message


def test_the_lowest_quality_is_drawn(model_folder: Path, tmp_path: Path) -> None:
    item = {"prompt": "a", "output_format": "jpeg", "output_compression": 0}
    assert run(model_folder, prompts_file(tmp_path, [item]), tmp_path / "out") == 0


# -- files of prompts


def test_only_a_corrected_line_is_drawn(model_folder: Path, tmp_path: Path) -> None:
    """Also if there are no receipts with the codes of the other lines, and the line has several pictures."""
    items: list[dict[str, Any] | str] = [{"prompt": prompt} for prompt in PROMPTS]
    bad: list[dict[str, Any] | str] = ["{", {"prompt": "", "n": 2}]
    options: dict[str, Any] = {"plan": {"n": 3, "shard_size": 6, "layout": "codes"}}
    assert run(model_folder, prompts_file(tmp_path, [*bad, *items]), tmp_path / "out", **options) == 3
    good: list[dict[str, Any] | str] = [{"prompt": "a"}, {"prompt": "b", "n": 2}]
    before = num_drawn(tmp_path / "out")
    assert before == 3 * len(items)
    assert run(model_folder, prompts_file(tmp_path, [*good, *items]), tmp_path / "out", **options) == 0
    assert num_drawn(tmp_path / "out") == before + 5


def test_another_batch_is_not_written_over(model_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"plan": {"layout": "tar"}}
    assert run(model_folder, prompts_file(tmp_path, PROMPTS, "p.txt"), tmp_path / "out", **options) == 0
    before = contents(tmp_path / "out")
    with pytest.raises(DalleError, match=r"none of the pictures in .* belongs to these prompts: choose another folder"):
        run(model_folder, prompts_file(tmp_path, ["other"], "q.txt"), tmp_path / "out", **options)
    assert contents(tmp_path / "out") == before


def test_prompts_that_vanish_stop_the_run_with_a_reason(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = prompts_file(tmp_path, [{"prompt": "a", "n": 100}]), tmp_path / "out"

    def remove() -> None:
        while not list(out.glob("pictures/*/*.png")):
            pass
        prompts.unlink()

    thread = threading.Thread(target=remove)
    thread.start()
    assert run(model_folder, prompts, out) == 4
    thread.join()
    assert "prompts.jsonl cannot be read" in capsys.readouterr().err
    assert run(model_folder, prompts_file(tmp_path, [{"prompt": "a", "n": 100}]), out) == 0
    assert num_drawn(out) == 100


def test_dry_run_measures_full_slots(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = prompts_file(tmp_path, [openai("x", prompt="a", n=50)])
    assert run(model_folder, prompts, tmp_path / "out", dry_run=True, num_slots=8) == 0
    assert "measured by drawing 4 pictures" in capsys.readouterr().out


def test_more_pictures_than_a_prompt_may_have_are_a_mistake() -> None:
    app = typer.Typer()
    app.command()(batch)
    done = CliRunner().invoke(app, ["p.txt", "--out", "out", "--n", "1001"])
    assert done.exit_code == 2 and "be less than or equal to 1000" in done.output


def test_a_request_without_a_custom_id_is_invalid(tmp_path: Path) -> None:
    items = [{name: value for name, value in openai("x", prompt="a").items() if name != "custom_id"}]
    items += [openai("", prompt="a"), openai("x", prompt="a") | {"custom_id": 5}]
    for line in read_prompts(str(prompts_file(tmp_path, items)), FIELDS):
        assert line.openai and line.fault == "the request has no custom_id, or one that is not a text"


def test_a_custom_id_names_one_request(tmp_path: Path) -> None:
    items = [openai("x", prompt="a"), openai("y", prompt="a"), openai("x", prompt="b"), openai("x", prompt="c")]
    lines = [*read_prompts(str(prompts_file(tmp_path, items)), FIELDS)]
    assert [line.fault for line in lines[:2]] == [None, None]
    assert [line.fault for line in lines[2:]] == ["the custom_id is already used in line 1"] * 2
    assert all(line.openai and line.fields["id"] == "x" for line in lines[2:])


def test_progress_of_reading_a_long_file_is_printed(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.batch.progress.LINE_SECONDS", 0)
    prompts, out = prompts_file(tmp_path, [{"prompt": "a"}] * 3), tmp_path / "out"
    for first in ("reading the prompts", "checking existing pictures"):
        assert run(model_folder, prompts, out, plan={"shard_size": 1}) == 0
        told = capsys.readouterr().err
        assert [f"{first}: {number} lines" in told for number in (1, 2, 3)] == [True] * 3
        assert "merging the manifests: 3 of 3 lines" in told


def test_options_that_need_ray_are_not_ignored(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(batch)
    done = CliRunner(env={"RAY_ADDRESS": ""}).invoke(app, ["p.txt", "--out", str(tmp_path), "--workers", "2"])
    assert done.exit_code == 2 and "--workers and --gpus need Ray" in done.output


# -- the folder


def test_without_pictures_there_is_no_contact_sheet(model_folder: Path, tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path, [{"prompt": ""}])
    assert run(model_folder, prompts, tmp_path / "out", contact_sheet=True, gallery=True) == 3
    assert not (tmp_path / "out/contact-sheet.png").exists() and not (tmp_path / "out/.work").exists()


def test_files_of_others_stay(model_folder: Path, tmp_path: Path) -> None:
    prompts, out = prompts_file(tmp_path, PROMPTS, "p.txt"), tmp_path / "ein Ordner/한국 #1"
    assert run(model_folder, prompts, out) == 0
    for name in ("shards/mine.jsonl", "pictures/all.tar", "pictures/2024.tar", "gallery/mine.js"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("")
    assert run(model_folder, prompts, out, gallery=True) == 0
    assert (out / "shards/mine.jsonl").exists() and len(list(out.glob("pictures/*.tar"))) == 2
    assert (out / "gallery/mine.js").exists()


@pytest.mark.parametrize("part", ["text", "end", "manifest"])
def test_every_byte_of_an_archive_is_compared(part: str, model_folder: Path, tmp_path: Path) -> None:
    prompts, out = prompts_file(tmp_path, PROMPTS, "p.txt"), tmp_path / "out"
    assert run(model_folder, prompts, out, plan={"layout": "tar"}) == 0
    before = contents(out)
    path = out / "pictures/000000.tar"
    match part:
        case "text":
            path.write_bytes(path.read_bytes().replace(b"a red panda", b"a bad panda"))
        case "end":
            path.write_bytes(path.read_bytes()[:-512])
        case "manifest":
            path = out / "shards/000000.jsonl"
            path.write_bytes(path.read_bytes().replace(b'"software": "dalle', b'"software": "dolle', 1))
    assert contents(out) != before
    assert run(model_folder, prompts, out, plan={"layout": "tar"}) == 0
    assert contents(out) == before and num_drawn(out) == 6
    with tarfile.open(out / "pictures/000000.tar") as archive:
        assert len(archive.getnames()) == 8


def test_no_result_is_written_for_a_missing_picture(model_folder: Path, planner: Planner, tmp_path: Path) -> None:
    prompts, out = prompts_file(tmp_path, [openai("x", prompt="a")]), tmp_path / "out"
    assert run(model_folder, prompts, out, plan={"shard_size": 64}) == 0
    (out / manifest(out)[0]["file"]).unlink()
    storage = LocalStorage(out)
    storage.prepare()
    with pytest.raises(StorageError, match="is missing or damaged: it has changed since it was written"):
        merge(storage, planner.shards(read_prompts(str(prompts), FIELDS)))
    shutil.rmtree(out / ".work")
    assert run(model_folder, prompts, out, plan={"shard_size": 64}) == 0


def test_answers_of_archives(model_folder: Path, tmp_path: Path) -> None:
    prompts, out = prompts_file(tmp_path, [openai("x", prompt="a", n=3)]), tmp_path / "out"
    assert run(model_folder, prompts, out, plan={"layout": "tar"}) == 0
    answer = json.loads((out / "openai_output.jsonl").read_text())
    for data in answer["response"]["body"]["data"]:
        with Image.open(BytesIO(base64.b64decode(data["b64_json"]))) as image:
            assert image.size == (16, 16)
