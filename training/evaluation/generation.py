"""Generation: draw pictures for the captions of real pairs, and measure them by their nearest real pictures.

Concept recall at k is the share of drawn pictures for which one of the k nearest real pictures, among those of the
right style, has the right concept. Style accuracy is the share for which the nearest real picture, among those of the
right concept in all styles, has the right style. The same measures on reconstructions of the pairs' real pictures are
an upper bound for every decoder of these codes. (Style classifiers that do not know the concept were tried and given
up: the best of three found the right one of 16 styles for only 52 % of the reconstructions.)

The CLIP score is the mean cosine between picture and prompt, as a CLIP model sees them (Hessel et al. 2021, arXiv
2104.08718, without their factor); its bound is that of the real pictures.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dalle.checkpoint import Checkpoint
from dalle.clip.model import ClipModel
from dalle.clip.pictures import resized
from dalle.decoder.engine import Engine, StepResult
from dalle.decoder.request import Request
from dalle.decoder.sampling import SamplingParams
from dalle.images import composite
from training.captions.phrasing import Phrasing, prompt_for
from training.evaluation.features import Gallery, PictureFeatures, batches, evenly, mean_features
from training.evaluation.measures import (
    chance_recall,
    frechet_distance,
    nearest,
    precision_and_recall,
    standardised,
)
from training.pairs.shards import PairShards

__all__ = ["RECALL_AT", "Drawn", "Numbers", "concept_ranks", "draw", "judge"]

Numbers = dict[str, float | int | None]

NUM_SLOTS = {"cpu": 16, "cuda": 512}
NUM_EXAMPLES = 24
RECALL_AT = (1, 5)
NEIGHBOURS = 3
"""Neighbours of precision and recall, as in the paper."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """Features of the pictures that were drawn for M pairs, and some of these pictures."""

    numbers: Tensor
    """Numbers of the pairs in the gallery: (M,) int64."""
    drawn: Tensor
    """Features of the drawn pictures: (M, 4096) float16."""
    reconstructed: Tensor
    """Features of the reconstructions of the pairs' real pictures: (M, 4096) float16."""
    clip_drawn: Tensor
    """Vectors of a CLIP model, of unit length, of the drawn pictures: (M, E) float32; likewise of the pairs' real
    pictures, and of the prompts."""
    clip_real: Tensor
    clip_prompts: Tensor
    examples: Sequence[tuple[str, int, Tensor]]
    """At most 24 drawn pictures, evenly spaced: prompt, number of the pair in its split, and picture (C, H, W), with
    alpha if the model draws it."""

    @classmethod
    def cat(cls, parts: Sequence["Drawn"]) -> "Drawn":
        """Joins the pairs of all parts; leaves out the examples."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "examples"]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names}, examples=())


@torch.no_grad()
def draw(
    name: str,
    pairs: PairShards,
    checkpoint: Checkpoint,
    embed: PictureFeatures,
    clip: ClipModel,
    params: SamplingParams,
    *,
    num: int,
    seed: int,
    start: int,
    phrasing: Phrasing = "training",
    wording: Callable[[str], str] | None = None,
) -> Drawn:
    """Draw a picture for each of at most `num` evenly spaced pairs of a split.

    Prompts are those of `training.captions.phrasing`; one that is too long for the model is truncated with a warning.
    The n-th picture, counted from 0, has the seed `seed` + n. start: number of the split's first pair in the gallery.
    clip: on the device of `embed`. wording: what is drawn of a prompt, as `CaptionWording`; None draws prompts as they
    are.
    """
    decoder, text, tokenizer = checkpoint.decoder, checkpoint.text_tokenizer, checkpoint.image_tokenizer
    assert decoder is not None and text is not None
    chosen = evenly(len(pairs), num)
    prompts = [prompt_for(pairs.metadata(number), number, phrasing) for number in chosen]
    rows = text.encode_batch(prompts if wording is None else [wording(one) for one in prompts], truncate=True)
    requests = [
        Request(text_ids=row, null_ids=text.null_ids, params=params, seed=seed + i) for i, row in enumerate(rows)
    ]
    engine = Engine(decoder, num_slots=NUM_SLOTS.get(embed.device.type, 16))
    with tqdm(total=len(chosen), desc=f"draw {name}", unit="picture", leave=False) as bar:

        def advance(step: StepResult) -> None:
            bar.update(len(step.finished))

        codes = engine.layout.grid(torch.stack(engine.run(requests, advance)))

    shown = set(evenly(len(chosen), NUM_EXAMPLES))
    drawn, reconstructed, examples = [], [], []
    clip_drawn: list[Tensor] = []
    clip_real: list[Tensor] = []
    clip_size = clip.network.config.vision.image_size
    for batch in batches(range(len(chosen)), f"compare {name}"):
        decoded = tokenizer.decode(codes[batch].to(embed.device))
        images = composite(decoded)
        real = pairs.images([chosen[i] for i in batch], channels=tokenizer.config.channels).to(embed.device)
        drawn.append(embed(images))
        reconstructed.append(embed(composite(tokenizer.decode(tokenizer.encode(real)))))
        for found, pictures in ((clip_drawn, images), (clip_real, composite(real))):
            found.append(clip.network.embed_images(resized(pictures, clip_size)).cpu())
        examples += [(prompts[i], chosen[i], one.cpu()) for i, one in zip(batch, decoded, strict=True) if i in shown]
    return Drawn(
        numbers=start + torch.tensor(chosen),
        drawn=torch.cat(drawn),
        reconstructed=torch.cat(reconstructed),
        clip_drawn=torch.cat(clip_drawn),
        clip_real=torch.cat(clip_real),
        clip_prompts=clip.embed_prompts(prompts),
        examples=examples,
    )


def judge(gallery: Gallery, drawn: Drawn) -> Numbers:
    """Measures of the drawn pictures and their bounds: shares in [0, 1], and Frechet distances.

    The shares are `recall_at_1`, `recall_at_5` and `style_accuracy`; with the prefix `reconstructed_` they are those of
    reconstructions, with `chance_` those of a random guess. `frechet_distance` is to the pairs' real pictures, in
    features that have variance 1 over the gallery; None for a single picture, which has no covariance. Style accuracy
    is over the pairs whose concept has pictures in several styles; None without such pairs.

    `precision` and `recall` are those of Kynkaanniemi et al. among the pairs' real pictures, in the features of the
    Frechet distance; None for fewer than five pictures. `clip_score` is the mean cosine with the own prompt; with the
    prefix `real_` that of the real pictures, with `chance_` that of drawn pictures with the prompts of other pairs,
    None for a single pair.
    """
    numbers = drawn.numbers
    found: Numbers = {"pictures": len(numbers)}
    concepts = gallery.concepts[numbers.numpy()]
    several = torch.tensor([len(np.unique(gallery.styles[gallery.concepts == one])) > 1 for one in concepts])
    for who, features in (("", drawn.drawn), ("reconstructed_", drawn.reconstructed)):
        ranks = concept_ranks(gallery, numbers, features)
        found |= {f"{who}recall_at_{k}": _mean(ranks < k) for k in RECALL_AT}
        ranks = _ranks(gallery.features, gallery.concepts, gallery.styles, numbers[several], features[several])
        found[f"{who}style_accuracy"] = _mean(ranks < 1)
    for k in RECALL_AT:
        found[f"chance_recall_at_{k}"] = _chance(gallery.styles, gallery.concepts, numbers, k)
    found["chance_style_accuracy"] = _chance(gallery.concepts, gallery.styles, numbers[several], 1)
    units = mean_features(gallery.features)
    real = standardised(mean_features(gallery.features[numbers]), units)
    for who, features in (("", drawn.drawn), ("reconstructed_", drawn.reconstructed)):
        own = standardised(mean_features(features), units)
        found[f"{who}frechet_distance"] = frechet_distance(own, real) if len(numbers) > 1 else None
        shares = (
            precision_and_recall(own, real, neighbours=NEIGHBOURS) if len(numbers) > NEIGHBOURS + 1 else (None,) * 2
        )
        found[f"{who}precision"], found[f"{who}recall"] = shares
    return found | _clip_scores(drawn)


def concept_ranks(gallery: Gallery, numbers: Tensor, features: Tensor) -> Tensor:
    """For each drawn picture, how many real pictures of the right style are nearer than the first one with the right
    concept, at most 5: (M,) int64. It counts for recall at k if that is below k.

    numbers: (M,), those of the pairs in the gallery that the pictures were drawn for. features: (M, 4096).
    """
    return _ranks(gallery.features, gallery.styles, gallery.concepts, numbers, features)


def _clip_scores(drawn: Drawn) -> Numbers:
    cosines = drawn.clip_drawn @ drawn.clip_prompts.T
    others = ~torch.eye(len(cosines), dtype=torch.bool)
    return {
        "clip_score": _mean(cosines.diagonal()),
        "real_clip_score": _mean((drawn.clip_real * drawn.clip_prompts).sum(1)),
        "chance_clip_score": _mean(cosines[others]),
    }


def _mean(values: Tensor) -> float | None:
    return values.double().mean().item() if len(values) else None


def _ranks(features: Tensor, groups: np.ndarray, labels: np.ndarray, numbers: Tensor, queries: Tensor) -> Tensor:
    """The rank (M,) of the first right picture of the gallery for each query: how many pictures of its group are nearer
    than the first one with its label, at most 5.

    A query is the features of a picture that was drawn for the picture of the same place in `numbers`, whose group and
    label are the right ones.
    """
    ranks = torch.full((len(numbers),), max(RECALL_AT))
    own_groups = groups[numbers.numpy()]
    for group in np.unique(own_groups):
        own = torch.from_numpy(np.flatnonzero(own_groups == group))
        members = torch.from_numpy(np.flatnonzero(groups == group))
        found = members[nearest(queries[own], features[members], max(RECALL_AT))]
        right = labels[found.numpy()] == labels[numbers[own].numpy(), None]
        ranks[own] = torch.from_numpy(np.where(right.any(1), right.argmax(1), max(RECALL_AT)))
    return ranks


def _chance(groups: np.ndarray, labels: np.ndarray, numbers: Tensor, k: int) -> float | None:
    chances = []
    for number in numbers.tolist():
        same_group = groups == groups[number]
        right = same_group & (labels == labels[number])
        chances.append(chance_recall(int(right.sum()), int(same_group.sum()), k))
    return float(np.mean(chances)) if chances else None
