"""Batches for `training.clip`: pictures, captions, and the labels that decide which captions fit which pictures."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dalle.images import composite
from dalle.text.tokenizer import PromptTokenizer
from training.captions.attributes import Caption, drawn_caption
from training.clip_config import ClipTrainingConfig
from training.distributed import Share
from training.evaluation.features import concept_of
from training.losses.contrastive import UNNAMED
from training.pairs.epochs import WeightedEpochs
from training.pairs.shards import PairShards
from training.pairs.small_pictures import SmallPictures, drawn_backgrounds
from training.pairs.views import can_be_mirrored, draw_places, moved

__all__ = ["ContrastiveBatches", "PairLabels", "thing_of"]

DRAWS = 20
"""Captions of a pair that are drawn until one fits into the text length."""


def thing_of(metadata: Mapping[str, Any]) -> str:
    """What a picture shows, with its skin tone: code points, else the English name, else the first caption."""
    return metadata.get("codepoints") or metadata.get("name_en") or metadata["captions"][0]


class PairLabels:
    """Labels of all pairs of shards: numbers of thing, style and group."""

    def __init__(self, pairs: PairShards) -> None:
        everything = [pairs.metadata(number) for number in range(len(pairs))]
        self.styles = [one.get("style") or "" for one in everything]
        """Style of each picture, empty if it has none."""
        self.groups = [one.get("group") or "" for one in everything]
        """Group of each picture, empty if it has none."""
        things = [thing_of(one) for one in everything]
        columns = [np.unique(column, return_inverse=True)[1] for column in (things, self.styles, self.groups)]
        self.numbers = torch.from_numpy(np.stack(columns, 1))
        """Thing, style and group of each picture: (M, 3) int64."""
        self.mirror = np.array([can_be_mirrored(one) for one in everything])
        """Which pictures may be mirrored: (M,) bool."""
        self.concepts = np.unique([concept_of(one) for one in everything], return_inverse=True)[1]
        """Concept of each picture, which is the same in all skin tones: (M,) int64."""

    def of_caption(self, number: int, caption: Caption) -> Tensor:
        """The labels (3,) of what a caption of this pair names."""
        named = torch.tensor([caption.thing, caption.style, caption.group])
        return torch.where(named, self.numbers[number], UNNAMED)


class ContrastiveBatches:
    """The batch of each step, as a pure function of the step: pictures of shuffled epochs, and for some of them a
    partner that shows the same concept; of each a random view, and a caption drawn at random."""

    def __init__(
        self, config: ClipTrainingConfig, pairs: PairShards, pictures: SmallPictures, tokenizer: PromptTokenizer
    ) -> None:
        self.pairs, self.pictures, self.tokenizer = pairs, pictures, tokenizer
        self.seed = config.loop.seed
        self.labels = PairLabels(pairs)
        self.num_partners = int(config.loop.batch_size * config.partner_share)
        num_drawn = config.loop.batch_size - self.num_partners
        self.epochs = WeightedEpochs(pairs.weights, batch_size=num_drawn, seed=self.seed)
        order = np.argsort(self.labels.concepts, kind="stable")
        ends = np.cumsum(np.bincount(self.labels.concepts))
        self.of_concept = np.split(order, ends[:-1])
        """Numbers of the pairs of each concept."""

    def batch(self, step: int, share: Share) -> dict[str, Tensor]:
        """A share of the batch of a step: `images` and `text_ids` of the share's rows; `picture_labels` and
        `caption_labels` of all rows. Pictures of other shares are not read."""
        chance = np.random.default_rng([self.seed, step, 1])
        drawn = self.epochs.batch(step)
        numbers = np.concatenate([drawn, [self._partner(one, chance) for one in drawn[: self.num_partners]]])
        numbers = numbers.astype(np.int64)
        captions, text_ids = self._captions(numbers, step)
        places = draw_places(self.labels.mirror[numbers], chance)
        backgrounds = drawn_backgrounds(len(numbers), chance)
        images = moved(self.pictures(share.of(numbers)), share.of(places))
        caption_labels = [self.labels.of_caption(one, caption) for one, caption in zip(numbers, captions, strict=True)]
        return {
            "images": composite(images, share.of(backgrounds)),
            "text_ids": share.of(text_ids),
            "picture_labels": self.labels.numbers[numbers],
            "caption_labels": torch.stack(caption_labels),
        }

    def _partner(self, number: int, chance: np.random.Generator) -> int:
        """Another picture of the same concept; the picture itself if there is none."""
        kin = self.of_concept[self.labels.concepts[number]]
        others = kin[kin != number]
        return int(chance.choice(others)) if len(others) else int(number)

    def _captions(self, numbers: Sequence[int] | np.ndarray, step: int) -> tuple[list[Caption], Tensor]:
        captions, rows = [], []
        for row, number in enumerate(numbers):
            caption, tokens = self._fitting(
                self.pairs.metadata(int(number)), random.Random(f"{self.seed}/{step}/{row}")
            )
            captions.append(caption)
            rows.append(self.tokenizer.pad(tokens))
        return captions, torch.tensor(rows)

    def _fitting(self, metadata: dict[str, Any], chance: random.Random) -> tuple[Caption, list[int]]:
        """A caption that fits into the text length, and its tokens; the last one drawn, to be cut, if none fits."""
        for _ in range(DRAWS):
            caption = drawn_caption(metadata, chance)
            tokens = self.tokenizer.tokenize(caption.text)
            if len(tokens) <= self.tokenizer.max_tokens:
                break
        return caption, tokens
