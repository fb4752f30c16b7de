"""`with_alpha`: an image tokenizer of RGB that can learn to draw transparency, with the codes that it has."""

import dataclasses

import torch

from dalle.errors import DataError
from dalle.vq.vqgan import ImageTokenizer

__all__ = ["with_alpha"]


def with_alpha(model: ImageTokenizer, folder: str) -> ImageTokenizer:
    """The image tokenizer with a fourth channel to draw, which is opaque everywhere until it is trained: it decodes to
    the same colours. Its encoder reads RGBA pictures over white, and gives the same codes for them.

    folder: where the model is from, for messages. Raises `DataError` if it has an alpha channel already.
    """
    if model.config.channels == 4:
        raise DataError(f"{folder} has an alpha channel already: leave add_alpha out")
    weights = model.state_dict()
    last = f"decoder.{len(model.decoder) - 2}"  # before the pixels are unfolded
    weight, bias = weights[f"{last}.weight"], weights[f"{last}.bias"]
    num_pixels = model.config.patch_size**2
    weights[f"{last}.weight"] = torch.cat([weight, weight.new_zeros(num_pixels, *weight.shape[1:])])
    weights[f"{last}.bias"] = torch.cat([bias, bias.new_ones(num_pixels)])
    result = ImageTokenizer(dataclasses.replace(model.config, channels=4, encodes_over_white=True))
    result.load_state_dict(weights)
    return result
