"""`Classifier`: a Vision Transformer with a head for one or several sets of labels, such as style and group."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from dalle.clip.config import VisionConfig
from dalle.clip.pictures import as_images
from dalle.clip.vision import VisionTransformer
from dalle.config import Config, require

__all__ = ["Classifier", "ClassifierConfig", "ClassifierModel", "LabelSet"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelSet(Config):
    """Labels that exclude each other."""

    name: str
    """What the labels name, such as style."""
    labels: tuple[str, ...]
    """The labels, in the order of the logits."""

    def __post_init__(self) -> None:
        require(len({*self.labels}) == len(self.labels), f"a label of {self.name} is there twice")
        require(len(self.labels) >= 2, f"{self.name} has {len(self.labels)} labels; it needs at least 2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig(Config):
    """Sizes of a classifier, and its labels."""

    vision: VisionConfig
    label_sets: tuple[LabelSet, ...]
    """The sets of labels, each with a head of its own."""

    def __post_init__(self) -> None:
        require(len(self.label_sets) > 0, "a classifier needs at least one set of labels")


class Classifier(nn.Module):
    """A Vision Transformer with a linear layer to the logits of each set of labels."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTransformer(config.vision)
        self.heads = nn.ModuleList(nn.Linear(config.vision.width, len(one.labels)) for one in config.label_sets)
        for head in self.heads:
            for parameter in head.parameters():
                nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> logits (B, labels), float32, of each set of labels."""
        vectors = self.vision(images)
        return [head(vectors).float() for head in self.heads]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierModel:
    """The directory of a classifier, loaded. The network is float32, in evaluation mode."""

    name: str
    network: Classifier
    about: Mapping[str, str]
    """Free text by key: data, training."""
    digest: str = ""
    """SHA-256 of config.json, in hexadecimal; set by loading."""

    @torch.inference_mode()
    def classify(self, pictures: Sequence[Image.Image]) -> list[dict[str, dict[str, float]]]:
        """For each picture, by the name of each set of labels, the probability of each label, the likeliest first."""
        config = self.network.config
        images = as_images(pictures, config.vision.image_size).to(next(self.network.parameters()).device)
        found: list[dict[str, dict[str, float]]] = [{} for _ in pictures]
        for one, logits in zip(config.label_sets, self.network(images), strict=True):
            for labels, row in zip(found, logits.softmax(-1).cpu(), strict=True):
                labels[one.name] = {one.labels[i]: float(row[i]) for i in row.argsort(descending=True).tolist()}
        return found
