"""Which style is a picture drawn in? A judge that is fitted on real pictures, seen through the image tokenizer.

The judge is Fisher's linear discriminant on the style features: the nearest centroid of a style, where distances are
measured in units of the scatter within styles (Fisher 1936; the scatter is shrunk towards a multiple of the identity).
Of held-out real emoji it tells more styles right than the nearest neighbour, and many more than plain centroids do.

An image tokenizer blurs the traits that tell styles apart, and a judge that has only seen sharp pictures then takes
most of them for the smoothest style. So pictures that come out of codes are judged by what each style looks like when
it comes out of codes: the judge is fitted on reconstructions.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dalle.image_tokenizer import ImageTokenizer
from training.features import (
    Features,
    Gallery,
    PictureFeatures,
    batches,
    evenly,
    kept_features,
    shards_digest,
)
from training.measures import standardised
from training.shards import PairShards

__all__ = ["StyleJudge", "StyleReference", "load_style_reference"]

NUM_PICTURES = 2048
SHRINKAGE = 0.01
"""As a share of the mean variance. 449 held-out emoji: 69 % of the real ones told right, 52 % of their reconstructions
by a judge of reconstructions, 21 % by a judge of real pictures; the nearest neighbour has 47, 39 and 21 %."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleReference:
    """Real pictures that show what the styles look like, from splits that are not for validation."""

    numbers: Tensor
    """(M,) int64, in the gallery."""
    reconstructed: Features
    """Of the same pictures, encoded and decoded."""


class StyleJudge:
    """Style features to styles, fitted on features (M, D) of pictures in the styles (M,)."""

    def __init__(self, features: Tensor, styles: np.ndarray) -> None:
        self.features = features
        self.names, numbers = np.unique(styles, return_inverse=True)
        places = standardised(features, features).double()
        centroids = torch.stack([places[torch.from_numpy(numbers == i)].mean(0) for i in range(len(self.names))])
        within = places - centroids[numbers]
        scatter = within.T @ within / len(within)
        scatter += (SHRINKAGE * scatter.diagonal().mean() + 1e-6) * torch.eye(len(scatter), dtype=scatter.dtype)
        self.root = torch.linalg.cholesky(scatter)
        self.centroids = self._whitened(centroids)

    def _whitened(self, places: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.root, places.T, upper=False).T

    def __call__(self, features: Tensor) -> np.ndarray:
        """(Q, D) -> (Q,) str."""
        places = self._whitened(standardised(features, self.features).double())
        return self.names[torch.cdist(places, self.centroids).argmin(1).numpy()]


@torch.no_grad()
def load_style_reference(
    splits: Mapping[str, PairShards], gallery: Gallery, tokenizer: ImageTokenizer, embed: PictureFeatures, folder: Path
) -> StyleReference | None:
    """At most 2,048 pictures, evenly spaced over the splits that are not named val*; None if there is no such split.

    Their features are kept in `folder/style-DIGEST.safetensors`, by digests of the shards and of the tokenizer.
    """
    places = [(name, i) for name, pairs in splits.items() if not name.startswith("val") for i in range(len(pairs))]
    if not places:
        return None
    chosen = [places[i] for i in evenly(len(places), NUM_PICTURES)]

    def compute() -> Features:
        parts = []
        for batch in batches(chosen, "styles through the image tokenizer"):
            images = torch.cat([splits[name].images([i]) for name, i in batch]).to(embed.device)
            parts.append(embed(tokenizer.decode(tokenizer.encode(images))))
        return Features.cat(parts)

    digest = hashlib.sha256(f"{shards_digest(splits)} {_digest(tokenizer)}".encode()).hexdigest()[:12]
    return StyleReference(
        numbers=torch.tensor([gallery.starts[name] + i for name, i in chosen]),
        reconstructed=kept_features(folder / f"style-{digest}.safetensors", len(chosen), compute),
    )


def _digest(tokenizer: ImageTokenizer) -> str:
    digest = hashlib.sha256(json.dumps(tokenizer.config.to_dict()).encode())
    for name, value in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()
