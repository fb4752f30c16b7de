"""The evaluation program: its report, its settings, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dalle.checkpoint import save_checkpoint
from dalle.checkpoint.clip import find_clip, load_clip
from dalle.errors import DalleError, ParameterError
from dalle.files import CannotWriteError
from dalle.images import CHECKERS, to_pil
from dalle.text.bpe import TextTokenizer
from dalle.vq.vqgan import ImageTokenizer
from tests.support.galleries import COLOURS, write_shards
from tests.support.models import lively_decoder
from tests.support.stages import write_transparent
from training import evaluate as program
from training.alpha import with_alpha
from training.captions.phrasing import Phrasing, prompt_for
from training.evaluate import evaluate, find_splits
from training.evaluation.generation import Drawn, draw


@pytest.fixture
def model(tmp_path: Path, image_tokenizer: ImageTokenizer, text_tokenizer: TextTokenizer) -> Path:
    decoder = lively_decoder(text_vocab_size=text_tokenizer.vocab_size)
    save_checkpoint(
        tmp_path / "model",
        name="tiny",
        image_tokenizer=image_tokenizer,
        text_tokenizer=text_tokenizer,
        decoder=decoder,
    )
    return tmp_path / "model"


def test_splits_are_shards_without_their_numbers(shards: Path) -> None:
    splits = find_splits([str(shards)])
    assert {name: len(pairs) for name, pairs in splits.items()} == {"train": 6, "val_combo": 1, "val_misc": 2}
    assert [path.name for path in splits["train"].paths] == ["train-000.tar", "train-001.tar"]


def test_the_whole_program(shards: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs" / "evaluation"
    evaluate(model, shards=(str(shards),), num=4, guidance_scale=3.0, out=out, device="cpu")
    numbers = json.loads((out / "numbers.json").read_text())
    rows = ["val_combo", "val_misc", "all val", "train"]
    assert list(numbers["reconstruction"]) == list(numbers["generation"]) == rows
    assert [row["pictures"] for row in numbers["reconstruction"].values()] == [1, 2, 3, 6]
    assert [row["pictures"] for row in numbers["generation"].values()] == [1, 2, 3, 4]
    assert len(numbers["model"]["digest"]) == 64
    assert (numbers["settings"]["guidance_scale"], numbers["settings"]["temperature"]) == (3.0, 1.0)
    for row in numbers["reconstruction"].values():
        assert 0 < row["psnr"] < 100
        assert 0 < row["usage"] <= 1 <= row["perplexity"] <= 32
        assert row["alpha_error"] is None
    # usage is over the set: what any of the splits uses, all of them use together
    of_splits = [numbers["reconstruction"][name]["usage"] for name in ("val_combo", "val_misc", "all val")]
    assert max(of_splits) == of_splits[2] <= of_splits[0] + of_splits[1]
    assert numbers["generation"]["val_combo"]["frechet_distance"] is None  # one picture has no covariance

    assert (numbers["settings"]["clip"], len(numbers["settings"]["clip_digest"])) == ("emoji", 64)
    for row in numbers["generation"].values():
        assert all(-1 <= row[name] <= 1 for name in ("clip_score", "real_clip_score"))
    clip = load_clip(find_clip("emoji"))
    pairs = find_splits([str(shards)])["val_misc"]
    prompts = [prompt_for(pairs.metadata(number), number, "training") for number in range(2)]
    real = clip.score([to_pil(image) for image in pairs.images([0, 1])], prompts).diagonal()
    assert numbers["generation"]["val_misc"]["real_clip_score"] == pytest.approx(float(real.mean()), abs=1e-5)

    table = (out / "table.md").read_text()
    assert "CLIP score by emoji" in table
    assert "at most 50 / sqrt(pictures) points: 50.0 in the smallest row, with 1." in table
    assert table in capsys.readouterr().out
    for row in rows:
        assert table.count(f"| {row} |") == 3
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.height > 16
        assert sheet.width > 2 * 16

    before = (out / "numbers.json").read_bytes()
    with pytest.raises(CannotWriteError, match=r"numbers.json holds a report already; --overwrite replaces it"):
        evaluate(model, shards=(str(shards),), num=4, guidance_scale=3.0, out=out, device="cpu")
    evaluate(model, shards=(str(shards),), num=4, guidance_scale=3.0, out=out, overwrite=True, device="cpu")
    assert (out / "numbers.json").read_bytes() == before
    evaluate(model, shards=(str(shards),), num=4, seed=1, out=out, overwrite=True, device="cpu")
    assert (out / "numbers.json").read_bytes() != before


@pytest.mark.parametrize("name", ["numbers.json", "table.md", "sheet.png"])
def test_files_of_another_program_are_not_replaced(shards: Path, model: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"mine": 1}')
    with pytest.raises(CannotWriteError, match=name):
        evaluate(model, shards=(str(shards),), num=4, out=out, overwrite=True, device="cpu")
    assert [path.name for path in out.iterdir()] == [name] and (out / name).read_text() == '{"mine": 1}'


@pytest.mark.filterwarnings("ignore:.*were cut")
def test_prompts_in_natural_phrasing(
    shards: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[Phrasing, list[str]] = {"training": [], "natural": []}
    found = {}
    for phrasing, prompts in asked.items():

        def recorded(*args: Any, into: list[str] = prompts, **options: Any) -> Drawn:
            drawn = draw(*args, **options)
            into.extend(prompt for prompt, _, _ in drawn.examples)
            return drawn

        monkeypatch.setattr(program, "draw", recorded)
        out = tmp_path / phrasing
        evaluate(model, shards=(str(shards),), num=4, phrasing=phrasing, out=out, device="cpu")
        found[phrasing] = json.loads((out / "numbers.json").read_text())
        assert found[phrasing]["settings"]["phrasing"] == phrasing
        assert f"Prompts in {phrasing} phrasing" in (out / "table.md").read_text()
    captions = {f"{colour} {style}" for colour in COLOURS for style in ("filled", "frame")}
    assert len(asked["training"]) == len(asked["natural"]) == 7
    assert set(asked["training"]) <= captions
    for prompt, caption in zip(asked["natural"], asked["training"], strict=True):
        assert caption in prompt != caption
    assert found["training"]["reconstruction"] == found["natural"]["reconstruction"]
    assert found["training"]["generation"] != found["natural"]["generation"]


def test_a_model_without_a_decoder_is_reconstructed_only(
    shards: Path, tmp_path: Path, image_tokenizer: ImageTokenizer
) -> None:
    save_checkpoint(tmp_path / "stage1", name="eyes", image_tokenizer=image_tokenizer)
    evaluate(tmp_path / "stage1", shards=(str(shards),), out=tmp_path / "report", device="cpu")
    numbers = json.loads((tmp_path / "report" / "numbers.json").read_text())
    assert numbers["generation"] == {}
    assert numbers["reconstruction"]["train"]["pictures"] == 6
    assert "Generation" not in (tmp_path / "report" / "table.md").read_text()
    assert not list(tmp_path.glob("gallery-*"))


@pytest.mark.filterwarnings("ignore:.*were cut")
def test_transparency_is_measured_and_shown(
    tmp_path: Path, image_tokenizer: ImageTokenizer, text_tokenizer: TextTokenizer
) -> None:
    decoder = lively_decoder(text_vocab_size=text_tokenizer.vocab_size)
    opaque = with_alpha(image_tokenizer, image_tokenizer.config.widths, "tiny")
    save_checkpoint(
        tmp_path / "model", name="tiny", image_tokenizer=opaque, text_tokenizer=text_tokenizer, decoder=decoder
    )
    write_transparent(tmp_path / "shards")
    evaluate(tmp_path / "model", shards=(str(tmp_path / "shards"),), num=2, out=tmp_path / "out", device="cpu")
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
    pairs = find_splits([str(tmp_path / "shards")])["val"]
    missing = [1 - float(pairs.picture(number, channels=4)[3].double().mean()) / 255 for number in range(len(pairs))]
    assert numbers["reconstruction"]["val"]["alpha_error"] == pytest.approx(sum(missing) / len(missing), rel=1e-4)
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert (CHECKERS[1],) * 3 in {colour for _, colour in sheet.convert("RGB").getcolors(1 << 24) or []}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num", "1"], "num is 1; it must be at least 2"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--seed", "-1"], "seed is -1"),
        (["--clip", "none"], "there is no CLIP model 'none'"),
        (["--shards", "/nowhere/at/all.tar"], "no shards at"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    message: str,
    model: Path,
    shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rest = [] if "--shards" in arguments else ["--shards", str(shards)]
    monkeypatch.setattr("sys.argv", ["evaluate", str(model), *arguments, *rest])
    with pytest.raises(SystemExit) as exit:
        program.main()
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_pictures_of_another_size_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DalleError, match="24 x 24 pixels, the model's 16 x 16"):
        evaluate(model, shards=(str(write_shards(tmp_path / "large", 24)),), out=tmp_path / "out", device="cpu")


def test_the_model_must_exist(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(DalleError, match="is not a folder"):
        evaluate(tmp_path / "none", shards=(str(shards),), out=tmp_path / "out")
    with pytest.raises(ParameterError, match="num is 0"):
        evaluate(tmp_path / "none", shards=(str(shards),), num=0)
