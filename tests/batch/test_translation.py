"""Offline batches of prompts in other languages: the pictures and receipts of the library; resumed; refused."""

import json
import shutil
from pathlib import Path

import pytest

from dalle import DALLE
from dalle.checkpoint.vocabulary import Style, Vocabulary, write_vocabulary
from dalle.errors import CheckpointError
from dalle.receipt import read_receipt
from tests.support.batches import contents, manifest, prompts_file, run

ITEMS = [
    {"id": "ko", "prompt": "빨간 판다"},
    {"id": "kept", "prompt": "un wib rouge", "negative_prompt": "eine rote Katze"},
    {"id": "en", "prompt": "a red panda"},
    {"id": "off", "prompt": "un panda", "translate": "off"},
]


def test_items_are_translated_and_resumed(
    model: DALLE, model_folder: Path, taught_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = prompts_file(tmp_path, ITEMS)
    plan = {"translate": "auto", "translator": str(taught_folder)}
    assert run(model_folder, prompts, tmp_path / "out", plan=plan) == 0
    assert "warning: line 2: kept as they are" in capsys.readouterr().err
    records = {record["id"]: record for record in manifest(tmp_path / "out")}
    assert [records[name]["prompt"] for name in records] == ["red panda", "a red wib", "a red panda", "un panda"]
    assert records["kept"]["negative_prompt"] == "a red cat" and records["kept"]["translation"]["kept"] == ["wib"]
    assert "translation" not in records["en"] and "translation" not in records["off"]
    found = model.prompt_translator(taught_folder)("빨간 판다")
    (picture,) = model.generate("red panda", seed=records["ko"]["seed"], translations=[found.translation])
    assert read_receipt(tmp_path / "out" / records["ko"]["file"]) == picture.receipt
    before = contents(tmp_path / "out")
    (tmp_path / "out" / records["ko"]["file"]).unlink()
    assert run(model_folder, prompts, tmp_path / "out", plan=plan) == 0
    assert contents(tmp_path / "out") == before, "what was missing is drawn again, with the same bytes"


def test_a_language_that_is_not_translated_is_an_invalid_line(
    model_folder: Path, taught_folder: Path, tmp_path: Path
) -> None:
    prompts = prompts_file(tmp_path, [{"prompt": "кот"}, {"prompt": "a panda", "translate": "it"}, {"prompt": "a cat"}])
    plan = {"translate": "auto", "translator": str(taught_folder)}
    assert run(model_folder, prompts, tmp_path / "out", plan=plan) == 3
    refused = [json.loads(line) for line in (tmp_path / "out" / "refused.jsonl").read_text().splitlines()]
    assert [one["line"] for one in refused] == [1, 2]
    assert "Cyrillic" in refused[0]["error"] and "it must be auto, off" in refused[1]["error"]


def test_openais_results_have_the_english(model_folder: Path, taught_folder: Path, tmp_path: Path) -> None:
    body = {"prompt": "빨간 판다", "translate": "auto"}
    line = {"custom_id": "one", "method": "POST", "url": "/v1/images/generations", "body": body}
    plan = {"translator": str(taught_folder)}
    assert run(model_folder, prompts_file(tmp_path, [line]), tmp_path / "out", plan=plan) == 0
    (result,) = map(json.loads, (tmp_path / "out" / "openai_output.jsonl").read_text().splitlines())
    assert result["response"]["body"]["data"][0]["revised_prompt"] == "red panda"
    assert result["response"]["body"]["translation"]["prompt"] == "빨간 판다"


def test_a_translator_that_is_not_there_is_found_before_anything_is_drawn(model_folder: Path, tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path, [{"prompt": "a panda"}])
    with pytest.raises(CheckpointError, match="there is no translator 'nonsense'"):
        run(model_folder, prompts, tmp_path / "out", plan={"translate": "auto", "translator": "nonsense"})
    assert not (tmp_path / "out").exists()


def test_english_is_worded_as_the_models_captions_are(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "lively"))
    styles = (Style(name="blue", phrase="blue"),)
    write_vocabulary(folder, Vocabulary(styles=styles, concepts=("apple",)))
    items = [{"id": "worded", "prompt": "draw an apple in blue"}, {"id": "off", "prompt": "a panda"}]
    items[1] |= {"translate": "off"}
    prompts = prompts_file(tmp_path, items)
    assert run(folder, prompts, tmp_path / "out") == 0
    records = {record["id"]: record for record in manifest(tmp_path / "out")}
    assert [records[name]["prompt"] for name in ("worded", "off")] == ["apple, blue", "a panda"]
    assert records["worded"]["translation"]["prompt"] == "draw an apple in blue"
    before = contents(tmp_path / "out")
    assert run(folder, prompts, tmp_path / "out") == 0 and contents(tmp_path / "out") == before
    assert run(folder, prompts, tmp_path / "out2", plan={"translate": "off"}) == 3
    assert "line 1 is invalid: the prompt has" in capsys.readouterr().err, "what was given is too long for this model"
