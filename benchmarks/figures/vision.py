"""The Vision Transformer of the CLIP model in the package: patches, what the class token reads, learned positions."""

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.figures.attention import PROMPT, SEED
from benchmarks.figures.canvas import COLOURS, Drawing, new_figure, show_map
from benchmarks.figures.observed import draw_row, observed
from benchmarks.figures.positions import neighbours
from dalle import DALLE
from dalle.checkpoint.clip import find_clip, load_clip
from dalle.clip.pictures import as_images

__all__ = ["draw_vision"]


def draw_vision(model: DALLE) -> Drawing:
    """Draw a picture as the network gets it, cut into patches; the class token's weights on the patches in each layer;
    a map of all tokens; and the likeness of the learned positions."""
    row = draw_row(model, PROMPT, SEED)
    network = load_clip(find_clip("emoji")).network.vision
    config = network.config
    side = config.layout.grid_width
    images = as_images([row.picture], config.image_size)
    with observed(network) as calls:
        network(images)
    weights = torch.stack([call.weights()[0].mean(0) for call in calls])  # (layers, 1 + N, 1 + N)
    figure = new_figure(1.9 * (len(weights) + 3), 2.5)
    picture, *layers, whole, positions = figure.subplots(1, len(weights) + 3)
    picture.imshow(np.clip((images[0].permute(1, 2, 0).numpy() + 1) / 2, 0, 1))
    picture.set(xticks=[], yticks=[])
    for place in range(config.patch_size, config.image_size, config.patch_size):
        picture.axhline(place - 0.5, color=COLOURS[1], lw=1)
        picture.axvline(place - 0.5, color=COLOURS[1], lw=1)
    picture.set_title(f"{side * side} patches", fontsize=9)
    for number, axes in enumerate(layers):
        show_map(axes, weights[number, 0, 1:].view(side, side), largest=0.5)
        axes.set_title(f"class token, layer {number + 1}", fontsize=9)
    show_map(whole, weights[-1], largest=0.5)
    whole.set_title(f"map of layer {len(weights)}, no mask", fontsize=9)
    vectors = F.normalize(network.position_embedding().detach(), dim=-1)
    table = vectors @ vectors.mT
    positions.imshow(table.numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    positions.set(xticks=[], yticks=[])
    positions.set_title("learned positions", fontsize=9)
    on_itself = ", ".join(f"{share:.2f}" for share in weights[:, 0, 0].tolist())
    return Drawing(
        figure=figure,
        numbers=f"{weights.shape[-1]} tokens; weight of the class token on itself, by layer: {on_itself}; "
        f"cosines of positions: {neighbours(table, 1, side, side)}",
    )
