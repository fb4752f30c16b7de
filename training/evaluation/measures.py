"""Measures of the evaluation, as pure functions on tensors: similarity of pictures, and distances of features.

Features are compared in float32 or better, on the CPU.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

__all__ = [
    "alpha_error",
    "chance_recall",
    "frechet_distance",
    "nearest",
    "precision_and_recall",
    "psnr",
    "ssim",
    "standardised",
]

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
ROWS_AT_ONCE = 256


def alpha_error(images: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute error of each picture's alpha, (B,) in [0, 1]. Images and targets are (B, 4, H, W) in [-1, 1]."""
    return ((images - targets)[:, 3] / 2).abs().mean((1, 2))


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, (B,), at most 100. Images and targets are (B, 3, H, W) in
    [-1, 1]; the peak is the whole range, so the result is that of pixels in [0, 1] with peak 1."""
    return -10 * ((images - targets) / 2).square().mean((1, 2, 3)).clamp_min(1e-10).log10()


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity of each picture (Wang et al. 2004), (B,) in [-1, 1], averaged over places and over red,
    green and blue.

    Images and targets are (B, 3, H, W) in [-1, 1], H and W at least 11. The window is a Gaussian of 11 x 11 with sigma
    1.5, at all places where it fits into the picture; K1 = 0.01, K2 = 0.03.
    """
    place = torch.arange(SSIM_WINDOW, device=images.device) - SSIM_WINDOW // 2
    window = torch.exp(-place.double().square() / (2 * SSIM_SIGMA**2))
    window = window / window.sum()

    def smooth(values: Tensor) -> Tensor:
        values = rearrange(values, "b c h w -> (b c) 1 h w")
        rows = F.conv2d(values, rearrange(window, "k -> 1 1 k 1"))
        return F.conv2d(rows, rearrange(window, "k -> 1 1 1 k"))

    # in double precision, as variances are differences of nearly equal numbers where a picture is flat
    x, y = (images.double() + 1) / 2, (targets.double() + 1) / 2
    mean_x, mean_y = smooth(x), smooth(y)
    variances = smooth(x * x) - mean_x.square() + smooth(y * y) - mean_y.square()
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    likeness = likeness / ((mean_x.square() + mean_y.square() + c1) * (variances + c2))
    return rearrange(likeness, "(b c) 1 h w -> b (c h w)", c=3).mean(1).float()


def nearest(queries: Tensor, gallery: Tensor, k: int) -> Tensor:
    """Numbers of the nearest pictures of a gallery (M, D) for each query (Q, D), the nearest first: (Q, min(k, M))
    int64. Nearness is the cosine similarity of features from which the gallery's mean is subtracted."""
    mean = gallery.float().mean(0)
    places = F.normalize(gallery.float() - mean, dim=1)
    found = []
    for start in range(0, len(queries), ROWS_AT_ONCE):
        likeness = F.normalize(queries[start : start + ROWS_AT_ONCE].float() - mean, dim=1) @ places.T
        found.append(likeness.topk(min(k, len(gallery)), dim=1).indices)
    return torch.cat(found)


def standardised(features: Tensor, gallery: Tensor) -> Tensor:
    """Features (Q, D) standardised with the gallery's mean and standard deviation of each channel: (Q, D) float32.

    A deviation below a tenth of the mean deviation is replaced by that tenth, so that a channel that hardly ever fires
    in the gallery does not outweigh all others where it does.
    """
    deviation, mean = torch.std_mean(gallery.float(), dim=0, correction=0)
    return (features.float() - mean) / deviation.clamp_min(0.1 * float(deviation.mean()) + 1e-6)


def chance_recall(num_right: int, num_pictures: int, k: int) -> float:
    """The probability that k random pictures out of `num_pictures` contain at least one of the `num_right` right
    ones."""
    k = min(k, num_pictures)
    return 1 - math.comb(num_pictures - num_right, k) / math.comb(num_pictures, k)


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Frechet distance (the square of the 2-Wasserstein distance) of the normal distributions with the means and
    covariances of features (M, D) and others (N, D), M and N at least 2: |m - n|^2 + tr(A + B - 2 (AB)^(1/2)), Dowson
    and Landau 1982.

    It is biased upwards for few pictures, so only distances over equally many pictures can be compared. torchmetrics'
    FID computes it, on coordinates within the span of all features: what is constant leaves its matrix root singular,
    and then inexact.
    """
    # imports transformers and scipy: three seconds, which only an evaluation should wait for
    from torchmetrics.image.fid import FrechetInceptionDistance

    both = torch.cat([features, others]).double()
    centred = both - both.mean(0)
    _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)
    spanning = sizes > sizes.max() * max(both.shape) * torch.finfo(torch.float64).eps
    if not spanning.any():
        return 0.0
    places = centred @ directions[spanning].T
    identity = torch.nn.Identity()
    identity.num_features = places.shape[1]  # what torchmetrics asks a network of ours for
    distance = FrechetInceptionDistance(feature=identity).set_dtype(torch.float64)
    distance.update(places[: len(features)], real=False)
    distance.update(places[len(features) :], real=True)
    return float(distance.compute())


def precision_and_recall(features: Tensor, others: Tensor, *, neighbours: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991) of drawn pictures with features (M, D)
    among real ones with features (N, D), M and N above `neighbours`: shares in [0, 1].

    Precision is the share of drawn pictures that are realistic: no farther from some real picture than its third
    nearest real one is. Recall is the share of real pictures that are so near to a drawn one: how much of the variety
    is drawn. Both rise with the number of pictures. torchmetrics has neither.
    """

    def distances(one: Tensor, other: Tensor) -> Tensor:  # by differences: zero between equal pictures
        return torch.cdist(one.double(), other.double(), compute_mode="donot_use_mm_for_euclid_dist")

    def radii(one: Tensor) -> Tensor:  # each picture is the nearest to itself
        return distances(one, one).kthvalue(neighbours + 1, dim=1).values

    between = distances(features, others)
    precision = (between <= radii(others)).any(1)
    recall = (between <= radii(features)[:, None]).any(0)
    return float(precision.double().mean()), float(recall.double().mean())
