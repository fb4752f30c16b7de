"""Best of n: candidates are plain pictures, scores are what they say, and pruning drops no survivor's code."""

import dataclasses
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from dalle import DALLE, Decoder, Engine, Picture, Prefix, Request, SamplingParams
from dalle.best_of import BestOf, LikelihoodJudge, Pruning, Selection, draw_best, judge_of, mean_likelihoods
from dalle.checkpoint.clip import find_clip, load_clip, save_clip
from dalle.clip.model import ClipModel
from dalle.decoder.engine import StepResult, finish_steps
from dalle.decoder.likelihood import log_probabilities
from dalle.decoder.step import Step
from dalle.errors import CheckpointError, DalleError, ImageError, ParameterError
from dalle.images import encode_image, to_rgb
from dalle.interop.open_clip import load_open_clip
from dalle.ranking import Ranking
from dalle.receipt import Receipt, describe, read_receipt
from dalle.text.classes import ClassTokenizer
from dalle.verify import Verifier, request_of_receipt
from tests.support import golden
from tests.support.clips import small_clip, text_tokenizer
from tests.support.models import FAMILIES, lively_decoder

PROMPT = "a red panda"


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips") / "small"
    text = text_tokenizer()
    save_clip(folder, name="small", network=small_clip(text), text_tokenizer=text)
    return folder


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> ClipModel:
    return load_clip(clip_folder)


def rankings(pictures: list[Picture]) -> list[Ranking]:
    return [ranking for picture in pictures if (ranking := picture.receipt.ranking) is not None]


def plain(picture: Picture) -> Receipt:
    return dataclasses.replace(picture.receipt, ranking=None)


@pytest.mark.parametrize("rerank", ["likelihood", "clip"])
def test_the_best_are_plain_pictures_in_the_order_of_their_scores(model: DALLE, clip: ClipModel, rerank: str) -> None:
    candidates = list(model.generate(PROMPT, n=9, seed=3))
    chooser = clip if rerank == "clip" else None
    best = list(model.generate(PROMPT, n=4, best_of=9, rerank=rerank, clip=chooser, seed=3))  # type: ignore[arg-type]
    by_index = {picture.index: picture for picture in candidates}
    for picture in best:
        assert plain(picture) == by_index[picture.index].receipt
        assert picture.image.tobytes() == by_index[picture.index].image.tobytes()

    request = model.request(PROMPT, model.sampling, seed=3)
    scores = {}
    for index, picture in by_index.items():
        codes = torch.tensor(picture.receipt.codes).flatten()
        if rerank == "clip":
            scores[index] = float(clip.score([picture.image], [PROMPT]))
        else:
            scores[index] = float(log_probabilities(model.decoder, request.text_ids, codes[None]).mean())
    expected = sorted(scores, key=lambda index: -scores[index])[:4]
    assert [picture.index for picture in best] == expected
    found = rankings(best)
    assert [ranking.score for ranking in found] == pytest.approx([scores[index] for index in expected], abs=2e-6)
    assert len({ranking.score for ranking in found}) == 4
    assert [ranking.rank for ranking in found] == [1, 2, 3, 4]
    name, digest = (clip.name, clip.digest) if rerank == "clip" else (None, None)
    assert {(one.rerank, one.best_of, one.pruned, one.clip, one.clip_digest) for one in found} == {
        (rerank, 9, 0, name, digest)
    }


def test_clip_sees_the_picture_over_white(clear: DALLE, clip: ClipModel) -> None:
    for background in ("transparent", "opaque"):
        best = list(clear.generate(PROMPT, n=3, best_of=3, clip=clip, seed=7, background=background))
        expected = clip.score([to_rgb(picture.image) for picture in best], [PROMPT])[:, 0].tolist()
        assert [ranking.score for ranking in rankings(best)] == pytest.approx(expected, abs=2e-6)
        assert expected == sorted(expected, reverse=True)


def stepwise(decoder: Decoder, request: Request, codes: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of codes, one step after the other through the cache: each step's logits are looked at, and the
    code is then put in by hand."""
    step = Step(decoder, 2)
    placed = step.admit(request, [0])
    found = []
    for place in range(len(codes)):
        if place:
            step.feed([placed], [codes[:place].tolist()])
        keys = placed.keys[place : place + 1]
        length = step.columns.numel()
        logits, _ = step.forward(2, length, keys)
        found.append(logits[0].log_softmax(-1)[codes[place]])
    return torch.stack(found)


@pytest.mark.parametrize("family", ["ours", *FAMILIES])
def test_log_probabilities_are_those_of_the_steps(family: str) -> None:
    torch.manual_seed(1)
    decoder = lively_decoder(**FAMILIES.get(family, {}))
    layout, config = decoder.layout, decoder.config
    text_ids = torch.randint(1, layout.num_text_ids, (layout.text_length,))
    features = None
    if config.feature_width is not None:
        text_ids = torch.ones_like(text_ids)
        features = torch.randn(layout.text_length, config.feature_width)
    request = Request(text_ids=text_ids, features=features, params=SamplingParams(), seed=5)
    engine = Engine(decoder, num_slots=2)
    codes = torch.stack(engine.run([dataclasses.replace(request, index=i) for i in range(3)]))
    together = log_probabilities(decoder, text_ids, codes, features)
    assert together.shape == codes.shape and together.dtype == torch.float32
    with torch.inference_mode():
        expected = torch.stack([stepwise(decoder, request, one) for one in codes])
    assert (together - expected).abs().max() < 2e-4
    part = log_probabilities(decoder, text_ids, codes[:, :7], features)
    assert (part - together[:, :7]).abs().max() < 1e-5, "later codes change nothing"
    assert torch.equal(mean_likelihoods(decoder, request, codes), together.mean(1))
    kept = torch.full((layout.num_codes,), -1)
    kept[:6] = codes[0, :6]
    after = mean_likelihoods(decoder, dataclasses.replace(request, kept=kept), codes)
    assert torch.allclose(after, together[:, 6:].mean(1)), "kept codes do not count"


def test_many_rows_are_as_each_alone(model: DALLE) -> None:
    request = model.request(PROMPT, model.sampling, seed=0)
    codes = torch.randint(32, (37, 16), generator=torch.Generator().manual_seed(0))
    together = log_probabilities(model.decoder, request.text_ids, codes)
    alone = torch.cat([log_probabilities(model.decoder, request.text_ids, one[None]) for one in codes])
    assert (together - alone).abs().max() < 1e-5


def test_pruning_keeps_the_better_half_so_far_and_at_least_n() -> None:
    assert Pruning(1).add(dict(enumerate([1.0, 2.0, 3.0, 4.0]))) == []
    assert Pruning(1).add(dict(enumerate([4.0, 3.0, 2.0, 1.0]))) == [1, 2, 3]
    assert Pruning(1).add(dict(enumerate([4.0, 1.0, 3.0, 2.0]))) == [1, 3]
    assert Pruning(3).add(dict(enumerate([4.0, 3.0, 2.0, 1.0]))) == [3]
    assert Pruning(1).add(dict(enumerate([2.0, 2.0, 2.0, 2.0]))) == [], "equal ones are as good"
    late = Pruning(1)
    assert late.add({1: 3.0, 3: 1.0}) == []
    assert late.add({0: 4.0}) == [1]
    assert late.add({2: 2.0}) == [2, 3], "in whatever order they come, the same are dropped"
    generator = torch.Generator().manual_seed(0)
    for n in (1, 4):
        scores = torch.rand(16, generator=generator).tolist()
        left = {*range(16)} - {*Pruning(n).add(dict(enumerate(scores)))}
        assert {*sorted(range(16), key=lambda index: -scores[index])[:n]} <= left and len(left) >= n


def test_pruning_saves_steps_and_changes_no_survivor(model: DALLE) -> None:
    judge = LikelihoodJudge(model)
    request = model.request(PROMPT, model.sampling, seed=1)
    drawn: dict[bool, list[tuple[int, list[int], Ranking]]] = {}
    steps, num_codes = {}, {}
    for prune in (False, True):
        engine = Engine(model.decoder, num_slots=8)
        results: list[StepResult] = []
        selection = Selection(model, BestOf(n=2, best_of=16, rerank="likelihood", prune=prune), judge, PROMPT, request)
        best = draw_best(engine, [selection], results.append)
        drawn[prune] = [(request.index, codes.tolist(), ranking) for request, codes, ranking in best]
        steps[prune], num_codes[prune] = engine.num_steps, sum(result.num_codes for result in results)
        assert engine.num_active == engine.num_waiting == 0

    everything = torch.stack(Engine(model.decoder, num_slots=8).run(selection.requests))
    half = mean_likelihoods(model.decoder, request, everything[:, :8]).tolist()
    dropped = Pruning(2).add(dict(enumerate(half)))
    assert 0 < len(dropped) <= 14
    assert num_codes == {False: 16 * 16, True: 16 * 16 - len(dropped) * 8}
    needed = finish_steps([], [(8 if index in dropped else 16, 2) for index in range(16)], 8)
    assert steps == {False: 64, True: max(needed)} and max(needed) < 64, "freed slots are taken at once"
    scores = mean_likelihoods(model.decoder, request, everything).tolist()
    survivors = sorted({*range(16)} - {*dropped}, key=lambda index: -scores[index])
    assert [index for index, _, _ in drawn[True]] == survivors[:2]
    for index, own, ranking in drawn[True]:
        assert own == everything[index].tolist()
        assert ranking.pruned == len(dropped) and ranking.best_of == 16
    assert {ranking.pruned for _, _, ranking in drawn[False]} == {0}


def test_several_prompts_with_a_prefix(model: DALLE) -> None:
    source = next(model.generate("a green heart", seed=8)).image
    prompts, prefix = [PROMPT, "a green heart"], Prefix(image=source, num_rows=2)
    options = {"n": 2, "best_of": 5, "rerank": "likelihood", "seed": 1, "prefix": prefix}
    best = list(model.generate(prompts, prune=True, **options))  # type: ignore[arg-type]
    assert [picture.prompt for picture in best] == [prompts[0]] * 2 + [prompts[1]] * 2
    plainly = {(one.prompt, one.index): one for one in model.generate(prompts, n=5, seed=1, prefix=prefix)}
    for picture in best:
        assert plain(picture) == plainly[picture.prompt, picture.index].receipt
        request = request_of_receipt(model, picture.receipt)
        codes = torch.tensor(picture.receipt.codes).flatten()
        drawn = log_probabilities(model.decoder, request.text_ids, codes[None])[0, 8:]
        (ranking,) = rankings([picture])
        assert ranking.score == pytest.approx(float(drawn.mean()), abs=2e-6)
    counts = []
    list(model.generate(PROMPT, on_step=lambda result: counts.append(result.num_codes), **options))  # type: ignore[arg-type]
    assert sum(counts) == 5 * 8


def test_closing_stops_the_drawing_and_the_engine_is_used_again(model: DALLE) -> None:
    pictures = model.generate([PROMPT, "a green heart"], n=1, best_of=6, rerank="likelihood", seed=1)
    first = next(pictures)
    pictures.close()
    (again,) = model.generate(PROMPT, n=1, best_of=6, rerank="likelihood", seed=1)
    assert again.receipt == first.receipt


def test_a_receipt_has_the_ranking_and_draws_the_picture_again(
    model: DALLE, model_folder: Path, clip: ClipModel, tmp_path: Path
) -> None:
    (picture,) = model.generate(PROMPT, best_of=5, clip=clip, prune=True, seed=1)
    path = tmp_path / "one.png"
    path.write_bytes(encode_image(picture.image, format="png", text=picture.receipt.to_text()))
    receipt = read_receipt(path)
    assert receipt == picture.receipt and receipt.ranking is not None and receipt.ranking.clip == "small"
    assert Verifier(model=model_folder, resample=True, device="cpu").verify(path).kind == "good"
    assert "1 of 5, 3 dropped half-way" in describe(receipt)
    assert f"{receipt.ranking.score:.6g} by clip small" in describe(receipt)
    (alone,) = [one for one in model.generate(PROMPT, n=5, seed=1) if one.index == picture.index]
    assert "ranking" not in alone.receipt.to_text() and plain(picture) == alone.receipt

    text = receipt.to_text()
    for damage, message in (
        ("{}", "Ranking needs the key 'rerank'"),
        ("[]", "ranking is list"),
        (
            text["ranking"].replace('"rank": 1', '"rank": 9'),
            "rank is 9; it must be in 1..2, ",
        ),
        (text["ranking"].replace('"clip", "s', '"dice", "s'), "must be one of 'likelihood', 'clip'"),
        (text["ranking"].replace('"score"', '"note": 1, "score"'), "has no key 'note'"),
    ):
        with pytest.raises(ImageError, match="the receipt is malformed") as caught:
            Receipt.from_text(text | {"ranking": damage})
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 4, "best_of": 3}, r"best_of is 3; it must be in 4\.\.1000: n is 4"),
        ({"best_of": 1001}, r"best_of is 1001; it must be in 1\.\.1000"),
        ({"best_of": 0}, r"best_of is 0; it must be in 1\.\.1000"),
        ({"n": 0, "best_of": 4}, r"n is 0; it must be in 1\.\.1000"),
        ({"rerank": "clip"}, "rerank is clip; it needs best_of"),
        ({"prune": True}, "prune is True; it needs best_of"),
        ({"clip": "emoji"}, "clip is emoji; it needs best_of"),
        ({"best_of": 4, "rerank": "vote"}, "rerank is 'vote'; it must be likelihood or clip"),
        ({"best_of": 4, "rerank": "likelihood", "clip": "emoji"}, "clip is emoji; it is for the judge clip"),
    ],
)
def test_mistakes_are_refused_before_anything_is_drawn(model: DALLE, options: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        model.generate(PROMPT, **options)  # type: ignore[arg-type]


def test_a_clip_model_that_is_none_is_refused(model: DALLE, model_folder: Path, tmp_path: Path) -> None:
    for wrong, message in (
        ("nobody", "there is no CLIP model 'nobody': neither a directory nor one of: emoji"),
        (tmp_path, r"has no config\.json: it is not a directory of format dalle-clip$"),
        (model_folder, 'lacks "format": "dalle-clip"'),
    ):
        with pytest.raises(CheckpointError, match=message):
            model.generate(PROMPT, best_of=4, clip=wrong)
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="dalle-clip; `dalle import` makes one of it"):
        model.generate(PROMPT, best_of=4, clip=tmp_path)


def test_what_has_no_text_cannot_be_judged_by_clip(model: DALLE, clip: ClipModel) -> None:
    classes = DALLE(
        name="classes",
        digest="0" * 64,
        text_tokenizer=ClassTokenizer(299),
        image_tokenizer=model.image_tokenizer,
        decoder=lively_decoder(text_length=1, attend_padding=True, guidance=False),
        sampling=SamplingParams(),
    )
    with pytest.raises(ParameterError, match="prompts of classes are numbers of classes"):
        classes.generate("7", best_of=3)
    best = list(classes.generate("7", n=2, best_of=3, rerank="likelihood", seed=0))
    assert [ranking.rank for ranking in rankings(best)] == [1, 2]
    request = model.request(None, model.sampling, seed=0)
    with pytest.raises(ParameterError, match="there is no prompt"):
        judge_of(model, "clip", clip).scores(None, request, torch.zeros(1, 16, dtype=torch.int64))


def test_the_shipped_models_together() -> None:
    """The CLIP model of the package is the default judge of the default model."""
    model = DALLE.load(device="cpu")
    best = list(model.generate("a red heart, noto style emoji", n=2, best_of=3, seed=7))
    clip = load_clip(find_clip("emoji"))
    assert len(best) == 2
    for picture, ranking in zip(best, rankings(best), strict=True):
        assert (ranking.rerank, ranking.clip, ranking.clip_digest) == ("clip", "emoji", clip.digest)
        assert ranking.score == pytest.approx(float(clip.score([picture.image], [picture.prompt])), abs=2e-6)
    assert rankings(best)[0].score > rankings(best)[1].score


def run(folder: Path, models: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dalle.cli", "generate", *arguments, "--model", "lively"]
    environment = os.environ | {"DALLE_MODELS": str(models), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def test_the_command(model_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    arguments = ["a red panda", "--n", "3", "--best-of", "9", "--seed", "7"]
    done = run(tmp_path, model_folder.parent, *arguments, "--clip", str(clip_folder), "--prune", "--out", "best")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3 pictures, best of 9 by clip, seed 7: best/contact-sheet.png\n"
    drawn = [read_receipt(path) for path in (tmp_path / "best").glob("a-red-panda-*.png")]
    assert len(drawn) == 3
    ranked = sorted((one.ranking.rank, -one.ranking.score) for one in drawn if one.ranking is not None)
    assert [rank for rank, _ in ranked] == [1, 2, 3] and ranked == sorted(ranked, key=lambda one: one[1])
    with Image.open(tmp_path / "best" / "contact-sheet.png") as sheet:
        assert sheet.width > 3 * 32
    plainly = run(tmp_path, model_folder.parent, "a red panda", "--n", "9", "--seed", "7", "--out", "all")
    assert plainly.returncode == 0
    for path in (tmp_path / "best").glob("a-red-panda-*.png"):
        with Image.open(path) as one, Image.open(tmp_path / "all" / path.name) as other:
            assert one.tobytes() == other.tobytes(), "the same name is the same picture"


def test_an_imported_clip_model_judges(model: DALLE, tmp_path: Path) -> None:
    """From open_clip's files by `dalle import` to a directory that `--clip` takes."""
    shutil.copytree(golden.found("open_clip/gelu"), tmp_path / "theirs")
    shutil.copy(golden.found("open_clip/merges.txt"), tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="`dalle import` makes one of it"):
        model.generate(PROMPT, best_of=3, clip=tmp_path / "theirs")
    command = [sys.executable, "-m", "dalle.cli", "import", "theirs", "--out", "ours"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    best = list(model.generate(PROMPT, n=2, best_of=3, clip=str(tmp_path / "ours"), seed=7))
    theirs = load_open_clip(tmp_path / "theirs")
    scores = theirs.score([picture.image for picture in best], [PROMPT])[:, 0].tolist()
    assert [ranking.score for ranking in rankings(best)] == pytest.approx(scores, abs=2e-6)
    assert [ranking.clip for ranking in rankings(best)] == ["ours", "ours"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "5", "--best-of", "4"], "error: best_of is 4; it must be in 5..1000"),
        (["--rerank", "clip"], "error: rerank is clip; it needs best_of"),
        (["--best-of", "4", "--rerank", "vote"], "'vote' is not one of 'likelihood', 'clip'"),
        (["--best-of", "4", "--clip", "nobody"], "error: there is no CLIP model 'nobody'"),
    ],
)
def test_mistakes_of_the_command(model_folder: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(tmp_path, model_folder.parent, "a red panda", *arguments)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not [*tmp_path.glob("out/*.png")]


def test_errors_are_the_librarys_own() -> None:
    with pytest.raises(DalleError, match="score is nan; it must be finite"):
        Ranking(rerank="clip", score=math.nan, rank=1, best_of=2)
    with pytest.raises(DalleError, match=r"pruned is 2; it must be in 0\.\.1"):
        Ranking(rerank="clip", score=0.5, rank=1, best_of=2, pruned=2)
    with pytest.raises(DalleError, match="clip_digest is 'XY'"):
        Ranking(rerank="clip", score=0.5, rank=1, best_of=2, clip_digest="XY")
