"""How well a CLIP model finds pictures for prompts and prompts for pictures, and names style and group without a head.

Recall at k is the share of prompts for which one of the k nearest pictures of the split is right, and the share of
pictures for which one of the k nearest prompts is. Zero-shot accuracy is the share of pictures whose nearest label is
right, where a label's vector is the mean over phrases that name it.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.clip.clip import Clip
from dalle.text.tokenizer import PromptTokenizer
from training.captions.attributes import group_prompts, style_prompts
from training.captions.phrasing import Phrasing, prompt_for
from training.captions.wording import STYLES, Style
from training.clip_data import PairLabels
from training.evaluation.generation import Numbers
from training.evaluation.measures import chance_recall
from training.hardware import autocast
from training.pairs.shards import PairShards
from training.pairs.small_pictures import SmallPictures

__all__ = ["RECALL_AT", "Split", "measure_split", "recalls", "zero_shot"]

RECALL_AT = (1, 5)
AT_ONCE = 128


class Split:
    """The pictures, labels and prompts of some pairs, read once and measured with many models."""

    def __init__(self, pairs: PairShards, numbers: Sequence[int], pictures: SmallPictures, labels: PairLabels) -> None:
        self.pairs, self.numbers, self.pictures = pairs, numbers, pictures
        self.labels = labels.numbers[torch.tensor(numbers)]
        self.styles = [labels.styles[number] for number in numbers]
        self.groups = [labels.groups[number] for number in numbers]

    def images(self, places: Sequence[int]) -> Tensor:
        """Images (B, 3, H, W) over white of the pairs at these places of the split."""
        return self.pictures.over_white([self.numbers[place] for place in places])

    def prompts(self, phrasing: Phrasing) -> list[str]:
        """A prompt for each pair, which names the style."""
        return [prompt_for(self.pairs.metadata(number), number, phrasing) for number in self.numbers]


@torch.no_grad()
def measure_split(
    network: Clip,
    tokenizer: PromptTokenizer,
    split: Split,
    phrasings: Sequence[Phrasing],
    styles: Sequence[str],
    groups: Sequence[str],
    precision: str,
) -> Numbers:
    """Measure a model on a split, with prompts in each of these phrasings. styles, groups: the labels to choose from.

    Keys: `text_to_image_K` and `image_to_text_K` for the first phrasing, with its name in front for each further one;
    `style` and `group`, the zero-shot accuracies, None where no picture has such a label; `chance_K` for recall.
    """
    device = network.bias.device

    def texts(prompts: Sequence[str]) -> Tensor:
        ids = torch.tensor([tokenizer.pad(tokenizer.tokenize(prompt)) for prompt in prompts]).to(device)
        with autocast(device, precision):
            return torch.cat([network.embed_texts(some) for some in ids.split(AT_ONCE)]).cpu()

    vectors = []
    for start in range(0, len(split.numbers), AT_ONCE):
        some = range(start, min(start + AT_ONCE, len(split.numbers)))
        with autocast(device, precision):
            vectors.append(network.embed_images(split.images(some).to(device)).cpu())
    images = torch.cat(vectors)
    right = (split.labels[:, None] == split.labels).all(-1)
    numbers: Numbers = {"pictures": len(images)}
    for phrasing in phrasings:
        found = recalls(images, texts(split.prompts(phrasing)), right)
        first = phrasing == phrasings[0]
        numbers |= {key if first else f"{phrasing}_{key}": value for key, value in found.items()}
    for k in RECALL_AT:
        chances = [chance_recall(int(count), len(right), k) for count in right.sum(0)]
        numbers[f"chance_{k}"] = sum(chances) / len(chances)
    numbers["style"] = zero_shot(images, split.styles, styles, lambda one: texts(style_prompts(_style(one))))
    numbers["group"] = zero_shot(images, split.groups, groups, lambda one: texts(group_prompts(one)))
    return numbers


def recalls(images: Tensor, texts: Tensor, right: Tensor) -> dict[str, float]:
    """Recall at each of `RECALL_AT` in both directions, of vectors of M pictures (M, E) and of N prompts (N, E); right:
    (M, N) bool, which prompts fit which pictures."""
    cosines = images @ texts.T
    found = {}
    for name, likeness, fits in (("text_to_image", cosines.T, right.T), ("image_to_text", cosines, right)):
        for k in RECALL_AT:
            nearest = likeness.topk(min(k, likeness.shape[1]), dim=1).indices
            found[f"{name}_{k}"] = float(fits.gather(1, nearest).any(1).float().mean())
    return found


def zero_shot(
    images: Tensor, labels: Sequence[str], candidates: Sequence[str], embed: Callable[[str], Tensor]
) -> float | None:
    """The share of pictures whose label is the nearest of the candidates; pictures with an empty label do not count.
    None if there are none. embed: vectors (P, E) of phrases that name a candidate."""
    counted = [place for place, label in enumerate(labels) if label]
    if not counted:
        return None
    classes = torch.stack([F.normalize(embed(candidate).mean(0), dim=0) for candidate in candidates])
    chosen = (images[counted] @ classes.T).argmax(1).tolist()
    return sum(candidates[one] == labels[place] for one, place in zip(chosen, counted, strict=True)) / len(counted)


def _style(name: str) -> Style:
    return STYLES.get(name, Style(name=name))
