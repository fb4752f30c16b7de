"""Candidates in offline batches: the library's choice, made once, and the same bytes after a kill or damage."""

import dataclasses
import json
import pickle
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet
from torch import nn
from typer.testing import CliRunner

from dalle import DALLE
from dalle.best_of import ClipJudge
from dalle.checkpoint import load_facts
from dalle.checkpoint.clip import load_clip, save_clip
from dalle.cli import app
from dalle.errors import CheckpointError, DalleError, ParameterError
from dalle.images import encode_image
from dalle.receipt import read_receipt
from dalle.text.classes import ClassTokenizer
from serving.batch.driver import Batch, _worker_settings
from serving.batch.items import InvalidLine, Item
from serving.batch.plan import FIELDS, Planner, PlanSettings
from serving.batch.prompts import Line, read_prompts
from serving.batch.ray_data import _WorkerActor
from serving.batch.storage import StorageError, open_storage
from serving.safety.settings import SafetySettings
from tests.batch.test_kill import Runs
from tests.support.batches import contents, log_of, manifest, prompts_file, run
from tests.support.clips import small_clip, text_tokenizer

ITEMS: list[dict[str, Any]] = [
    {"prompt": "a red panda", "n": 2, "best_of": 7, "seed": 3},
    {"prompt": "a fish", "n": 2, "seed": 4, "best_of": None},
    {"prompt": "a green heart", "best_of": 5, "rerank": "likelihood", "seed": 5, "guidance_scale": 1},
    {"prompt": "a flag", "n": 3, "seed": 6, "negative_prompt": "a fish"},
]
PLAN: dict[str, Any] = {"best_of": 4, "rerank": "clip"}
HOOKS = "tests.support.hooks"


def write_clip(folder: Path, scale: float = 1.0) -> Path:
    text = text_tokenizer()
    network = small_clip(text)
    if scale != 1:
        with torch.no_grad():
            for part in network.modules():
                if isinstance(part, nn.Linear):
                    part.weight *= scale
    save_clip(folder, name=folder.name, network=network, text_tokenizer=text)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "small")


@pytest.fixture(scope="module")
def plan(clip: Path) -> dict[str, Any]:
    return PLAN | {"clip": str(clip)}


@pytest.fixture(scope="module")
def done(model_folder: Path, plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file of prompts, and the folder of its batch."""
    folder = tmp_path_factory.mktemp("best")
    prompts = prompts_file(folder, ITEMS)
    assert run(model_folder, prompts, folder / "out", plan=plan, contact_sheet=True, gallery=True) == 0
    return prompts, folder / "out"


@pytest.fixture(scope="module")
def runs(model_folder: Path) -> Runs:
    return Runs(model_folder)


def num_drawn(out: Path, since: int = 0) -> int:
    """Number of rows that were drawn, as the log has them."""
    return sum(line["num_rows_drawn"] for line in log_of(out)[since:] if line["event"] == "shard")


# -- what is chosen


def test_the_choice_is_that_of_the_library(done: tuple[Path, Path], model: DALLE, clip: Path) -> None:
    records = iter(manifest(done[1]))
    judge = load_clip(clip)
    for item in ITEMS:
        options: dict[str, Any] = {"seed": item["seed"], "negative_prompt": item.get("negative_prompt")}
        options["params"] = dataclasses.replace(
            model.sampling, guidance_scale=float(item.get("guidance_scale", model.sampling.guidance_scale))
        )
        best_of, rerank = item.get("best_of", 4), item.get("rerank", "clip")
        if best_of is not None:
            options |= {"best_of": best_of, "rerank": rerank, "clip": judge if rerank == "clip" else None}
        for expected in model.generate(item["prompt"], n=item.get("n", 1), **options):
            record = next(records)
            assert read_receipt(done[1] / record["file"]) == expected.receipt
            content = (done[1] / record["file"]).read_bytes()
            assert content == encode_image(expected.image, format="png", text=expected.receipt.to_text())
            ranking = expected.receipt.ranking
            assert (record["index"], record["seed"]) == (expected.index, item["seed"])
            assert record.get("ranking") == (None if ranking is None else ranking.to_dict())
            assert ("ranking" in record) == (best_of is not None)
    assert next(records, None) is None


def test_manifests_gallery_and_contact_sheet_are_ordered_by_rank(done: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = done
    records = manifest(out)
    ranks = [None if "ranking" not in record else record["ranking"]["rank"] for record in records]
    assert ranks == [1, 2, None, None, 1, 1, 2, 3]
    rows = parquet.read_table(out / "manifest.parquet").to_pylist()
    assert [row["rank"] for row in rows] == ranks
    assert [row["score"] for row in rows] == [(record.get("ranking") or {}).get("score") for record in records]
    script = (out / "gallery/data-0000.js").read_text(encoding="utf-8")
    entries = json.loads(script.removeprefix("add(").removesuffix(");\n"))
    assert [entry[0] for entry in entries] == [record["file"] for record in records]
    ranking = records[0]["ranking"]
    assert entries[0][5:] == [False, 1, 7, "clip", ranking["score"]]
    assert [len(entry) for entry in entries] == [10, 10, 5, 5, 10, 10, 10, 10]
    assert (out / "contact-sheet.png").stat().st_size > 0
    # the index draws the same codes without candidates
    receipt = read_receipt(out / records[1]["file"])
    assert receipt.index == records[1]["index"] and receipt.ranking is not None and receipt.ranking.rank == 2


def test_codes_and_archives_have_the_ranking(
    model_folder: Path, done: tuple[Path, Path], plan: dict[str, Any], tmp_path: Path
) -> None:
    prompts, out = done
    whole = {Path(record["file"]).name: (out / record["file"]).read_bytes() for record in manifest(out)}
    codes = tmp_path / "codes"
    assert run(model_folder, prompts, codes, plan=plan | {"layout": "codes"}) == 0
    options = ["--model", str(model_folder), "--out", str(tmp_path / "decoded")]
    assert CliRunner().invoke(app, ["decode", str(codes / "manifest.jsonl"), *options]).exit_code == 0
    assert contents(tmp_path / "decoded") == whole
    packed = tmp_path / "tar"
    for _ in range(2):
        assert run(model_folder, prompts, packed, plan=plan | {"layout": "tar"}) == 0
    found: dict[str, bytes] = {}
    for archive in sorted(packed.glob("pictures/*.tar")):
        shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
        found = {path.name: path.read_bytes() for path in (tmp_path / "unpacked").glob("*.png")}
    assert found == whole
    first = manifest(packed)[0]
    metadata = json.loads((tmp_path / "unpacked" / f"{first['key']}.json").read_text())
    assert (metadata["ranking"], metadata["index"]) == (first["ranking"], first["index"])


def test_items_that_differ_in_n_share_candidates(model_folder: Path, tmp_path: Path) -> None:
    item = {"prompt": "a fish", "seed": 1, "best_of": 6, "rerank": "likelihood", "guidance_scale": 1}
    items = [{**item, "n": n} for n in (2, 4, 1)]
    out = tmp_path / "out"
    assert run(model_folder, prompts_file(tmp_path, items), out, plan={"shard_size": 100}) == 0
    files = [record["file"] for record in manifest(out)]
    assert files == [*files[2:4], *files[2:6], files[2]] and len({*files}) == 4
    assert num_drawn(out) == 6
    assert log_of(out)[1]["num_drawn"] == 4
    before = contents(out)
    assert run(model_folder, prompts_file(tmp_path, items), out, plan={"shard_size": 100}) == 0
    assert contents(out) == before and num_drawn(out) == 6


def test_openais_results_have_scores(model_folder: Path, done: tuple[Path, Path], clip: Path, tmp_path: Path) -> None:
    body = ITEMS[0] | {"response_format": "url"}
    line = {"custom_id": "x", "method": "POST", "url": "/v1/images/generations", "body": body}
    out = tmp_path / "out"
    assert run(model_folder, prompts_file(tmp_path, [line]), out, plan={"clip": str(clip)}) == 0
    answer = json.loads((out / "openai_output.jsonl").read_text())["response"]["body"]
    assert (answer["candidates"], answer["rerank"], answer["clip"]) == (7, "clip", "small")
    expected = [(record["index"], record["ranking"]["score"]) for record in manifest(done[1])[:2]]
    assert [(one["index"], one["score"]) for one in answer["data"]] == expected
    assert [one["rank"] for one in answer["data"]] == [1, 2]


# -- resumed


MANY = [{"prompt": "a red panda", "n": 3, "best_of": 100, "seed": 1}, {"prompt": "a fish", "best_of": 80}]


@pytest.fixture(scope="module")
def unbroken(model_folder: Path, plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an unbroken run of `MANY` in one shard."""
    folder = tmp_path_factory.mktemp("many")
    assert run(model_folder, prompts_file(folder, MANY), folder / "out", plan=plan | {"shard_size": 500}) == 0
    return contents(folder / "out")


@pytest.mark.parametrize("safety", [False, True])
def test_killed_among_candidates_it_leaves_the_same_bytes(
    safety: bool, runs: Runs, model_folder: Path, plan: dict[str, Any], unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    """Candidates that were drawn are not drawn again; if pictures are checked, only what was checked is kept."""
    prompts, out = prompts_file(tmp_path, MANY), tmp_path / "out"
    options: dict[str, Any] = {"plan": plan | {"shard_size": 500}}
    if safety:
        options["safety"] = SafetySettings(picture_hook=f"{HOOKS}:passes_every_picture")
    process, _ = runs.start(prompts, out, **options)
    journal, until = out / ".work/000000.jsonl", time.monotonic() + 60
    while time.monotonic() < until and process.is_alive():
        if safety and list(out.glob("pictures/*/*")):
            break
        if not safety and journal.exists() and journal.stat().st_size > 5_000:
            break
        time.sleep(0.001)
    process.kill()
    process.join(60)
    assert not (out / "manifest.jsonl").exists()
    assert journal.exists() != safety
    num_noted = 0 if safety else sum(line.endswith(b"}") for line in journal.read_bytes().splitlines())
    assert run(model_folder, prompts, out, **options) == 0
    found = contents(out)
    if safety:  # which are named in the description and in the digests of shards
        del found["batch.json"], found["shards/000000.jsonl"]
        assert found == {name: content for name, content in unbroken.items() if name in found}
        assert len(found) == len(unbroken) - 2
    else:
        assert found == unbroken
        assert 20 < num_noted < 180
        assert num_drawn(out) == 2 * (180 - num_noted)


@pytest.mark.parametrize("damage", ["picture", "manifest", "index", "both"])
def test_what_is_damaged_is_made_again(
    damage: str, model_folder: Path, done: tuple[Path, Path], plan: dict[str, Any], tmp_path: Path
) -> None:
    prompts, finished = done
    out = shutil.copytree(finished, tmp_path / "out")
    first = manifest(out)[0]
    picture, shard = out / first["file"], out / "shards/000000.jsonl"
    if damage in ("picture", "both"):
        picture.unlink()
    if damage == "manifest":
        shard.unlink()
    if damage in ("index", "both"):
        text = shard.read_text(encoding="utf-8")
        shard.write_text(text.replace(f'"index": {first["index"]}', '"index": 6', 1).replace('"rank": 2', '"rank": 1'))
        assert shard.read_text(encoding="utf-8") != text
    before = len(log_of(out))
    assert run(model_folder, prompts, out, plan=plan, contact_sheet=True, gallery=True) == 0
    assert contents(out) == contents(finished)
    # candidates are drawn again only where nothing says which one was chosen
    assert num_drawn(out, before) == (2 * 7 if damage == "both" else 0)


def test_a_webp_is_made_again_from_its_manifest(model_folder: Path, plan: dict[str, Any], tmp_path: Path) -> None:
    prompts, out = prompts_file(tmp_path, [ITEMS[0]]), tmp_path / "out"
    options: dict[str, Any] = {"plan": plan | {"image_format": "webp"}}
    assert run(model_folder, prompts, out, **options) == 0
    before, rows = contents(out), num_drawn(out)
    (out / manifest(out)[1]["file"]).unlink()
    assert run(model_folder, prompts, out, **options) == 0
    assert contents(out) == before and num_drawn(out) == rows


def test_a_folder_belongs_to_one_choice(
    model_folder: Path, done: tuple[Path, Path], plan: dict[str, Any], tmp_path: Path
) -> None:
    prompts, finished = done
    out = shutil.copytree(finished, tmp_path / "out")
    with pytest.raises(StorageError, match="has a batch with best_of 4, and this one has 5: choose another folder"):
        run(model_folder, prompts, out, plan=plan | {"best_of": 5})
    with pytest.raises(StorageError, match="has a batch with rerank clip, and this one has likelihood"):
        run(model_folder, prompts, out, plan=plan | {"rerank": "likelihood"})
    assert json.loads((out / "batch.json").read_text())["of"]["rerank"] == "clip"
    other = write_clip(tmp_path / "other", scale=2)
    message = (
        r"were chosen by the CLIP model small \(\w{12}\.\.\.\), and this run has other \(\w{12}\.\.\.\): give that"
    )
    with pytest.raises(StorageError, match=message):
        run(model_folder, prompts, out, plan=plan | {"clip": str(other)})
    moved = shutil.copytree(plan["clip"], tmp_path / "moved")
    same = {name: value for name, value in plan.items() if name != "rerank"} | {"clip": str(moved)}
    assert run(model_folder, prompts, out, plan=same, contact_sheet=True, gallery=True) == 0
    assert contents(out) == contents(finished), "the default judge, and the same model in another place"


def test_a_folder_of_plain_items_takes_items_with_candidates(model_folder: Path, clip: Path, tmp_path: Path) -> None:
    plain: list[dict[str, Any]] = [{"prompt": "a fish", "n": 4}]
    out = tmp_path / "out"
    assert run(model_folder, prompts_file(tmp_path, plain), out) == 0
    description = json.loads((out / "batch.json").read_text())
    assert "clip" not in description and not description["of"].keys() & {"best_of", "rerank", "clip"}
    rows = num_drawn(out)
    longer = prompts_file(tmp_path, [*plain, {"prompt": "a heart", "best_of": 3}])
    assert run(model_folder, longer, out, plan={"clip": str(clip)}) == 0
    assert num_drawn(out) == rows + 2 * 3
    assert json.loads((out / "batch.json").read_text())["clip"]["name"] == "small"


# -- mistakes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 3, "best_of": 2}, "best_of is 2; it must be at least n, which is 3"),
        ({"best_of": 1001}, "best_of is 1001; the limit is 1000"),
        ({"best_of": 0}, "best_of is 0; it must be at least 1"),
        ({"rerank": "clip"}, "rerank is clip; it needs best_of, the number of candidates"),
        ({"best_of": 2, "rerank": "me"}, "rerank is 'me'; it must be 'likelihood' or 'clip'"),
        ({"best_of": 2, "first_index": 3}, "first_index is 3; with best_of, the candidates are the pictures from"),
        ({"clip": "emoji"}, "clip"),
    ],
)
def test_an_invalid_line_is_reported(model_folder: Path, fields: dict[str, Any], message: str) -> None:
    planner = Planner(load_facts(model_folder), "lively", PlanSettings())
    entry = planner.entry(Line(number=1, fields={"prompt": "a", **fields}))
    assert isinstance(entry, InvalidLine) and message in entry.message, entry


def test_invalid_lines_are_skipped_and_leave_the_shards_alone(
    model_folder: Path, tmp_path: Path, plan: dict[str, Any]
) -> None:
    items = [{"prompt": "a", "n": 5, "best_of": 3}, {"prompt": "b", "seed": 1}]
    out = tmp_path / "out"
    assert run(model_folder, prompts_file(tmp_path, items), out, plan=plan) == 3
    assert [record["error"] for record in manifest(out)] == ["best_of is 3; it must be at least n, which is 5", None]
    assert num_drawn(out) == 2 * 4
    items[0]["best_of"] = 5
    assert run(model_folder, prompts_file(tmp_path, items), out, plan=plan) == 0
    assert num_drawn(out) == 2 * (4 + 5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"best_of": 2, "n": 3}, ParameterError, "best_of is 2; it must be in 3..1000"),
        ({"best_of": 1001}, ParameterError, "best_of is 1001"),
        ({"rerank": "likelihood"}, ParameterError, "rerank is likelihood; it needs best_of"),
        ({"clip": "none"}, CheckpointError, "there is no CLIP model 'none'"),
    ],
)
def test_options_that_cannot_be_are_reported_once(
    model_folder: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        run(model_folder, prompts_file(tmp_path, ["a fish"], "one.txt"), tmp_path / "out", plan=options)
    assert not (tmp_path / "out").exists()


def test_classes_are_compared_by_likelihood(model_folder: Path) -> None:
    facts = dataclasses.replace(load_facts(model_folder), text_tokenizer=ClassTokenizer(299))
    for options in ({"best_of": 2}, {"best_of": 2, "rerank": "clip"}, {"clip": "emoji"}):
        with pytest.raises(ParameterError, match="are numbers of classes, which clip cannot read"):
            Planner(facts, "classes", PlanSettings(**options))
    planner = Planner(facts, "classes", PlanSettings(best_of=2, rerank="likelihood"))
    assert isinstance(planner.entry(Line(number=1, fields={"prompt": "1"})), Item)
    invalid = planner.entry(Line(number=1, fields={"prompt": "1", "rerank": "clip"}))
    assert isinstance(invalid, InvalidLine) and "send likelihood" in invalid.message


def test_candidates_that_cannot_be_compared_are_failed_pictures(
    model_folder: Path, plan: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise DalleError("no picture to compare")

    prompts, out = prompts_file(tmp_path, [ITEMS[3], ITEMS[1]]), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(ClipJudge, "scores", cannot)
        assert run(model_folder, prompts, out, plan=plan) == 3
    assert [record["error"] for record in manifest(out)] == ["no picture to compare"] * 3 + [None] * 2
    assert run(model_folder, prompts, out, plan=plan, retry_failed=True) == 0
    assert run(model_folder, prompts, tmp_path / "whole", plan=plan) == 0
    assert contents(out) == contents(tmp_path / "whole")


# -- safety, estimates, actors


def test_a_blocked_choice_is_a_failed_picture(model_folder: Path, plan: dict[str, Any], tmp_path: Path) -> None:
    prompts, out = prompts_file(tmp_path, [ITEMS[0]]), tmp_path / "out"
    options: dict[str, Any] = {
        "plan": plan,
        "safety": SafetySettings(picture_hook=f"{HOOKS}:blocks_every_second_picture"),
    }
    assert run(model_folder, prompts, out, **options) == 3
    sent, blocked = sorted(manifest(out), key=lambda record: record["error_code"] or "")
    assert blocked["error_code"] == "moderation_blocked"
    assert {blocked[name] for name in ("file", "codes", "codes_sha256")} == {None}
    assert len(list(out.glob("pictures/*/*"))) == 1 and sent["file"] is not None
    before = contents(out)
    assert run(model_folder, prompts, out, **options, retry_failed=True) == 3
    assert contents(out) == before


def test_the_estimate_counts_candidates(
    model_folder: Path, done: tuple[Path, Path], plan: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = done
    assert run(model_folder, prompts, out.parent / "new", plan=plan, dry_run=True) == 0
    text = capsys.readouterr().out
    assert "4 prompts, 8 pictures, 8 of them to be drawn, by drawing 18 (see --best-of)" in text
    assert "measured by drawing 2 pictures" in text
    assert not (out.parent / "new").exists()
    lines = [line for line in log_of(out) if line["event"] == "shard"]
    assert sum(line["num_rows"] for line in lines) == 2 * (7 + 2 + 4) + 5 == num_drawn(out)


def test_an_actor_of_ray_makes_the_same_choice(
    model_folder: Path, done: tuple[Path, Path], plan: dict[str, Any], tmp_path: Path
) -> None:
    """What Ray Data calls, with what it is sent; another CLIP model on its machine is refused."""
    prompts, finished = done
    facts, out = load_facts(model_folder), tmp_path / "out"
    open_storage(str(out)).prepare()
    settings = PlanSettings(**plan, shard_size=4)
    batch = Batch(prompts=str(prompts), out=str(out), model=str(model_folder), plan=settings, threads=1, num_slots=4)
    planner = Planner(facts, model_folder.name, settings)
    worker = dataclasses.replace(
        _worker_settings(batch, str(model_folder), facts, None), clip=plan["clip"], clip_digest=planner.choices.clip[1]
    )
    shards = [shard.to_json() for shard in planner.shards(read_prompts(str(prompts), FIELDS))]
    actor = _WorkerActor(pickle.loads(pickle.dumps(dataclasses.asdict(worker))))
    answers = [json.loads(one) for rows in actor({"shard": shards}) for one in rows["result"]]
    assert sum(answer["num_pictures"] for answer in answers) == 8
    parts = ("shards", "pictures")
    assert {name: content for name, content in contents(out).items() if name.startswith(parts)} == {
        name: content for name, content in contents(finished).items() if name.startswith(parts)
    }
    other = dataclasses.asdict(dataclasses.replace(worker, clip_digest="0" * 64))
    (answer,) = [json.loads(one) for rows in _WorkerActor(other)({"shard": shards}) for one in rows["result"]]
    assert "has the digest" in answer["stopped"] and "000000000000..." in answer["stopped"]
