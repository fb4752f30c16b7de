"""Resumed batches: which pictures are drawn again, and which folders are rejected."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from dalle.checkpoint import load_checkpoint, save_checkpoint
from dalle.files import CannotWriteError
from dalle.vq.vqgan import ImageTokenizer
from serving.batch.storage import LocalStorage, StorageError, open_storage
from tests.support.batches import PROMPTS, contents, log_of, manifest, prompts_file, run


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


def test_a_vanished_folder_stops_with_a_reason(
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


def test_failed_pictures_are_recorded_and_drawn_again_with_retry_failed(model_folder: Path, tmp_path: Path) -> None:
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


def test_a_folder_of_a_release_without_kinds_of_step_is_resumed_as_it_began(model_folder: Path, tmp_path: Path) -> None:
    prompts, out = prompts_file(tmp_path, [{"prompt": "a", "n": 3}]), tmp_path / "out"
    assert run(model_folder, prompts, out) == 0
    before = contents(out)
    description = json.loads((out / "batch.json").read_text())
    description["computed"] = {name: description["computed"][name] for name in ("num_slots", "threads")}
    (out / "batch.json").write_text(json.dumps(description))
    next((out / "pictures").rglob("*.png")).unlink()
    assert run(model_folder, prompts, out) == 0
    assert contents(out) | {"batch.json": b""} == before | {"batch.json": b""}


@pytest.mark.parametrize("name", ["manifest.jsonl", "pictures", "index.html"])
def test_files_of_another_origin_are_not_replaced(model_folder: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "prompts.txt").write_text("a red panda")
    (out / name).write_text("mine")
    with pytest.raises(CannotWriteError, match=f"holds {name}, which would be replaced; without batch.json"):
        run(model_folder, prompts_file(tmp_path, PROMPTS, "p.txt"), out, gallery=True)
    assert sorted(path.name for path in out.iterdir()) == sorted([name, "prompts.txt"])
    assert (out / name).read_text() == "mine"
