"""Offline batches in this process: what is written, where, and what is done again."""

import base64
import hashlib
import json
import shutil
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai.types import ImagesResponse
from PIL import Image
from pyarrow import parquet

from dalle import DALLE
from dalle.checkpoint import load_checkpoint, save_checkpoint
from dalle.errors import DalleError, ParameterError
from dalle.images import contact_sheet as sheet_of
from dalle.images import load_image
from dalle.receipt import read_receipt
from dalle.verify import Verifier
from dalle.vq.vqgan import ImageTokenizer
from serving.batch.credentials import Credentials
from serving.batch.plan import PlanSettings
from serving.batch.storage import LocalStorage, StorageError, open_storage
from tests.support.batches import PROMPTS, contents, log_of, manifest, prompts_file, run
from tests.support.certificates import write_certificate
from training.pairs.shards import PairShards


@pytest.fixture(scope="module")
def six(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file of prompts, and the folder of its batch."""
    folder = tmp_path_factory.mktemp("six")
    prompts = prompts_file(folder, PROMPTS, "six.txt")
    assert run(model_folder, prompts, folder / "out", plan={"n": 2}) == 0
    return prompts, folder / "out"


# -- what is written


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


def test_a_batch_that_is_done_is_not_touched(model_folder: Path, six: tuple[Path, Path], tmp_path: Path) -> None:
    prompts, done = six
    out = shutil.copytree(done, tmp_path / "out")
    assert run(model_folder, prompts, out, plan={"n": 2}) == 0
    assert contents(out) == contents(done)
    assert log_of(out)[-1] == log_of(done)[-1], "nothing was drawn"


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "empty", "manifest", "record", "merged"])
def test_what_is_missing_or_damaged_is_made_again(
    damage: str, model_folder: Path, six: tuple[Path, Path], tmp_path: Path
) -> None:
    prompts, done = six
    out = shutil.copytree(done, tmp_path / "out")
    picture, shard = out / manifest(out)[3]["file"], out / "shards/000001.jsonl"
    content = picture.read_bytes()
    match damage:
        case "gone":
            picture.unlink()
        case "cut":
            picture.write_bytes(content[:-20])
        case "flipped":
            picture.write_bytes(content[:-30] + bytes([content[-30] ^ 1]) + content[-29:])
        case "empty":
            picture.write_bytes(b"")
        case "manifest":
            shard.write_bytes(shard.read_bytes()[:-50])
        case "record":
            shard.write_text(shard.read_text(encoding="utf-8").replace('"index": 0', '"index": 9'), encoding="utf-8")
        case "merged":
            (out / "manifest.jsonl").unlink()
            (out / "manifest.parquet").write_bytes(b"")
    assert run(model_folder, prompts, out, plan={"n": 2}) == 0
    assert contents(out) == contents(done)
    assert not [line for line in log_of(out)[6:] if line.get("num_drawn")], "its codes were known: nothing is drawn"


def test_a_changed_line_leaves_the_others_alone(model_folder: Path, six: tuple[Path, Path], tmp_path: Path) -> None:
    _, done = six
    out = shutil.copytree(done, tmp_path / "out")
    changed = [*PROMPTS[:2], "a blue heart", *PROMPTS[3:], "a fish"]
    assert run(model_folder, prompts_file(tmp_path, changed, "p.txt"), out, plan={"n": 2}) == 0
    assert sum(line.get("num_drawn", 0) for line in log_of(out)[-4:] if line["event"] == "shard") == 4
    assert [record["prompt"] for record in manifest(out)[::2]] == changed
    # and fewer lines leave no shard behind
    assert run(model_folder, prompts_file(tmp_path, PROMPTS[:1], "p.txt"), out, plan={"n": 2}) == 0
    assert len(manifest(out)) == 2
    assert len(list((out / "shards").iterdir())) == 1


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


def test_refused_lines_are_told_and_the_rest_is_drawn(
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


def test_backgrounds_of_rows_and_of_the_batch(clear_folder: Path, clear: DALLE, tmp_path: Path) -> None:
    items: list[dict[str, Any]] = [
        {"prompt": "a"},
        {"prompt": "a", "background": "transparent", "seed": 3},
        {"prompt": "a", "background": "auto", "seed": 3},
        {"prompt": "a", "background": "opaque", "seed": 3},
        {"prompt": "a", "output_format": "webp", "background": "auto"},
        {"prompt": "a", "output_format": "jpeg"},
        {"prompt": "a", "output_format": "jpeg", "background": "transparent"},
    ]
    prompts, out = prompts_file(tmp_path, items), tmp_path / "out"
    assert run(clear_folder, prompts, out, plan={"background": "opaque"}) == 3
    *drawn, refused = manifest(out)
    told, modes = [], []
    for record in drawn:
        told.append(record["parameters"]["background"])
        with Image.open(out / record["file"]) as image:
            modes.append(image.mode)
    assert told == ["opaque", "transparent", "transparent", "opaque", "transparent", "opaque"]
    assert modes == [{"opaque": "RGB", "transparent": "RGBA"}[one] for one in told]
    assert drawn[1]["file"] == drawn[2]["file"] != drawn[3]["file"], "auto and transparent are the very same picture"
    assert drawn[1]["codes"] == drawn[3]["codes"]
    assert refused["error_code"] == "invalid_value" and "jpeg has no transparency" in refused["error"]
    for record in drawn[:4]:
        (expected,) = clear.generate("a", seed=record["seed"], background=record["parameters"]["background"])
        assert read_receipt(out / record["file"]) == expected.receipt
    verifier = Verifier(model=clear_folder)
    assert [verifier.verify(path).kind for path in sorted(out.glob("pictures/*/*.png"))] == ["good"] * 3


@pytest.mark.parametrize("layout", ["files", "tar", "codes"])
def test_a_batch_with_transparency_goes_on_where_it_was_stopped(
    layout: str, clear_folder: Path, tmp_path: Path
) -> None:
    prompts, out = prompts_file(tmp_path, PROMPTS, "six.txt"), tmp_path / "out"
    plan = {"layout": layout}
    assert run(clear_folder, prompts, out, plan=plan) == 0
    before = contents(out)
    shutil.rmtree(out / "shards")
    (out / "manifest.jsonl").unlink()
    assert run(clear_folder, prompts, out, plan=plan) == 0
    assert contents(out) == before
    if layout == "files":
        assert sum(line.get("num_drawn", 0) for line in log_of(out)[-2:]) == 0, "the receipts had the codes"
    with pytest.raises(StorageError, match="has a batch with background auto, and this one has opaque"):
        run(clear_folder, prompts, out, plan=plan | {"background": "opaque"})


@pytest.mark.parametrize(("image_format", "told"), [("webp", "transparent"), ("jpeg", "opaque")])
def test_pictures_without_receipts_are_drawn_again_with_their_backgrounds(
    image_format: str, told: str, clear_folder: Path, tmp_path: Path
) -> None:
    prompts = prompts_file(tmp_path, [{"prompt": "a"}, {"prompt": "b", "background": "opaque"}, {"prompt": "c"}])
    out, plan = tmp_path / "out", {"image_format": image_format}
    assert run(clear_folder, prompts, out, plan=plan) == 0
    assert [record["parameters"]["background"] for record in manifest(out)] == [told, "opaque", told]
    before = contents(out)
    shutil.rmtree(out / "shards")
    (out / "manifest.jsonl").unlink()
    assert run(clear_folder, prompts, out, plan=plan) == 0
    assert contents(out) == before
    modes = []
    for record in manifest(out):
        with Image.open(out / record["file"]) as image:
            modes.append(image.mode)
    assert modes == [{"opaque": "RGB", "transparent": "RGBA"}[one] for one in (told, "opaque", told)]


def test_a_background_that_no_line_could_have_is_a_mistake(
    model_folder: Path, clear_folder: Path, tmp_path: Path
) -> None:
    prompts = prompts_file(tmp_path, ["a"], "p.txt")
    for folder, plan, message in (
        (model_folder, {}, "the model lively draws no transparency"),
        (clear_folder, {"image_format": "jpeg"}, "jpeg has no transparency"),
    ):
        with pytest.raises(ParameterError, match=message):
            run(folder, prompts, tmp_path / "out", plan={"background": "transparent"} | plan)
    assert not (tmp_path / "out").exists()


def test_folders_of_models_without_transparency_say_nothing_of_it(six: tuple[Path, Path]) -> None:
    """A release that knows no background goes on with them, and they with what such a release began."""
    _, done = six
    for path in ("batch.json", "manifest.jsonl", "shards/000000.jsonl"):
        assert "background" not in (done / path).read_text(encoding="utf-8"), path
    assert PlanSettings().to_dict() == {
        "seed": 0,
        "n": 1,
        "image_format": "png",
        "quality": None,
        "layout": "files",
        "signed": False,
        "shard_size": 64,
    }


def test_pictures_are_shown_over_a_checkerboard(model_folder: Path, clear_folder: Path, tmp_path: Path) -> None:
    items = [{"prompt": "a"}, {"prompt": "a", "background": "opaque"}]
    prompts, out = prompts_file(tmp_path, items), tmp_path / "out"
    assert run(clear_folder, prompts, out, contact_sheet=True, gallery=True) == 0
    records = manifest(out)
    sheet = np.asarray(load_image(out / "contact-sheet.png"))
    cells = []
    for record in records:
        with Image.open(out / record["file"]) as image:
            cells.append(image.resize((32, 32), Image.Resampling.LANCZOS))
    assert [cell.mode for cell in cells] == ["RGBA", "RGB"]
    assert np.array_equal(sheet, np.asarray(sheet_of(cells, labels=["a", "a"])))
    entries = (out / "gallery/data-0000.js").read_text(encoding="utf-8")
    facts = [[record[name] for name in ("file", "prompt", "seed", "index", "id")] for record in records]
    assert entries == f"add({json.dumps([[*facts[0], True], facts[1]])});\n"
    assert run(model_folder, prompts_file(tmp_path, ["a"], "p.txt"), tmp_path / "b", gallery=True) == 0
    assert "true" not in (tmp_path / "b/gallery/data-0000.js").read_text(encoding="utf-8")


def test_openai_lines_may_ask_for_a_background(model_folder: Path, clear_folder: Path, tmp_path: Path) -> None:
    def line(name: str, **body: Any) -> dict[str, Any]:
        whole = {"prompt": "a", "response_format": "url", **body}
        return {"custom_id": name, "method": "POST", "url": "/v1/images/generations", "body": whole}

    prompts = prompts_file(
        tmp_path, [line("one"), line("two", background="opaque"), line("3", background="transparent")]
    )
    told = {}
    for folder in (model_folder, clear_folder):
        assert run(folder, prompts, tmp_path / folder.name) == (3 if folder == model_folder else 0)
        answers = (tmp_path / folder.name / "openai_output.jsonl").read_text().splitlines()
        told[folder.name] = [json.loads(answer)["response"]["body"]["background"] for answer in answers]
    assert told == {"lively": ["opaque", "opaque"], "clear": ["transparent", "opaque", "transparent"]}
    (failed,) = (tmp_path / "lively/openai_errors.jsonl").read_text().splitlines()
    error = json.loads(failed)["response"]["body"]["error"]
    assert (error["param"], error["code"]) == ("background", "invalid_value")
    assert "the model lively draws no transparency" in error["message"]


# -- where it is written


def test_a_folder_belongs_to_one_batch(model_folder: Path, six: tuple[Path, Path], tmp_path: Path) -> None:
    prompts, done = six
    out = shutil.copytree(done, tmp_path / "out")
    with pytest.raises(StorageError, match="has a batch with seed 0, and this one has 1: choose another folder"):
        run(model_folder, prompts, out, plan={"n": 2, "seed": 1})
    (out / "batch.json").write_text("{}")
    with pytest.raises(StorageError, match=r"batch.json in .* is damaged"):
        run(model_folder, prompts, out, plan={"n": 2})


def test_two_runs_do_not_share_a_folder(model_folder: Path, six: tuple[Path, Path], tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.prepare()
    with storage.lock(), pytest.raises(StorageError, match="another run is writing"), LocalStorage(tmp_path).lock():
        pass


def test_object_stores_get_the_same_bytes(model_folder: Path, six: tuple[Path, Path]) -> None:
    """fsspec's file system in memory stands in for S3: what is used of both is the same few calls."""
    prompts, done = six
    out = "memory://bucket/out"
    assert run(model_folder, prompts, out, plan={"n": 2}) == 0
    storage: Any = open_storage(out)
    found = {path.removeprefix("/bucket/out/"): storage.fs.cat_file(path) for path in storage.fs.find("/bucket/out")}
    log = found.pop("log.jsonl")
    assert found == contents(done)
    gone = manifest(done)[2]["file"]
    storage.remove(gone)
    assert run(model_folder, prompts, out, plan={"n": 2}) == 0
    assert storage.read(gone) == (done / gone).read_bytes()
    assert storage.read("log.jsonl").startswith(log)


def test_a_folder_that_cannot_be_written_is_a_mistake(
    model_folder: Path, six: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for place, message in (
        (tmp_path / "file/out", r"cannot read .* in .*/file/out: Not a directory"),
        ("s4://bucket/x", "s4://bucket/x cannot be reached"),
    ):
        with pytest.raises(StorageError, match=message):
            run(model_folder, six[0], place)


def test_a_vanished_folder_stops_in_words(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = prompts_file(tmp_path, [{"prompt": "a", "n": 1000}] * 2)
    out = tmp_path / "out"

    def remove() -> None:
        while not list(out.glob("pictures/*/*.png")):
            pass
        out.rename(tmp_path / "elsewhere")

    thread = threading.Thread(target=remove)
    thread.start()
    assert run(model_folder, prompts, out, plan={"shard_size": 10}) == 4
    thread.join()
    assert not out.exists(), "it does not come back empty"
    assert "stopped: cannot" in capsys.readouterr().err


def test_dry_run_counts_and_draws_nothing(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = prompts_file(tmp_path, [{"prompt": "a", "n": 5}, {"prompt": "b", "guidance_scale": 1}, {"prompt": ""}])
    assert run(model_folder, prompts, tmp_path / "out", dry_run=True) == 3
    said = capsys.readouterr().out
    assert "2 prompts, 6 pictures, 6 of them to be drawn" in said
    assert " s with one worker" in said and "kB" in said
    assert not (tmp_path / "out").exists()


def test_failed_pictures_are_rows_and_are_tried_again_when_asked(model_folder: Path, tmp_path: Path) -> None:
    """With a codebook of which one code decodes to no colour."""
    checkpoint = load_checkpoint(model_folder)
    assert isinstance(checkpoint.image_tokenizer, ImageTokenizer)
    checkpoint.image_tokenizer.quantizer.codebook.data[7] = float("nan")
    save_checkpoint(
        tmp_path / "broken",
        name="broken",
        image_tokenizer=checkpoint.image_tokenizer,
        text_tokenizer=checkpoint.text_tokenizer,
        decoder=checkpoint.decoder,
    )
    prompts, out = prompts_file(tmp_path, [{"prompt": "a", "n": 30}]), tmp_path / "out"
    assert run(tmp_path / "broken", prompts, out, plan={"shard_size": 100}) == 3
    failed = [record for record in manifest(out) if record["error"] is not None]
    assert 0 < len(failed) < 30
    assert failed[0]["error"] == "the picture has values that are not finite" and failed[0]["file"] is None
    assert len(list(out.glob("pictures/*/*"))) == 30 - len(failed)
    before, num_lines = contents(out), len(log_of(out))
    assert run(tmp_path / "broken", prompts, out, plan={"shard_size": 100}) == 3
    assert len(log_of(out)) == num_lines, "nothing was tried"
    assert run(tmp_path / "broken", prompts, out, plan={"shard_size": 100}, retry_failed=True) == 3
    assert len(log_of(out)) == num_lines + 3, "its codes were decoded again"
    assert contents(out) == before


def test_signed_pictures_may_be_transparent(clear_folder: Path, tmp_path: Path) -> None:
    signing = write_certificate(tmp_path)
    prompts, out = prompts_file(tmp_path, ["a"], "p.txt"), tmp_path / "out"
    assert run(clear_folder, prompts, out, plan={"signed": True}, **signing) == 0
    path = out / manifest(out)[0]["file"]
    assert Credentials(signing["certificate"], signing["certificate_key"]).has_signed(path.read_bytes())
    with Image.open(path) as image:
        assert image.mode == "RGBA"
    assert Verifier(model=clear_folder).verify(path).kind == "good"


def test_signed_pictures(model_folder: Path, tmp_path: Path) -> None:
    signing = write_certificate(tmp_path)
    prompts, out = prompts_file(tmp_path, [{"prompt": "a", "seed": 1}, {"prompt": "a", "seed": 1}]), tmp_path / "out"
    options: dict[str, Any] = {"plan": {"signed": True, "shard_size": 1}} | signing
    assert run(model_folder, prompts, out, **options) == 0
    first, second = manifest(out)
    content = (out / first["file"]).read_bytes()
    assert first["sha256"] == second["sha256"] == hashlib.sha256(content).hexdigest()
    credentials = Credentials(signing["certificate"], signing["certificate_key"])
    assert credentials.has_signed(content)
    assert not credentials.has_signed(content[:-40] + b"\0" + content[-39:])
    assert read_receipt(out / first["file"]).prompt == "a"
    before = contents(out)
    assert run(model_folder, prompts, out, **options) == 0
    assert contents(out) == before
    with pytest.raises(DalleError, match="cannot sign"):
        run(model_folder, prompts, tmp_path / "other", **options | {"certificate_key": str(prompts)})
