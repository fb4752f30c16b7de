"""The evaluation: measures against closed forms and scikit-image, verdicts on hand-made galleries, the program."""

import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor

from dalle.checkpoint import save_checkpoint
from dalle.errors import DalleError, DataError, ParameterError
from dalle.text.bpe import TextTokenizer
from dalle.vq.vqgan import ImageTokenizer
from tests.support.models import lively_decoder
from training import evaluate as program
from training.captions.phrasing import Phrasing
from training.evaluate import evaluate, find_splits
from training.evaluation.features import Gallery, PictureFeatures, concept_of, evenly, load_gallery, mean_features
from training.evaluation.generation import Drawn, draw, judge
from training.evaluation.measures import chance_recall, frechet_distance, nearest, psnr, ssim, standardised
from training.pairs.shard_writer import ShardWriter, encode_webp

# -- measures


def test_psnr_of_a_known_error() -> None:
    images = torch.zeros(3, 3, 4, 4)
    # in pixels from 0 to 1 the errors are 0.1, 0.01 and none
    targets = images + torch.tensor([0.2, 0.02, 0.0])[:, None, None, None]
    assert psnr(images, targets).tolist() == pytest.approx([20, 40, 100], abs=1e-3)


def test_ssim_equals_scikit_image() -> None:
    targets = torch.rand(4, 3, 20, 17) * 2 - 1
    targets[1] = 0.3  # a flat picture
    targets[2, :, :10] = -1
    images = (targets + torch.tensor([0, 0.1, 0.5, 1.5])[:, None, None, None] * torch.randn(4, 3, 20, 17)).clamp(-1, 1)
    expected = [
        structural_similarity(  # type: ignore[no-untyped-call]
            (image.double().numpy() + 1) / 2,
            (target.double().numpy() + 1) / 2,
            data_range=1.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for image, target in zip(images, targets, strict=True)
    ]
    assert ssim(images, targets).tolist() == pytest.approx(expected, abs=1e-6)
    assert ssim(targets, targets).tolist() == pytest.approx([1] * 4)


def test_nearest_looks_from_the_mean_of_the_gallery() -> None:
    corner = torch.tensor([100.0, 100.0])
    gallery = corner + torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    queries = corner + torch.tensor([[9.0, 1], [-1, -9]])
    assert nearest(queries, gallery, 2).tolist() == [[0, 1], [3, 2]]
    assert nearest(queries, gallery, 9).shape == (2, 4)


def test_nearest_is_the_same_in_many_rows_as_in_one() -> None:
    gallery, queries = torch.randn(40, 8), torch.randn(600, 8)
    found = nearest(queries, gallery, 3)
    for i in (0, 255, 256, 599):
        assert torch.equal(found[i], nearest(queries[i : i + 1], gallery, 3)[0])


def test_chance_recall_counts_all_draws() -> None:
    for right, pictures, k in itertools.product((1, 2, 5), (5, 7), (1, 3, 5)):
        draws = list(itertools.combinations(range(pictures), k))
        share = sum(min(draw) < right for draw in draws) / len(draws)
        assert chance_recall(right, pictures, k) == pytest.approx(share)
    assert chance_recall(1, 3, 5) == 1


def exactly_normal(mean: list[float], covariance: Tensor, num: int = 50) -> Tensor:
    """Samples (num, D) that have exactly this mean and covariance."""
    samples = torch.randn(num, len(mean), dtype=torch.float64)
    samples -= samples.mean(0)
    root = torch.linalg.cholesky(samples.T @ samples / (num - 1))
    white = torch.linalg.solve_triangular(root, samples.T, upper=False).T
    return torch.tensor(mean) + white @ torch.linalg.cholesky(covariance.double()).T


def test_frechet_distance_of_normal_distributions() -> None:
    one, other = (exactly_normal([m], torch.tensor([[s**2]])) for m, s in ((1.0, 2.0), (4.0, 0.5)))
    assert frechet_distance(one, other) == pytest.approx(3**2 + 1.5**2)

    a, b = torch.tensor([[2.0, 1], [1, 3]]), torch.tensor([[1.0, -0.5], [-0.5, 2]])
    product = a @ b
    # of a 2 x 2 matrix, the trace of the root is known from trace and determinant
    trace_of_root = math.sqrt(product.trace() + 2 * math.sqrt(product.det()))
    expected = 5 + a.trace() + b.trace() - 2 * trace_of_root
    found = frechet_distance(exactly_normal([0, 0], a), exactly_normal([1, 2], b))
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert frechet_distance(exactly_normal([1, 2], b), exactly_normal([0, 0], a)) == pytest.approx(found)


def test_frechet_distance_of_few_pictures_with_themselves_is_zero() -> None:
    few = torch.randn(5, 30)
    assert frechet_distance(few, few.clone()) == pytest.approx(0, abs=1e-9)


def test_a_feature_that_never_changes_stays_small() -> None:
    gallery = torch.randn(100, 4)
    gallery[:, 2] = 7
    found = standardised(gallery + torch.tensor([0, 0, 0.01, 0]), gallery)
    assert found.abs().max() < 10
    assert found[:, 0].std(correction=0).item() == pytest.approx(1)


def test_evenly_spaced_numbers_are_different_and_have_both_ends() -> None:
    assert evenly(10, 4) == [0, 3, 6, 9]
    assert evenly(3, 10) == [0, 1, 2]
    assert len(set(evenly(201, 200))) == 200


# -- verdicts


def hand_made(concepts: str, styles: str) -> Gallery:
    """Pictures that look of their concept most, and of their style a little."""
    looks = {name: torch.randn(4096) for name in sorted({*concepts, *styles})}
    features = [looks[c] + 0.3 * looks[s] + 0.05 * torch.randn(4096) for c, s in zip(concepts, styles, strict=True)]
    return Gallery(
        features=torch.stack(features).half(),
        concepts=np.array(list(concepts)),
        styles=np.array(list(styles)),
        starts={},
    )


def drawn_as(gallery: Gallery, numbers: list[int], looks: list[int], reconstructions: list[int]) -> Drawn:
    """For these pairs, pictures that look like others of the gallery."""
    return Drawn(
        numbers=torch.tensor(numbers),
        drawn=gallery.features[torch.tensor(looks)],
        reconstructed=gallery.features[torch.tensor(reconstructions)],
        examples=(),
    )


def test_a_picture_is_right_if_its_nearest_in_the_style_has_the_concept() -> None:
    #                     0123456789ab    012345 is one style; 6 shows what 0 shows, in the other
    gallery = hand_made("abcdefabcdeg", "AAAAAABBBBBB")
    numbers = [0, 1, 6, 11]
    # 0: drawn as 6, the right concept in the wrong style; 1: drawn as c; 6: drawn as 0; 11: as itself
    found = judge(gallery, drawn_as(gallery, numbers, [6, 2, 0, 11], numbers))
    assert found["recall_at_1"] == 0.75
    assert found["reconstructed_recall_at_1"] == found["reconstructed_recall_at_5"] == 1
    assert found["chance_recall_at_1"] == pytest.approx(1 / 6)
    assert found["chance_recall_at_5"] == pytest.approx(5 / 6)
    assert found["reconstructed_frechet_distance"] == pytest.approx(0, abs=1e-9)
    assert found["frechet_distance"] > 0.01  # type: ignore[operator]
    assert found["pictures"] == 4


def test_a_style_is_right_if_the_nearest_of_the_concept_has_it() -> None:
    #                     01234567    three concepts in two or three styles, and g in one
    gallery = hand_made("aaabbbcg", "ABCABCAA")
    numbers = [0, 1, 2, 3, 7]
    # 0: drawn in style B; 1: as itself; 2: as b in the right style; 3: as itself; 7 is in one style and does not count
    found = judge(gallery, drawn_as(gallery, numbers, [1, 1, 5, 3, 0], numbers))
    assert found["style_accuracy"] == 0.75
    assert found["reconstructed_style_accuracy"] == 1
    assert found["chance_style_accuracy"] == pytest.approx(1 / 3)
    assert judge(gallery, drawn_as(gallery, [7], [7], [7]))["style_accuracy"] is None


def test_two_pictures_of_a_concept_in_a_style_are_both_right() -> None:
    gallery = hand_made("aabcdefg", "AAAAAAAA")  # say, two skin tones
    found = judge(gallery, drawn_as(gallery, [0, 1], [1, 0], [2, 3]))
    assert found["recall_at_1"] == 1
    assert found["reconstructed_recall_at_1"] == 0
    assert found["chance_recall_at_1"] == pytest.approx(2 / 8)


def test_the_concept_is_the_code_points_else_the_name_else_the_caption() -> None:
    assert concept_of({"base": "1f43e", "name_en": "paw prints", "captions": ["x"]}) == "1f43e"
    assert concept_of({"base": "", "name_en": "paw prints", "captions": ["x"]}) == "paw prints"
    assert concept_of({"captions": ["my cat", "a cat"]}) == "my cat"


# -- shards, gallery and the whole program

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "black": (0, 0, 0)}


def picture(colour: tuple[int, int, int], style: str, size: int) -> Image.Image:
    """A square of a colour: filled, or a frame."""
    image = Image.new("RGB", (size, size), "white")
    edge = size // 4
    image.paste(colour, (edge, edge, size - edge, size - edge))
    if style == "frame":
        image.paste((255, 255, 255), (edge + 2, edge + 2, size - edge - 2, size - edge - 2))
    return image


def write_shards(folder: Path, size: int = 16) -> Path:
    pairs = [(colour, style) for colour in COLOURS for style in ("filled", "frame")]
    for split, chosen in (("train", pairs[2:]), ("val_combo", pairs[:1]), ("val_misc", pairs[1:2] * 2)):
        with ShardWriter(folder, split, pairs_per_shard=4 if split == "train" else None) as writer:
            for i, (colour, style) in enumerate(chosen):
                metadata = {
                    "captions": [f"{colour} {style}"],
                    "base": colour,
                    "style": style,
                    "name_en": "",
                    "id": f"{colour}/{style}",
                }
                writer.write(f"{split}-{i}", encode_webp(picture(COLOURS[colour], style, size)), metadata)
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards")


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


@pytest.fixture(scope="module")
def embed() -> PictureFeatures:
    return PictureFeatures(torch.device("cpu"))


def test_splits_are_shards_without_their_numbers(shards: Path) -> None:
    splits = find_splits([str(shards)])
    assert {name: len(pairs) for name, pairs in splits.items()} == {"train": 6, "val_combo": 1, "val_misc": 2}
    assert [path.name for path in splits["train"].paths] == ["train-000.tar", "train-001.tar"]


def test_features_have_their_shapes_and_meaning(embed: PictureFeatures) -> None:
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    found = embed(images)
    assert found.shape == (2, 16 * 256)
    block_3 = embed.vgg(images)[-1]
    assert torch.allclose(mean_features(found), block_3.mean((2, 3)), atol=0.03 * float(block_3.mean((2, 3)).max()))
    corner = block_3[:, :, :2, :2].mean((2, 3))
    assert torch.allclose(found.float()[:, ::16], corner, atol=0.03 * float(corner.max()))


def test_a_gallery_is_computed_once_for_its_shards(shards: Path, tmp_path: Path, embed: PictureFeatures) -> None:
    splits = find_splits([str(shards)])
    gallery = load_gallery(splits, embed, tmp_path / "kept")
    (kept,) = (tmp_path / "kept").iterdir()
    assert gallery.starts == {"train": 0, "val_combo": 6, "val_misc": 7}
    assert len(gallery.features) == len(gallery.concepts) == 9
    assert gallery.concepts[6] == "red"
    assert gallery.styles[6] == "filled"
    assert torch.equal(gallery.features[6:7], embed(splits["val_combo"].images([0])))

    before = kept.stat().st_mtime_ns
    again = load_gallery(splits, embed, tmp_path / "kept")
    assert kept.stat().st_mtime_ns == before
    assert torch.equal(again.features, gallery.features)

    os.utime(shards / "val_misc.tar", ns=(0, 0))  # a shard that has changed
    load_gallery(splits, embed, tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_a_damaged_gallery_is_refused(shards: Path, tmp_path: Path, embed: PictureFeatures) -> None:
    splits = find_splits([str(shards)])
    load_gallery(splits, embed, tmp_path)
    (kept,) = tmp_path.glob("gallery-*.safetensors")
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(DataError, match="no readable features"):
        load_gallery(splits, embed, tmp_path)


def test_real_pictures_are_recognised(shards: Path, tmp_path: Path, embed: PictureFeatures) -> None:
    splits = find_splits([str(shards)])
    gallery = load_gallery(splits, embed, tmp_path)
    numbers = list(range(9))
    found = judge(gallery, drawn_as(gallery, numbers, numbers, numbers[::-1]))
    assert found["recall_at_1"] == 1
    assert found["frechet_distance"] == pytest.approx(0, abs=1e-9)


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
    # usage is over the set: what any of the splits uses, all of them use together
    of_splits = [numbers["reconstruction"][name]["usage"] for name in ("val_combo", "val_misc", "all val")]
    assert max(of_splits) == of_splits[2] <= of_splits[0] + of_splits[1]
    assert numbers["generation"]["val_combo"]["frechet_distance"] is None  # one picture has no covariance

    table = (out / "table.md").read_text()
    assert "at most 50 / sqrt(pictures) points: 50.0 in the smallest row, with 1." in table
    assert table in capsys.readouterr().out
    for row in rows:
        assert table.count(f"| {row} |") == 2
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.height > 16
        assert sheet.width > 2 * 16

    before = (out / "numbers.json").read_bytes()
    evaluate(model, shards=(str(shards),), num=4, guidance_scale=3.0, out=out, device="cpu")
    assert (out / "numbers.json").read_bytes() == before
    evaluate(model, shards=(str(shards),), num=4, seed=1, out=out, device="cpu")
    assert (out / "numbers.json").read_bytes() != before


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num", "1"], "num is 1; it must be at least 2"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--seed", "-1"], "seed is -1"),
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
    with pytest.raises(DalleError, match="is no folder"):
        evaluate(tmp_path / "none", shards=(str(shards),), out=tmp_path / "out")
    with pytest.raises(ParameterError, match="num is 0"):
        evaluate(tmp_path / "none", shards=(str(shards),), num=0)
