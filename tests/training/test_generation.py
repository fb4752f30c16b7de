"""The evaluation of drawn pictures: retrieval in hand-made galleries, picture features, and galleries of shards."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dalle.errors import DataError
from training.evaluate import find_splits
from training.evaluation.features import Gallery, PictureFeatures, concept_of, load_gallery, mean_features
from training.evaluation.generation import Drawn, judge


def hand_made(concepts: str, styles: str) -> Gallery:
    """A gallery whose features resemble each other strongly within a concept and weakly within a style."""
    looks = {name: torch.randn(4096) for name in sorted({*concepts, *styles})}
    features = [looks[c] + 0.3 * looks[s] + 0.05 * torch.randn(4096) for c, s in zip(concepts, styles, strict=True)]
    return Gallery(
        features=torch.stack(features).half(),
        concepts=np.array(list(concepts)),
        styles=np.array(list(styles)),
        starts={},
    )


def drawn_as(gallery: Gallery, numbers: list[int], looks: list[int], reconstructions: list[int]) -> Drawn:
    """Drawn pictures and reconstructions of these pairs, with the features of other pictures of the gallery."""
    return Drawn(
        numbers=torch.tensor(numbers),
        drawn=gallery.features[torch.tensor(looks)],
        reconstructed=gallery.features[torch.tensor(reconstructions)],
        clip_drawn=torch.eye(16)[torch.tensor(looks)],
        clip_real=torch.eye(16)[torch.tensor(numbers)],
        clip_prompts=torch.eye(16)[torch.tensor(numbers)],
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


def test_clip_scores_are_mean_cosines() -> None:
    gallery = hand_made("abcdefgh", "AAAAAAAA")
    # 0 and 1 are drawn as themselves, 2 as 3, and 3 as 4, for which there is no prompt
    found = judge(gallery, drawn_as(gallery, [0, 1, 2, 3], [0, 1, 3, 4], [0, 1, 2, 3]))
    assert (found["clip_score"], found["real_clip_score"]) == (0.5, 1.0)
    assert found["chance_clip_score"] == pytest.approx(1 / 12), "of 12 other pairs, the picture of 2 fits prompt 3"
    assert judge(gallery, drawn_as(gallery, [0], [0], [0]))["chance_clip_score"] is None


def test_precision_and_recall_need_five_pictures() -> None:
    gallery = hand_made("abcdefgh", "AAAAAAAA")
    found = judge(gallery, drawn_as(gallery, [0, 1, 2, 3, 4], [0, 0, 0, 0, 0], [0, 1, 2, 3, 4]))
    assert (found["reconstructed_precision"], found["reconstructed_recall"]) == (1.0, 1.0)
    assert (found["precision"], found["recall"]) == (1.0, 0.2), "one picture, drawn five times"
    few = judge(gallery, drawn_as(gallery, [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]))
    assert few["precision"] is None and few["recall"] is None


def test_the_concept_is_the_code_points_else_the_name_else_the_caption() -> None:
    assert concept_of({"base": "1f43e", "name_en": "paw prints", "captions": ["x"]}) == "1f43e"
    assert concept_of({"base": "", "name_en": "paw prints", "captions": ["x"]}) == "paw prints"
    assert concept_of({"captions": ["my cat", "a cat"]}) == "my cat"


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
