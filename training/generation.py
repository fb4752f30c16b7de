"""Draw pictures for the captions of real pairs, and judge them by the real pictures that are nearest to them.

Concept recall at k: is one of the k real pictures nearest in content, of all in its style, of the right concept?
Style accuracy: does `training.style` tell the right style from it? Both are measured in the same way on reconstructions
of the pairs' real pictures, which no decoder of these codes can hope to surpass.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dalle.checkpoint import Checkpoint
from dalle.engine import Engine, Request, StepResult
from dalle.sampling import SamplingParams
from training.features import Features, Gallery, PictureFeatures, batches, evenly
from training.measures import chance_recall, frechet_distance, nearest, standardised
from training.shards import PairShards
from training.style import StyleJudge, StyleReference

__all__ = ["RECALL_AT", "Drawn", "Numbers", "draw", "judge"]

Numbers = dict[str, float | int | None]

NUM_SLOTS = 16
NUM_EXAMPLES = 24
RECALL_AT = (1, 5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """What was drawn for M pairs, as the evaluation sees it."""

    numbers: Tensor
    """(M,) int64: the pairs, as numbers in the gallery."""
    drawn: Features
    reconstructed: Features
    """Of the pairs' real pictures, encoded and decoded."""
    examples: Sequence[tuple[str, int, Tensor]]
    """At most 24, evenly spaced: the prompt, the number of the pair in its split, and the picture (3, H, W)."""

    @classmethod
    def cat(cls, parts: Sequence["Drawn"]) -> "Drawn":
        """The pairs of all parts, without examples."""
        return cls(
            numbers=torch.cat([part.numbers for part in parts]),
            drawn=Features.cat([part.drawn for part in parts]),
            reconstructed=Features.cat([part.reconstructed for part in parts]),
            examples=(),
        )


@torch.no_grad()
def draw(
    name: str,
    pairs: PairShards,
    checkpoint: Checkpoint,
    embed: PictureFeatures,
    params: SamplingParams,
    *,
    num: int,
    seed: int,
    start: int,
) -> Drawn:
    """Draw a picture for each of `num` pairs of a split, evenly spaced, whose first pair is `start` in the gallery.

    The prompt is the pair's first caption, cut with a warning if it is too long for the model; the n-th picture has
    the seed `seed` + n.
    """
    decoder, text, tokenizer = checkpoint.decoder, checkpoint.text_tokenizer, checkpoint.image_tokenizer
    assert decoder is not None and text is not None
    chosen = evenly(len(pairs), num)
    prompts = [str(pairs.metadata(number)["captions"][0]) for number in chosen]
    rows = text.encode_batch(prompts, truncate=True)
    requests = [
        Request(text_ids=row, null_ids=text.null_ids, params=params, seed=seed + i) for i, row in enumerate(rows)
    ]
    engine = Engine(decoder, num_slots=NUM_SLOTS)
    with tqdm(total=len(chosen), desc=f"draw {name}", unit="picture", leave=False) as bar:

        def advance(step: StepResult) -> None:
            bar.update(len(step.finished))

        codes = engine.layout.grid(torch.stack(engine.run(requests, advance)))

    shown = set(evenly(len(chosen), NUM_EXAMPLES))
    drawn, reconstructed, examples = [], [], []
    for batch in batches(range(len(chosen)), f"look at {name}"):
        images = tokenizer.decode(codes[batch].to(embed.device))
        real = pairs.images([chosen[i] for i in batch]).to(embed.device)
        drawn.append(embed(images))
        reconstructed.append(embed(tokenizer.decode(tokenizer.encode(real))))
        examples += [(prompts[i], chosen[i], image.cpu()) for i, image in zip(batch, images, strict=True) if i in shown]
    return Drawn(
        numbers=start + torch.tensor(chosen),
        drawn=Features.cat(drawn),
        reconstructed=Features.cat(reconstructed),
        examples=examples,
    )


def judge(gallery: Gallery, reference: StyleReference | None, drawn: Drawn) -> Numbers:
    """Shares in [0, 1] and distances, of the drawn pictures and of what bounds them.

    `recall_at_1` and so on, each with `reconstructed_` in front for reconstructions and `chance_` for a blind guess;
    `style_accuracy`, with `real_` in front for the pairs' real pictures themselves, by a judge of real pictures (None
    if the reference has fewer than two styles);
    `frechet_distance` to the pairs' real pictures, in features of which each has variance 1 over the
    gallery (None for a single picture, which has no covariance).
    """
    numbers = drawn.numbers
    real = gallery.features[numbers]
    numbers_of: Numbers = {"pictures": len(numbers)}
    for who, features in (("", drawn.drawn), ("reconstructed_", drawn.reconstructed)):
        ranks = _ranks(gallery, numbers, features.content)
        for k in RECALL_AT:
            numbers_of[f"{who}recall_at_{k}"] = (ranks < k).double().mean().item()
    for k in RECALL_AT:
        numbers_of[f"chance_recall_at_{k}"] = _chance(gallery, numbers, k)
    numbers_of |= _style_accuracies(gallery, reference, drawn)
    units = gallery.features.means()
    for who, features in (("", drawn.drawn), ("reconstructed_", drawn.reconstructed)):
        pair = [standardised(one.means(), units) for one in (features, real)]
        numbers_of[f"{who}frechet_distance"] = frechet_distance(*pair) if len(numbers) > 1 else None
    return numbers_of


def _ranks(gallery: Gallery, numbers: Tensor, content: Tensor) -> Tensor:
    """(M,) how many pictures of its style are nearer to each than the first of the right concept; at most 5."""
    ranks = torch.full((len(numbers),), max(RECALL_AT))
    styles = gallery.styles[numbers.numpy()]
    for style in np.unique(styles):
        own = torch.from_numpy(np.flatnonzero(styles == style))
        members = gallery.of_style(style)
        found = members[nearest(content[own], gallery.features.content[members], max(RECALL_AT))]
        right = gallery.concepts[found.numpy()] == gallery.concepts[numbers[own].numpy(), None]
        first = torch.from_numpy(np.where(right.any(1), right.argmax(1), max(RECALL_AT)))
        ranks[own] = first
    return ranks


def _chance(gallery: Gallery, numbers: Tensor, k: int) -> float:
    chances = []
    for number in numbers.tolist():
        same_style = gallery.styles == gallery.styles[number]
        right = same_style & (gallery.concepts == gallery.concepts[number])
        chances.append(chance_recall(int(right.sum()), int(same_style.sum()), k))
    return float(np.mean(chances))


def _style_accuracies(gallery: Gallery, reference: StyleReference | None, drawn: Drawn) -> Numbers:
    judged = {
        "style_accuracy": drawn.drawn.style,
        "reconstructed_style_accuracy": drawn.reconstructed.style,
        "real_style_accuracy": gallery.features.style[drawn.numbers],
    }
    if reference is None:
        return dict.fromkeys(judged)
    # a judge must not have seen the very pictures that it judges
    unseen = ~torch.isin(reference.numbers, drawn.numbers)
    numbers = reference.numbers[unseen]
    styles = gallery.styles[numbers.numpy()]
    if len(np.unique(styles)) < 2:
        return dict.fromkeys(judged)
    through = StyleJudge(reference.reconstructed.style[unseen], styles)
    plain = StyleJudge(gallery.features.style[numbers], styles)
    expected = gallery.styles[drawn.numbers.numpy()]
    return {
        name: float(((plain if name.startswith("real") else through)(style) == expected).mean())
        for name, style in judged.items()
    }
