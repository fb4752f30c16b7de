"""Safety checks in offline batches: blocked items are failed lines with the reason, and leave nothing else."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from dalle import DALLE
from dalle.checkpoint import load_facts
from dalle.errors import ConfigError, DalleError
from serving.batch.driver import Batch, _worker_settings
from serving.batch.manifest import read_manifest
from serving.batch.plan import FIELDS, Planner, PlanSettings
from serving.batch.prompts import read_prompts
from serving.batch.ray_data import _WorkerActor
from serving.batch.storage import StorageError, open_storage
from serving.batch.worker import Worker
from serving.safety.settings import SafetySettings
from tests.support.batches import contents, manifest, prompts_file, run

HOOKS = "tests.support.hooks"
ITEMS = ["a fish", "wicked", "a green heart"]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("wicked\n", encoding="utf-8")
    return path


def test_blocked_prompts_are_failed_lines(
    model_folder: Path, tmp_path: Path, words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = prompts_file(tmp_path, [{"prompt": one, "n": 2} for one in ITEMS]), tmp_path / "out"
    safety = SafetySettings(words=words, nsfw_threshold=1.0)
    assert run(model_folder, prompts, out, safety=safety) == 3
    assert "failed pictures: 0, blocked pictures: 2; see" in capsys.readouterr().out
    errors = [record["error_code"] for record in manifest(out)]
    assert errors == [None, None, "moderation_blocked", "moderation_blocked", None, None]
    refused = [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]
    assert {one["error"] for one in refused} == {
        "the request was rejected by the safety system: the prompt was blocked; change the prompt"
    }
    before = contents(out)
    for retry_failed in (False, True):
        assert run(model_folder, prompts, out, safety=safety, retry_failed=retry_failed) == 3
        assert "0 of them drawn in this run" in capsys.readouterr().out, "blocked ones are not tried again"
    assert contents(out) == before
    plain = tmp_path / "plain"
    assert run(model_folder, prompts, plain) == 0
    assert {record["file"]: record["sha256"] for record in manifest(plain)}.items() >= {
        record["file"]: record["sha256"] for record in manifest(out) if record["file"]
    }.items()


@pytest.mark.parametrize("layout", ["files", "tar", "codes"])
def test_nothing_is_left_of_a_blocked_picture(model_folder: Path, tmp_path: Path, layout: str) -> None:
    prompts, out = prompts_file(tmp_path, ["a fish", "a heart"], "two.txt"), tmp_path / "out"
    safety = SafetySettings(picture_hook=f"{HOOKS}:blocks_every_second_picture")
    assert run(model_folder, prompts, out, plan={"layout": layout, "shard_size": 2}, safety=safety) == 3
    sent, blocked = sorted(manifest(out), key=lambda record: record["error_code"] or "")
    assert blocked["error_code"] == "moderation_blocked" and sent["codes"] is not None
    assert {blocked[name] for name in ("file", "sha256", "codes", "codes_sha256", "step", "software")} == {None}
    assert (sent["file"] is None) == (layout == "codes")
    others = [name for name in contents(out) if blocked["key"] in name]
    assert not others
    assert len(list(out.glob("pictures/*/*"))) == (layout == "files")


def test_openais_results_say_so(model_folder: Path, tmp_path: Path, words: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"custom_id": one, "method": "POST", "url": "/v1/images/generations", "body": {"prompt": one}} for one in ITEMS
    ]
    out = tmp_path / "out"
    assert run(model_folder, prompts_file(tmp_path, lines), out, safety=SafetySettings(words=words)) == 3
    (failed,) = map(json.loads, (out / "openai_errors.jsonl").read_text().splitlines())
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("wicked", 400)
    error = failed["response"]["body"]["error"]
    assert (error["code"], error["type"]) == ("moderation_blocked", "image_generation_user_error")


def test_a_folder_belongs_to_one_set_of_checks(model_folder: Path, tmp_path: Path, words: Path) -> None:
    prompts, out = prompts_file(tmp_path, ITEMS, "three.txt"), tmp_path / "out"
    assert run(model_folder, prompts, out, safety=SafetySettings(words=words)) == 3
    for other in (SafetySettings(), SafetySettings(words=words, prompt_hook=f"{HOOKS}:blocks_pandas")):
        with pytest.raises(StorageError, match="has a batch with safety"):
            run(model_folder, prompts, out, safety=other)


def test_a_check_that_fails_is_a_failed_picture_that_can_be_tried_again(model_folder: Path, tmp_path: Path) -> None:
    prompts, out = prompts_file(tmp_path, ["a fish"], "one.txt"), tmp_path / "out"
    for hook in ("prompt_hook", "picture_hook"):
        safety = SafetySettings(**{hook: f"{HOOKS}:fails"})  # type: ignore[arg-type]
        assert run(model_folder, prompts, out / hook, safety=safety) == 3
        (record,) = manifest(out / hook)
        assert record["error_code"] == "moderation_failed" and record["codes"] is None
        assert run(model_folder, prompts, out / hook, safety=safety, retry_failed=True) == 3


def test_a_process_that_cannot_check_stops_the_batch(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = prompts_file(tmp_path, ["a fish"], "one.txt"), tmp_path / "out"
    assert run(model_folder, prompts, out, safety=SafetySettings(picture_hook=f"{HOOKS}:dies")) == 4
    assert "stopped: pictures cannot be checked at the moment" in capsys.readouterr().err
    assert not list(out.glob("pictures/*/*"))


@pytest.mark.parametrize("hook", ["blocks_every_picture", "dies"])
def test_actors_of_ray_check_too(model_folder: Path, tmp_path: Path, hook: str) -> None:
    """What Ray Data calls, with what it is sent."""
    safety, plan = SafetySettings(picture_hook=f"{HOOKS}:{hook}"), PlanSettings()
    facts, out = load_facts(model_folder), tmp_path / "out"
    open_storage(str(out)).prepare()
    prompts = prompts_file(tmp_path, ["a fish"], "one.txt")
    batch = Batch(prompts=str(prompts), out=str(out), model=str(model_folder), plan=plan, threads=1, safety=safety)
    settings = pickle.loads(pickle.dumps(dataclasses.asdict(_worker_settings(batch, str(model_folder), facts, None))))
    (shard,) = Planner(facts, "lively", plan).shards(read_prompts(str(prompts), FIELDS))
    actor = _WorkerActor(settings)
    ((answer,),) = [rows["result"] for rows in actor({"shard": [shard.to_json()]})]
    assert isinstance(actor._worker, Worker)
    actor._worker.close()
    if hook == "dies":
        assert json.loads(answer)["stopped"].startswith("pictures cannot be checked at the moment")
    else:
        assert json.loads(answer)["num_pictures"] == 1, answer
        _, (record,) = read_manifest(open_storage(str(out)), shard)
        assert (record["error_code"], record["codes"]) == ("moderation_blocked", None)


def test_mistakes_are_found_before_anything_is_drawn(model_folder: Path, tmp_path: Path) -> None:
    prompts, out = prompts_file(tmp_path, ["a fish"], "one.txt"), tmp_path / "out"
    for safety in (SafetySettings(words=tmp_path / "none.txt"), SafetySettings(picture_hook="no_such_module:check")):
        with pytest.raises(ConfigError):
            run(model_folder, prompts, out, safety=safety)
    assert not out.exists()


def test_codes_that_cannot_be_judged_are_not_kept(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise DalleError("the picture cannot be decoded")

    monkeypatch.setattr(DALLE, "picture", cannot)
    prompts, out = prompts_file(tmp_path, ["a fish"], "one.txt"), tmp_path / "out"
    safety = SafetySettings(picture_hook=f"{HOOKS}:passes_every_picture")
    assert run(model_folder, prompts, out, plan={"layout": "codes"}, safety=safety) == 3
    (record,) = manifest(out)
    assert (record["error_code"], record["codes"]) == ("not_drawn", None)
