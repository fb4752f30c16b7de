"""The nearest real picture as a classifier: how often has it the style and the group of the picture that it is near to?

Two kinds of nearness are compared: cosines of the vectors of a CLIP model's image encoder, and the features of VGG16 by
which drawn pictures are judged (`training.evaluation.features`).
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from dalle.clip.clip import Clip
from training.clip_data import PairLabels
from training.evaluation.features import PictureFeatures, batches
from training.evaluation.generation import Numbers
from training.evaluation.measures import nearest
from training.pairs.shards import PairShards
from training.pairs.small_pictures import SmallPictures

__all__ = ["LABELS", "Looks", "looks_of", "neighbour_accuracy"]

LABELS = ("style", "group")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Looks:
    """Vectors and labels of M pictures."""

    clip: Tensor
    """Vectors of unit length of the image encoder: (M, E) float32."""
    vgg: Tensor
    """Features of VGG16: (M, 4096) float16."""
    style: list[str]
    """Style of each picture, empty if it has none."""
    group: list[str]
    """Group of each picture, empty if it has none."""


@torch.no_grad()
def looks_of(
    network: Clip,
    embed: PictureFeatures,
    pairs: PairShards,
    pictures: SmallPictures,
    labels: PairLabels,
    numbers: Sequence[int],
    title: str,
) -> Looks:
    """Vectors and labels of the pictures with these numbers. pictures: all of the pairs, in the network's size.
    title: label of the progress bar."""
    clip, vgg = [], []
    for some in batches(numbers, title):
        clip.append(network.embed_images(pictures.over_white(some).to(embed.device)).cpu())
        vgg.append(embed(pairs.images(some)))
    return Looks(
        clip=torch.cat(clip),
        vgg=torch.cat(vgg),
        style=[labels.styles[number] for number in numbers],
        group=[labels.groups[number] for number in numbers],
    )


def neighbour_accuracy(pictures: Looks, gallery: Looks) -> Numbers:
    """The shares of pictures whose nearest picture of a gallery has the same style and the same group.

    Keys: `clip_style`, `clip_group`, `vgg_style` and `vgg_group`; `chance_style` and `chance_group` for a random
    picture of the gallery. Pictures without a label do not count; None if none has one.
    """
    found = {
        "clip": (pictures.clip @ gallery.clip.T).argmax(1),
        "vgg": nearest(pictures.vgg, gallery.vgg, 1)[:, 0],
    }
    numbers: Numbers = {}
    for label in LABELS:
        own, others = getattr(pictures, label), getattr(gallery, label)
        counted = [place for place, one in enumerate(own) if one]
        for name, places in found.items():
            right = [others[int(places[place])] == own[place] for place in counted]
            numbers[f"{name}_{label}"] = sum(right) / len(right) if right else None
        chances = [others.count(own[place]) / len(others) for place in counted]
        numbers[f"chance_{label}"] = sum(chances) / len(chances) if chances else None
    return numbers
