"""The recipe on sources, budgets and options that it refuses, or cannot use as they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dalle import DALLE
from dalle.checkpoint import save_checkpoint
from dalle.errors import DataError
from dalle.vq.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from tests.support.recipes import (
    STAGES,
    enough,
    files_of,
    options,
    plan_of,
    program,
    small_recipe,
    within,
)
from training.folder import FolderOptions, build
from training.recipe import RECIPES, run_recipe


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "small", small_recipe)


@pytest.fixture(scope="module")
def opaque(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 20 opaque pictures of 32 pixels, of which none is set aside for validation."""
    folder = tmp_path_factory.mktemp("opaque")
    for number in range(20):
        Image.new("RGB", (32, 32), (12 * number, 100, 200)).save(folder / f"{number}.jpg")
        (folder / f"{number}.txt").write_text("a colour")
    build(FolderOptions(source=folder, out=folder / "shards", size=32, val_fraction=0))
    return folder / "shards"


def test_another_recipe_in_the_same_folder_is_refused(pictures: Path, made: Path, tmp_path: Path) -> None:
    before = files_of(made)
    for changes, said in (
        ({"preset": "tiny"}, "preset = 'small', not 'tiny'"),
        ({"pictures": tmp_path}, f"pictures = '{pictures}', not '{tmp_path}'"),
        ({"pictures": None, "shards": tmp_path}, f"pictures = '{pictures}', not '{tmp_path}'"),
        ({"seed": 1}, "seed = 0, not 1"),
        ({"start_from": made / "model"}, "start_from = None, not "),
    ):
        with pytest.raises(DataError) as caught:
            run_recipe(options(pictures, made, **changes))
        assert str(caught.value).startswith(f"{made} holds a run with {said}")
    assert files_of(made) == before


def test_a_budget_too_small_for_a_step_says_what_is_enough(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["small", "--pictures", pictures, "--out", out, "--device", "cpu", "--minutes"]
    code, _, err = program([*arguments, "0.0001"], monkeypatch, capsys)
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: minutes is 0.0001, which leaves 0.0 s for stage 'image tokenizer'; its preparation")
    assert err.endswith(line + "\n")
    assert plan_of(out)["done"] == ["text"]
    budget = within(enough(line), options(pictures, out))
    plan = plan_of(out)
    assert plan["done"] == STAGES and min(plan["steps"].values()) >= 1
    assert budget < 5


def test_a_budget_that_is_used_up_already_counts(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"steps": {}, "seconds": {"text": 600.0}, "done": []}')
    with pytest.raises(DataError) as caught:
        run_recipe(options(pictures, tmp_path, minutes=5))
    assert 10 < enough(str(caught.value)) < 12


def test_a_plan_that_cannot_be_read_is_refused(pictures: Path, tmp_path: Path) -> None:
    for content in ("{", "[]", "{}", '{"steps": 1, "seconds": {}, "done": []}'):
        (tmp_path / "plan.json").write_text(content)
        with pytest.raises(DataError, match=r"plan\.json cannot be read: .*; give another --out folder"):
            run_recipe(options(pictures, tmp_path))


def test_shards_of_opaque_pictures_make_a_model_of_three_channels(opaque: Path, tmp_path: Path) -> None:
    assert run_recipe(options(None, tmp_path / "out", shards=opaque, name="colours"))
    model = DALLE.load(tmp_path / "out" / "model")
    (picture,) = model.generate("a colour", seed=0)
    assert model.name == "colours" and picture.image.mode == "RGB"
    assert not (tmp_path / "out" / "shards").exists()


def test_what_a_late_stage_would_refuse_is_refused_at_once(opaque: Path, made: Path, tmp_path: Path) -> None:
    def refusal(out: str, **changes: Any) -> str:
        with pytest.raises(DataError) as caught:
            run_recipe(options(None, tmp_path / out, shards=opaque, **changes))
        assert not (tmp_path / out / "plan.json").exists(), "no stage has begun"
        return str(caught.value)

    assert refusal("1", start_from=made / "model") == (
        f"no picture of {opaque} has transparent pixels, but {made}/model has an alpha channel: "
        "run without --start-from"
    )
    assert refusal("2", preset="tiny") == (
        f"the pictures of {opaque} have 32 x 32 pixels; the model's have 128 x 128: build the shards again"
    )
    other = DiscreteVAE(DiscreteVAEConfig(image_size=32, num_layers=1, width=4, codebook_size=8, codebook_dim=4))
    save_checkpoint(tmp_path / "dvae", name="dvae", image_tokenizer=other)
    assert "dvae is not a VQGAN with encoder and decoder of one resolution" in refusal(
        "3", start_from=tmp_path / "dvae"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["small", "--pictures", pictures, "--out", tmp_path / "out", "--device", "cuda"]
    code, _, err = program(arguments, monkeypatch, capsys)
    assert code == 2 and err.startswith("error: device is 'cuda', which cannot be used here: ") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["large"], "there is no preset 'large'; there are emoji, tiny, small"),
        (["tiny", "--minutes", "0"], "minutes is 0.0; it must be above 0"),
        (["tiny", "--minutes", "-1"], "minutes is -1.0; it must be above 0"),
        (["tiny", "--minutes", "nan"], "minutes is nan; it must be above 0"),
        (["tiny", "--minutes", "inf"], "minutes is inf; it must be above 0 and at most 527040"),
        (["tiny", "--minutes", "1e307"], "minutes is 1e+307; it must be above 0 and at most 527040"),
        (["tiny", "--pictures", "a", "--shards", "b"], "pictures and shards are both given; give only one"),
        (["tiny", "--pictures", "none"], "none does not exist"),
        (["tiny", "--shards", "none"], "none does not exist"),
        (["tiny", "--start-from", "none"], "none is not a folder"),
    ],
)
def test_a_caller_s_mistake_is_reported_without_a_trace(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = program([*arguments, "--out", "out", "--device", "cpu"], monkeypatch, capsys)
    assert code == 2
    assert said in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists(), "nothing is claimed for it"


def test_long_captions_are_cut_and_counted(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "pictures"
    source.mkdir()
    for picture in sorted(pictures.glob("*.png"))[:12]:
        (source / picture.name).write_bytes(picture.read_bytes())
        (source / picture.with_suffix(".txt").name).write_text("a red square")
    (source / "00.txt").write_text(" ".join(f"xq{number}zv" for number in range(60)))
    assert run_recipe(options(source, tmp_path / "out"))
    said = capsys.readouterr().out
    text_tokenizer, _, later = said.partition("[2/7]")
    assert (
        "pairs that have only captions of more than 31 tokens: 00.png; of each, the first 31 tokens" in text_tokenizer
    )
    assert "1 pairs have only captions of more than 31 tokens; the first one is truncated: 00.png" in later
