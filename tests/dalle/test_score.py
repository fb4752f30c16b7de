"""`dalle score`: prompts of picture files, both scores, and what the command prints, writes and refuses."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from dalle import DALLE, Prefix, SamplingParams
from dalle.checkpoint.clip import find_clip, load_clip
from dalle.cli import app
from dalle.clip.model import ClipModel
from dalle.errors import ImageError, ParameterError
from dalle.images import encode_image
from dalle.pipeline import Picture
from dalle.scoring.captions import Captions, find_pictures
from dalle.scoring.results import COLUMNS, csv_of, ordered, sheet_of, table_of
from dalle.scoring.scorer import Score, Scorer, Skipped
from tests.support.pictures import random_picture

PROMPT = "a red panda"


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    return load_clip(find_clip("emoji"))


@pytest.fixture(scope="module")
def drawn(model: DALLE) -> list[Picture]:
    return [*model.generate(PROMPT, SamplingParams(guidance_scale=3.0, top_k=16), n=3, seed=7)]


@pytest.fixture
def folder(drawn: list[Picture], tmp_path: Path) -> Path:
    """Three drawn pictures with receipts."""
    (tmp_path / "drawn").mkdir()
    for picture in drawn:
        write(tmp_path / "drawn" / f"{picture.index}.png", picture)
    return tmp_path / "drawn"


@pytest.fixture(autouse=True)
def _installed(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DALLE_MODELS", str(model_folder.parent))
    monkeypatch.chdir(tmp_path)


def write(path: Path, picture: Picture) -> None:
    path.write_bytes(encode_image(picture.image, format="png", text=picture.receipt.to_text()))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["score", *(str(argument) for argument in arguments)])


def rows_of(path: Path) -> list[dict[str, str]]:
    return [*csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))]


def likelihood(model: DALLE, picture: Picture, prompt: str, first: int = 0) -> float:
    """Mean log-probability of the codes from `first` on, by teacher forcing."""
    assert model.text_tokenizer is not None
    codes = torch.tensor(picture.receipt.codes).flatten()[None]
    logits = model.logits(model.text_tokenizer.encode(prompt), codes)[0]
    return float(logits.log_softmax(-1).gather(1, codes[0][:, None])[first:].mean())


def test_both_scores_are_those_of_the_models(
    folder: Path, model: DALLE, clip: ClipModel, drawn: list[Picture], tmp_path: Path
) -> None:
    done = run(folder)
    assert done.exit_code == 0, done.output
    assert "3 pictures by the CLIP model emoji; prompts from receipt (3): scores" in done.output
    rows = rows_of(tmp_path / "scores" / "scores.csv")
    assert tuple(rows[0]) == COLUMNS
    cosines = clip.score([picture.image for picture in drawn], [PROMPT])[:, 0]
    for row in rows:
        index = int(row["index"])
        assert row["file"] == str(folder / f"{index}.png")
        assert (row["prompt"], row["prompt_from"], row["model"], row["seed"]) == (PROMPT, "receipt", "lively", "7")
        assert float(row["clip_score"]) == pytest.approx(float(cosines[index]), abs=2e-6)
        assert float(row["log_likelihood"]) == pytest.approx(likelihood(model, drawn[index], PROMPT), abs=1e-4)
        assert row["note"] == ""
    assert [int(row["index"]) for row in rows] == cosines.argsort(descending=True).tolist()
    with Image.open(tmp_path / "scores" / "contact-sheet.png") as sheet:
        assert sheet.width > 2 * 16 and sheet.height > 2 * 16

    done = run(folder, "--json", "--sort", "likelihood")
    found = json.loads(done.stdout)
    assert [tuple(one) for one in found] == [COLUMNS] * 3
    likelihoods = [one["log_likelihood"] for one in found]
    assert likelihoods == sorted(likelihoods, reverse=True) and max(likelihoods) < 0
    assert [path.name for path in tmp_path.iterdir()].count("scores") == 1, "with --json nothing is written"


def test_both_scores_are_against_the_same_prompt(folder: Path, model: DALLE, drawn: list[Picture]) -> None:
    done = run(folder / "1.png", "--prompt", "two fish", "--json")
    (one,) = json.loads(done.stdout)
    assert (one["prompt"], one["prompt_from"]) == ("two fish", "option")
    assert one["log_likelihood"] == pytest.approx(likelihood(model, drawn[1], "two fish"), abs=1e-4)
    assert abs(one["log_likelihood"] - likelihood(model, drawn[1], PROMPT)) > 1e-3


def test_codes_that_were_given_do_not_count(model: DALLE, clip: ClipModel, tmp_path: Path) -> None:
    prefix = Prefix(image=random_picture(16, 16), num_rows=3)
    (picture,) = model.generate(PROMPT, seed=1, prefix=prefix)
    write(tmp_path / "continued.png", picture)
    (score,) = Scorer(clip, Captions()).scores([tmp_path / "continued.png"])
    assert isinstance(score, Score) and score.log_likelihood is not None
    assert score.log_likelihood == pytest.approx(likelihood(model, picture, PROMPT, first=12), abs=1e-4)
    assert score.log_likelihood != pytest.approx(likelihood(model, picture, PROMPT), abs=1e-3)


def test_a_model_that_is_not_here_gives_no_likelihood(
    folder: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DALLE_MODELS", str(tmp_path))
    (one, *_) = found = json.loads(run(folder, "--json").stdout)
    assert [each["log_likelihood"] for each in found] == [None] * 3
    assert "no likelihood: its model 'lively', digest" in one["note"] and one["note"].endswith("is not installed")
    found = json.loads(run(folder, "--model", model_folder, "--json").stdout)
    assert all(each["log_likelihood"] < 0 for each in found)
    (one, *_) = json.loads(run(folder, "--model", "emoji", "--json").stdout)
    assert one["note"].endswith("is not 'emoji' of --model")


# prompts


def test_prompts_come_from_the_nearest_source(folder: Path, drawn: list[Picture]) -> None:
    receipt = drawn[0].receipt
    lines = [{"file_name": "b.jpg", "text": "from metadata"}, {"file_name": "c.jpg", "captions": ["first", "second"]}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in ("b", "d"):
        (folder / f"{name}.txt").write_text("\n of a text \nand another\n", encoding="utf-16")
    captions = Captions()
    for name, expected in {
        "a-red_apple.jpg": ("a red apple", "file name"),
        "b.jpg": ("from metadata", "metadata.jsonl"),
        "c.jpg": ("first", "metadata.jsonl"),
        "d.jpg": ("of a text", "text file"),
        "two-blue-fish-0123456789-42-3.webp": ("two blue fish", "file name"),
        "0001.jpg": None,
        "___.png": None,
    }.items():
        assert captions.of(folder / name, None) == expected, name
        assert captions.of(folder / name, receipt) == (PROMPT, "receipt")
        assert Captions("given").of(folder / name, receipt) == ("given", "option")
    with pytest.raises(ParameterError, match="the prompt is blank"):
        Captions(" ")


def test_lines_of_metadata_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "fine"}\n{"file_name": "b.png"}\nno\n')
    with pytest.warns(UserWarning, match="is left out") as warned:
        assert Captions().of(tmp_path / "a.png", None) == ("fine", "metadata.jsonl")
    assert [str(one.message).split(":")[0].rpartition("metadata.jsonl")[2] for one in warned] == [
        f", line {line}, is left out" for line in (2, 3)
    ]


def test_pictures_are_found_at_any_depth_once(tmp_path: Path) -> None:
    names = ("b/one.PNG", "a.jpeg", "note.txt", ".hidden/x.png", ".y.png", "contact-sheet.png", "b/c/d.gif")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_pictures([tmp_path, tmp_path / "a.jpeg"])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a.jpeg", "b/c/d.gif", "b/one.PNG"]
    assert find_pictures([tmp_path / "note.txt"]) == [tmp_path / "note.txt"], "a file that is named is taken"
    with pytest.raises(ImageError, match=r"has no pictures \(\.png .*\): give one with pictures"):
        find_pictures([_with(tmp_path / "text", "x.txt")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="is empty: give one with pictures"):
        find_pictures([tmp_path / "empty"])
    with pytest.raises(ImageError, match=r"there is no .*nowhere"):
        find_pictures([tmp_path / "nowhere"])


def _with(folder: Path, name: str) -> Path:
    folder.mkdir()
    (folder / name).touch()
    return folder


# what cannot be scored


def test_broken_pictures_are_listed_and_skipped(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:200])
    random_picture(40, 30).save(folder / "0001.jpg")
    random_picture(40, 30).save(folder / "a-red-apple.jpg")
    done = run(folder)
    assert done.exit_code == 3
    assert f"error: {folder / 'broken.png'}: cannot be read: " in done.stderr and done.stderr.count("; skipped") == 2
    assert done.stderr.count("broken.png") == 1
    assert f"{folder / '0001.jpg'}: nothing says what it shows: give --prompt" in done.stderr
    assert "4 pictures by the CLIP model emoji; 2 skipped; prompts from receipt (3), file name (1)" in done.stdout
    rows = {Path(row["file"]).name: row for row in rows_of(tmp_path / "scores" / "scores.csv")}
    assert rows["a-red-apple.jpg"]["log_likelihood"] == rows["a-red-apple.jpg"]["model"] == ""

    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no picture")
    done = run(tmp_path / "bad", "--out", tmp_path / "none")
    assert done.exit_code == 2 and "nothing was scored: none of 1 pictures could be" in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_receipt_that_was_altered_is_no_receipt(drawn: list[Picture], clip: ClipModel, tmp_path: Path) -> None:
    text = drawn[0].receipt.to_text() | {"codes": "uint16 4x4 AAAA"}
    path = tmp_path / "a-green-heart.png"
    path.write_bytes(encode_image(drawn[0].image, format="png", text=text))
    (score,) = Scorer(clip, Captions()).scores([path])
    assert isinstance(score, Score) and (score.prompt, score.log_likelihood) == ("a green heart", None)
    assert score.note.startswith("the receipt is malformed: codes")


def test_a_prompt_that_clip_reads_in_part_is_noted(folder: Path, clip: ClipModel) -> None:
    prompt = "a red panda " * 60
    found = [*Scorer(clip, Captions(prompt)).scores([folder / "0.png"])]
    assert isinstance(found[0], Score) and isinstance(found[0].log_likelihood, float)
    limit, count = clip.text_tokenizer.max_tokens, len(clip.text_tokenizer.tokenize(prompt))
    cut = f"CLIP reads the first {limit} of {count} tokens of the prompt"
    assert found[0].note == f"{cut}; lively reads the first tokens of the prompt"
    (skipped,) = Scorer(clip, Captions("\ud800")).scores([folder / "0.png"])
    assert isinstance(skipped, Skipped) and "not Unicode text" in skipped.reason


def test_transparency_lies_over_white(clip: ClipModel, tmp_path: Path) -> None:
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    clear.convert("LA").save(tmp_path / "grey.png")
    Image.new("RGB", (20, 20), "white").save(tmp_path / "white.png")
    files = [tmp_path / name for name in ("clear.png", "grey.png", "white.png")]
    scores = [one.clip_score for one in Scorer(clip, Captions("snow")).scores(files) if isinstance(one, Score)]
    assert len(scores) == 3 and max(scores) - min(scores) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clip", "nowhere"], "there is no CLIP model 'nowhere': neither a directory nor one of: emoji"),
        (["--clip", "lively"], "lively is not a directory of format dalle-clip"),
        (["--model", "nowhere"], "nowhere"),
        (["--prompt", " "], "the prompt is blank"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, model_folder: Path, options: list[str], message: str) -> None:
    options = [str(model_folder) if one == "lively" else one for one in options]
    done = run(folder, *options)
    assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_only_scores_are_replaced(folder: Path, tmp_path: Path) -> None:
    assert run(folder, "--out", "new").exit_code == 0
    before = (tmp_path / "new" / "scores.csv").read_bytes()
    done = run(folder, "--out", "new")
    assert done.exit_code == 2 and "new holds a folder of scores already; --overwrite replaces it" in done.stderr
    assert run(folder, "--out", "new", "--overwrite", "--prompt", "a heart").exit_code == 0
    assert (tmp_path / "new" / "scores.csv").read_bytes() != before
    (tmp_path / "new" / "mine.txt").touch()
    done = run(folder, "--out", "new", "--overwrite")
    assert done.exit_code == 2 and "is not a folder of scores to be replaced: it has mine.txt" in done.stderr
    done = run(folder, "--out", folder, "--overwrite")
    assert done.exit_code == 2 and len([*folder.iterdir()]) == 3


# results


def scored(number: int, **changes: Any) -> Score:
    values: dict[str, Any] = {"file": Path(f"{number}.png"), "prompt": "a, b", "prompt_from": "option"}
    return Score(**(values | {"clip_score": number / 1000} | changes))


def test_many_pictures_are_shown_by_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = ordered([scored(i) for i in range(500)], "clip")
    assert [one.clip_score for one in scores[:2]] == [0.499, 0.498]
    lines = table_of(scores).splitlines()
    assert len(lines) == 1 + 40 + 1 and lines[21] == "... 460 more ..."
    assert lines[1].split()[:3] == ["1", "0.499", "-"] and lines[-1].split()[0] == "500"
    Image.new("RGBA", (600, 300)).save(tmp_path / "0.png")
    small = sheet_of([scored(0, log_likelihood=-1.0)])
    assert 256 < small.width < 300
    with pytest.raises(ImageError, match="no scored pictures"):
        sheet_of([])


def test_pictures_without_a_likelihood_come_last() -> None:
    some = [scored(1), scored(2, log_likelihood=-3.0), scored(3), scored(4, log_likelihood=-1.0)]
    assert [one.clip_score for one in ordered(some, "likelihood")] == [0.004, 0.002, 0.003, 0.001]


def test_csv_keeps_any_text() -> None:
    prompt = 'a "red", heart\nof \N{RED APPLE}'
    (row,) = csv.DictReader(io.StringIO(csv_of([scored(1, prompt=prompt)]).decode(), newline=""))
    assert row["prompt"] == prompt and row["clip_score"] == "0.001000" and row["log_likelihood"] == ""
    table = table_of([scored(1, prompt="\x1b[31mred\u202e")])
    assert "\x1b" not in table and "\u202e" not in table
