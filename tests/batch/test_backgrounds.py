"""Batches of a model that draws transparency: backgrounds of items and of the batch."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dalle import DALLE
from dalle.errors import ParameterError
from dalle.images import contact_sheet as sheet_of
from dalle.images import load_image
from dalle.receipt import read_receipt
from dalle.verify import Verifier
from serving.batch.plan import PlanSettings
from serving.batch.storage import StorageError
from tests.support.batches import PROMPTS, contents, log_of, manifest, prompts_file, run


def test_backgrounds_of_items_and_of_the_batch(clear_folder: Path, clear: DALLE, tmp_path: Path) -> None:
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
