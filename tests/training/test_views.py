"""Views: shifts and scales, pixels from outside the picture, and the pictures that may be mirrored."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from training.pairs import views
from training.pairs.views import can_be_mirrored, draw_views

NUM = 240


def draw(images: Tensor, *, mirror: bool = False, seed: int = 0) -> Tensor:
    return draw_views(images, [mirror] * len(images), np.random.default_rng(seed))


def centroids(images: Tensor) -> Tensor:
    """Row and column of the centroid of pixels darker than white, from the picture's centre, in pixels: (B, 2)."""
    ink = (1 - images).mean(1)
    size = images.shape[-1]
    places = torch.arange(size) - (size - 1) / 2
    mass = ink.sum((1, 2))
    return torch.stack([(ink.sum(2) * places).sum(1), (ink.sum(1) * places).sum(1)], dim=1) / mass[:, None]


def dots(num: int, *, size: int = 128, column: int | None = None) -> Tensor:
    """Black discs on white, in the middle or in the middle of a column."""
    row = (size - 1) / 2
    rows = torch.arange(size) - row
    columns = torch.arange(size) - (row if column is None else column)
    inside = rows[:, None] ** 2 + columns**2 <= (size / 32) ** 2
    return torch.where(inside, -1.0, 1.0).expand(num, 3, size, size).clone()


def test_without_any_range_a_view_is_the_picture_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MAX_SHIFT", 0)
    monkeypatch.setattr(views, "SCALES", (1.0, 1.0))
    images = torch.rand(5, 3, 24, 32) * 2 - 1
    assert (draw(images) - images).abs().max() < 1e-4


def test_views_are_a_function_of_the_generator() -> None:
    images = torch.rand(3, 4, 16, 16) * 2 - 1
    assert torch.equal(draw(images), draw(images))
    assert not torch.equal(draw(images), draw(images, seed=1))
    same = draw(images[:1].expand(3, -1, -1, -1))
    assert not torch.equal(same[0], same[1]), "each picture has a view of its own"


@pytest.mark.parametrize("size", [128, 64])
def test_pictures_are_moved_by_up_to_4_pixels_of_128(size: int) -> None:
    moves = centroids(draw(dots(NUM, size=size))) * 128 / size
    assert 3.8 < moves.abs().max() < 4.03
    assert moves.mean(0).abs().max() < 0.4
    quarters = torch.histc(moves, bins=4, min=-4.1, max=4.1) / moves.numel()
    assert (quarters - 0.25).abs().max() < 0.06, "every distance is as frequent"
    assert abs(torch.corrcoef(moves.T)[0, 1]) < 0.15, "up and down has nothing to do with left and right"


def test_pictures_are_scaled_by_092_to_106() -> None:
    images = torch.ones(NUM, 3, 128, 128)
    images[..., 32:96, 32:96] = -1
    sides = ((1 - images) / 2).mean(1).sum((1, 2)).sqrt()
    scales = ((1 - draw(images)) / 2).mean(1).sum((1, 2)).sqrt() / sides
    assert 0.915 < scales.min() < 0.93 and 1.05 < scales.max() < 1.065


@pytest.mark.parametrize(("channels", "blank"), [(3, 1.0), (4, -1.0)])
def test_what_comes_into_sight_is_blank(channels: int, blank: float) -> None:
    filled = torch.full((NUM, channels, 64, 64), -blank)
    seen = draw(filled)
    assert seen[..., 8:-8, 8:-8].sub(-blank).abs().max() < 1e-4, "there is nothing new in the middle"
    corners = seen[..., 0, 0]
    assert (corners == blank).all(1).float().mean() > 0.3, "many a corner is out of the picture"
    assert seen.abs().max() <= 1
    empty = torch.full((4, channels, 64, 64), blank)
    assert torch.equal(draw(empty), empty)


def test_only_pictures_that_may_be_are_mirrored_and_half_of_those() -> None:
    images = dots(NUM, column=96)
    allowed = [number % 2 == 0 for number in range(NUM)]
    moved = centroids(draw_views(images, allowed, np.random.default_rng(0)))[:, 1]
    mirrored = moved < 0
    assert not mirrored[1::2].any()
    assert mirrored[0::2].float().mean().item() == pytest.approx(0.5, abs=0.08)
    distances = moved.abs()
    assert distances.min() > 0.92 * 32.5 - 4.1 and distances.max() < 1.06 * 32.5 + 4.1


MIRRORED = """red panda; owl; a red square; T-Rex; t-shirt; x-ray; jack-o-lantern; woman\u2019s hat; worker's helmet
cat; face blowing a kiss; gold chain, curved as a necklace; front-facing baby chick; kiss mark; sign of the horns
handbag; man biking: light skin tone; Mrs. Claus; leftover cake; brightness; signal tower; mapper; wordless"""
SIDED = """left arrow; up-right arrow; right-facing fist; leftwards hand; person kneeling: facing right; keycap: 3
big x; B button (blood type); regional indicator B; three o'clock; eight o\u2019clock; three-thirty; 1st place medal
file m4v; stop sign; exclamation mark; question; hundred points; yen banknote; admission tickets; chart increasing
trending up; calendar; waxing crescent moon; first quarter moon; musical note; google logo; world map; joker; flag: Peru
newspaper; globe showing Americas; fast forward circle; alphabetical sorting az; f two key; alarm clock; a B"""


@pytest.mark.parametrize("name", MIRRORED.replace("\n", "; ").split("; "))
def test_pictures_without_a_left_and_a_right_are_mirrored(name: str) -> None:
    assert can_be_mirrored({"name_en": name, "group": "objects"})
    assert can_be_mirrored({"name_en": name.upper()}), "however it is written, and whatever it belongs to"


@pytest.mark.parametrize("name", SIDED.replace("\n", "; ").split("; "))
def test_pictures_with_writing_or_sides_are_not_mirrored(name: str) -> None:
    assert not can_be_mirrored({"name_en": name, "group": "objects"})
    assert not can_be_mirrored({"name_en": name.upper()})


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"name_en": ""},
        {"name_en": None, "captions": ["an owl"]},
        {"captions": ["an owl"], "group": "animals & nature"},
        {"name_en": "Peru", "group": "flags"},
        {"name_en": "Pisces", "group": "symbols"},
    ],
)
def test_there_is_no_mirror_without_an_english_name_nor_for_flags_and_symbols(metadata: dict[str, Any]) -> None:
    assert not can_be_mirrored(metadata)
