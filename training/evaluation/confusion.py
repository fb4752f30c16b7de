"""How often a classifier is right, and which labels it takes for which others, as numbers and as a picture."""

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from dalle.clip.classifier import LabelSet

__all__ = ["confusion", "confusion_picture", "top_accuracies"]

TOP = (1, 5)


def top_accuracies(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """The shares of pictures whose label is the likeliest, and among the five likeliest, of logits (M, labels) and
    targets (M,)."""
    return {
        f"top_{k}": float(
            (logits.topk(min(k, logits.shape[1]), dim=1).indices == targets[:, None]).any(1).float().mean()
        )
        for k in TOP
    }


def confusion(logits: Tensor, targets: Tensor) -> Tensor:
    """How many pictures of each label (rows) are taken for each label (columns): (labels, labels) int64."""
    num = logits.shape[1]
    return torch.bincount(targets * num + logits.argmax(1), minlength=num**2).reshape(num, num)


def confusion_picture(counts: Tensor, labels: LabelSet) -> Tensor:
    """The confusion of `confusion` as an image (3, H, W) in [-1, 1]: the shares of each row, in per cent."""
    num = len(labels.labels)
    shares = 100 * counts / counts.sum(1, keepdim=True).clamp_min(1)
    side = 2.5 + 0.36 * num
    figure = Figure(figsize=(side, side), layout="constrained", dpi=80)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(num), labels.labels, rotation=90)
    axes.set_yticks(range(num), labels.labels)
    axes.set_xlabel(f"{labels.name}, as classified")
    axes.set_ylabel(labels.name)
    for row in range(num):
        for column in range(num):
            if share := round(float(shares[row, column])):
                colour = "white" if share > 50 else "black"
                axes.text(column, row, str(share), ha="center", va="center", fontsize=7, color=colour)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1
