"""What a batch in this process writes: pictures, manifests, archives, and OpenAI's result files."""

import base64
import hashlib
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from openai.types import ImagesResponse
from PIL import Image
from pyarrow import parquet

from dalle import DALLE
from dalle.images import load_image
from dalle.receipt import read_receipt
from dalle.verify import Verifier
from tests.support.batches import PROMPTS, contents, log_of, manifest, prompts_file, run
from training.pairs.shards import PairShards


def test_pictures_are_those_of_the_library(model_folder: Path, six: tuple[Path, Path]) -> None:
    _, out = six
    records = manifest(out)
    assert [(record["line"], record["index"]) for record in records] == [(i, k) for i in range(1, 7) for k in range(2)]
    assert [record["prompt"] for record in records[::2]] == PROMPTS
    model = DALLE.load(model_folder)
    for record in records[:3]:
        content = (out / record["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == record["sha256"]
        drawn = list(model.generate(record["prompt"], n=2, seed=record["seed"]))
        expected = next(picture for picture in drawn if picture.index == record["index"])
        assert read_receipt(out / record["file"]) == expected.receipt
        codes = b"".join(code.to_bytes(4, "little") for row in expected.receipt.codes for code in row)
        assert hashlib.sha256(codes).hexdigest() == record["codes_sha256"]
    table = parquet.read_table(out / "manifest.parquet").to_pylist()
    assert [row | {"parameters": json.loads(row["parameters"])} for row in table] == records
    assert {path.name for path in out.iterdir()} == {
        *("batch.json", "log.jsonl", "manifest.jsonl", "manifest.parquet", "pictures", "shards")
    }


def test_the_same_picture_twice_is_one_file(model_folder: Path, tmp_path: Path) -> None:
    items = [
        {"prompt": "a", "seed": 1},
        {"prompt": "a", "seed": 1, "n": 3},
        {"prompt": "a", "seed": 1, "first_index": 2},
    ]
    prompts = prompts_file(tmp_path, [*items, "{", items[0]])
    for size in (1, 100):
        out = tmp_path / f"out{size}"
        assert run(model_folder, prompts, out, plan={"shard_size": size}) == 3
        assert [record["index"] for record in manifest(out)] == [0, 0, 1, 2, 2, None, 0]
        assert len(list(out.glob("pictures/*/*"))) == 3
        assert sum(line["num_drawn"] for line in log_of(out) if line["event"] == "shard") == 3
        files = [record["file"] for record in manifest(out)]
        assert files[0] == files[1] == files[6] and files[3] == files[4]
        assert run(model_folder, prompts, out, plan={"shard_size": size}) == 3
        assert log_of(out)[-1]["event"] == "end" and len([1 for line in log_of(out) if line["event"] == "end"]) == 1


def test_invalid_lines_are_reported_and_skipped(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad: list[dict[str, Any] | str] = ["{", {"prompt": ""}, {"prompt": "a", "n": 0}, {"prompt": "b", "sed": 1}]
    items: list[dict[str, Any] | str] = [{"prompt": "x " * 40, "id": "long"}]
    items += [item for one in bad for item in (one, {"prompt": "a", "id": str(len(str(one)))})]
    prompts = prompts_file(tmp_path, items)
    with pytest.raises(ValueError, match=r"5 of 9 lines are invalid; nothing was drawn \(--strict\)"):
        run(model_folder, prompts, tmp_path / "out", strict=True)
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    assert run(model_folder, prompts, tmp_path / "out") == 3
    said = capsys.readouterr()
    assert "line 8 is invalid: unknown parameter 'sed'; did you mean seed?" in said.err
    assert f"invalid lines: 5, failed pictures: 0; see {tmp_path}/out/refused.jsonl" in said.out
    listed = [json.loads(line) for line in (tmp_path / "out/refused.jsonl").read_text().splitlines()]
    assert [one["line"] for one in listed] == [1, 2, 4, 6, 8]
    assert listed[0]["id"] == "long" and listed[0]["error_code"] == "invalid_prompt"
    assert len([record for record in manifest(tmp_path / "out") if record["error"] is None]) == 4
    # a line that was mended is drawn, and the list is gone when there is nothing to tell
    good = prompts_file(tmp_path, [item if item not in bad else {"prompt": "c"} for item in items[1:]])
    assert run(model_folder, good, tmp_path / "out") == 0
    assert not (tmp_path / "out/refused.jsonl").exists()


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_formats(image_format: str, model_folder: Path, tmp_path: Path) -> None:
    prompts = prompts_file(
        tmp_path, [{"prompt": "a"}, {"prompt": "b", "output_format": "png"}, {"prompt": "a", "output_compression": 5}]
    )
    assert run(model_folder, prompts, tmp_path / "out", plan={"image_format": image_format}) == 0
    kinds = []
    for record in manifest(tmp_path / "out"):
        with Image.open(tmp_path / "out" / record["file"]) as image:
            kinds.append((image.format or "").lower())
            assert image.size == (16, 16)
    assert kinds == [image_format, "png", image_format]


def test_webdataset_archives_are_what_training_reads(
    model_folder: Path, six: tuple[Path, Path], tmp_path: Path
) -> None:
    prompts, done = six
    out = tmp_path / "out"
    assert run(model_folder, prompts, out, plan={"n": 2, "layout": "tar"}) == 0
    assert [path.name for path in sorted(out.glob("pictures/*"))] == ["000000.tar", "000001.tar", "000002.tar"]
    with tarfile.open(out / "pictures/000000.tar") as archive:
        names = archive.getnames()
        assert len(names) == 8 and names[0].endswith(".png") and names[1].endswith(".json")
        member = archive.extractfile(names[0])
        assert member is not None
        assert member.read() == (done / manifest(done)[0]["file"]).read_bytes()
    pairs = PairShards(sorted(out.glob("pictures/*.tar")))
    assert len(pairs) == 12
    before = contents(out)
    (out / "pictures/000001.tar").write_bytes((out / "pictures/000001.tar").read_bytes()[:3000])
    assert run(model_folder, prompts, out, plan={"n": 2, "layout": "tar"}) == 0
    assert contents(out) == before


def test_openai_lines_are_answered_in_kind(model_folder: Path, tmp_path: Path) -> None:
    def line(name: str, **body: Any) -> dict[str, Any]:
        return {"custom_id": name, "method": "POST", "url": "/v1/images/generations", "body": body}

    items = [
        line("one", prompt="a red panda", n=2, seed=5, model="lively"),
        line("two", prompt="a", response_format="url", return_codes=True),
        line("bad", prompt="a", sed=1),
        line("edit", prompt="a") | {"url": "/v1/images/edits"},
    ]
    out = tmp_path / "out"
    assert run(model_folder, prompts_file(tmp_path, items), out) == 3
    answers = [json.loads(text) for text in (out / "openai_output.jsonl").read_text().splitlines()]
    assert [answer["custom_id"] for answer in answers] == ["one", "two"]
    assert all(answer["response"]["status_code"] == 200 and answer["error"] is None for answer in answers)
    one, two = (ImagesResponse.model_validate(answer["response"]["body"]) for answer in answers)
    assert one.data is not None and two.data is not None and one.usage is not None
    files = [(out / record["file"]).read_bytes() for record in manifest(out) if record["id"] == "one"]
    assert [base64.b64decode(data.b64_json or "") for data in one.data] == files
    assert two.data[0].url == manifest(out)[2]["file"]
    assert one.usage.output_tokens == 32
    errors = [json.loads(text) for text in (out / "openai_errors.jsonl").read_text().splitlines()]
    assert [(error["custom_id"], error["response"]["status_code"]) for error in errors] == [("bad", 400), ("edit", 400)]
    assert errors[0]["response"]["body"]["error"]["param"] == "sed"


def test_dry_run_counts_and_draws_nothing(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = prompts_file(tmp_path, [{"prompt": "a", "n": 5}, {"prompt": "b", "guidance_scale": 1}, {"prompt": ""}])
    assert run(model_folder, prompts, tmp_path / "out", dry_run=True) == 3
    said = capsys.readouterr().out
    assert "2 prompts, 6 pictures, 6 of them to be drawn" in said
    assert " s with one worker" in said and "kB" in said
    assert not (tmp_path / "out").exists()


def test_pictures_of_a_multiple_of_the_models_size_are_enlarged(model_folder: Path, tmp_path: Path) -> None:
    items = [{"prompt": "a", "seed": 1, "size": size} for size in ("auto", "64x64", "16x16", "100x100")]
    prompts, out = prompts_file(tmp_path, items), tmp_path / "out"
    assert run(model_folder, prompts, out) == 3
    *drawn, refused = manifest(out)
    assert "the model lively draws 16x16" in refused["error"]
    assert drawn[0]["file"] == drawn[2]["file"] != drawn[1]["file"] and drawn[0]["codes"] == drawn[1]["codes"]
    assert [load_image(out / record["file"]).size for record in drawn] == [(16, 16), (64, 64), (16, 16)]
    verifier = Verifier(model=model_folder, resample=True)
    assert [verifier.verify(out / record["file"]).kind for record in drawn] == ["good"] * 3
    before = contents(out)
    shutil.rmtree(out / "shards")
    assert run(model_folder, prompts, out) == 3
    assert contents(out) == before
    assert sum(line.get("num_drawn", 0) for line in log_of(out)[-2:]) == 0, "the receipts had the codes"
