"""The losses of a CLIP model: pictures and prompts that belong together are near each other, all others far apart.

The sigmoid loss (SigLIP, Zhai et al. 2023, arXiv 2303.15343) judges each pair of a picture and a prompt by itself. The
softmax loss (CLIP, Radford et al. 2021, 2103.00020) lets each picture choose among the prompts of the batch, and each
prompt among the pictures. A row may have several positives: a prompt that names no style fits the same thing in every
style. The softmax loss then is the mean over them (supervised contrastive learning, Khosla et al. 2020, 2004.11362).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.clip.clip import Clip
from training.distributed import current_share, gathered_with_gradient

__all__ = ["contrastive_loss", "matches", "sigmoid_loss", "softmax_loss"]

UNNAMED = -1
"""The label of what a caption does not name."""


def matches(picture_labels: Tensor, caption_labels: Tensor) -> Tensor:
    """Which captions fit which pictures: (M, N) bool, of labels (M, L) of pictures and (N, L) of captions. A caption
    fits every picture that has the labels which it names; the others of its labels are -1."""
    same = picture_labels[:, None] == caption_labels
    return (same | (caption_labels == UNNAMED)).all(-1)


def sigmoid_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """The sigmoid loss of each row, (M,), of logits (M, N) and positives (M, N) bool: the sum over its N columns of the
    cross-entropy, in nats, of belonging together."""
    return -F.logsigmoid(torch.where(positives, logits, -logits)).sum(1)


def softmax_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """The softmax loss of each row, (M,), of logits (M, N) and positives (M, N) bool, at least one in each row: the
    cross-entropy in nats of choosing a positive among the N columns, averaged over the positives."""
    logs = logits.log_softmax(1).masked_fill(~positives, 0.0)
    return -logs.sum(1) / positives.sum(1)


def contrastive_loss(
    network: Clip,
    images: Tensor,
    texts: Tensor,
    picture_labels: Tensor,
    caption_labels: Tensor,
    kind: Literal["sigmoid", "softmax"],
) -> Tensor:
    """The loss of a whole batch, as this process computes its share of it: averaged over processes, it is that of one
    process with the whole batch, and so is its gradient.

    images, texts: vectors of this process's rows, (b, E). picture_labels, caption_labels: those of the whole batch, in
        its order, (B, L), as `matches` reads them. Every picture and every caption must have a match.
    """
    all_images, all_texts = gathered_with_gradient(images), gathered_with_gradient(texts)
    share = current_share()
    if kind == "sigmoid":
        own = matches(share.of(picture_labels), caption_labels)
        return sigmoid_loss(network.logits(images, all_texts), own).mean()
    of_pictures = softmax_loss(network.logits(images, all_texts), matches(share.of(picture_labels), caption_labels))
    of_captions = softmax_loss(network.logits(all_images, texts).T, matches(picture_labels, share.of(caption_labels)).T)
    return (of_pictures.mean() + of_captions.mean()) / 2
