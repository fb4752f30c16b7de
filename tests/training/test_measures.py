"""Measures of the evaluation against closed forms and scikit-image."""

import itertools
import math

import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from training.evaluation.features import evenly
from training.evaluation.measures import (
    chance_recall,
    frechet_distance,
    nearest,
    precision_and_recall,
    psnr,
    ssim,
    standardised,
)


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


def test_nearest_centres_on_the_mean_of_the_gallery() -> None:
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


@pytest.mark.parametrize(("num", "others"), [(2, 3), (9, 9), (60, 60), (300, 200)])
def test_frechet_distance_is_that_of_triangular_roots(num: int, others: int) -> None:
    """With A = Ra^T Ra and B = Rb^T Rb, the trace of (AB)^(1/2) is the sum of the singular values of Ra Rb^T."""
    scales = torch.logspace(1, -4, 64)
    one, other = torch.randn(num, 64) * scales + 0.1, torch.randn(others, 64) * scales
    roots = [
        torch.linalg.qr(some - some.mean(0), mode="r").R / math.sqrt(len(some) - 1)
        for some in (one.double(), other.double())
    ]
    expected = (one.double().mean(0) - other.double().mean(0)).square().sum()
    expected += sum(root.square().sum() for root in roots) - 2 * torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    assert frechet_distance(one, other) == pytest.approx(float(expected), rel=1e-6)


def test_frechet_distance_of_features_without_any_variance() -> None:
    assert frechet_distance(torch.ones(4, 8), torch.ones(3, 8)) == 0
    assert frechet_distance(torch.ones(4, 8), torch.zeros(3, 8)) == pytest.approx(8)


def test_precision_and_recall_are_those_of_a_search_one_by_one() -> None:
    drawn, real = torch.randn(40, 5), torch.randn(50, 5) + 1.2

    def share(queries: Tensor, others: Tensor) -> float:
        """The share of queries that lie in the ball of some other picture, up to its third neighbour."""
        inside = 0
        for query in queries:
            for i, centre in enumerate(others):
                radius = sorted(math.dist(centre, one) for j, one in enumerate(others) if j != i)[2]
                if math.dist(query, centre) <= radius:
                    inside += 1
                    break
        return inside / len(queries)

    found = precision_and_recall(drawn, real)
    assert found == pytest.approx((share(drawn, real), share(real, drawn)))
    assert min(found) > 0 and max(found) < 1 and found[0] != found[1]


def test_precision_and_recall_tell_quality_from_variety() -> None:
    real = torch.randn(60, 4)
    assert precision_and_recall(real, real.clone()) == (1, 1)
    precision, recall = precision_and_recall(real[:10] + 0.01, torch.cat([real, real + 20]))
    assert precision == 1 and recall < 0.5, "good pictures of a part of what there is"
    assert precision_and_recall(real + 100, real) == (0, 0)
    assert precision_and_recall(torch.zeros(8, 4), real)[1] == 0, "equal pictures cover a point"


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
