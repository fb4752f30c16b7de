"""Encoding given pictures to kept codes, and decoding previews of pictures that are not finished.

A given picture arrives as pixels of the model's size: `serving.ingress.given` has read and cropped the caller's file.
"""

import torch
from PIL import Image
from torch import Tensor

from dalle.images import to_pil
from dalle.pipeline import DALLE
from serving.jobs import Given

__all__ = ["kept_codes", "preview"]

NOT_DRAWN_YET = 235
"""Grey level of the part of a preview that is not drawn yet."""


@torch.inference_mode()
def kept_codes(model: DALLE, given: Given) -> Tensor:
    """(N,) int64: the codes of the picture, -1 for every code to be drawn."""
    height, width = model.image_size
    codes = model.encode(Image.frombytes(given.mode, (width, height), given.pixels)).flatten()
    return codes.masked_fill(~torch.tensor(given.keep), -1)


@torch.inference_mode()
def preview(model: DALLE, codes: Tensor) -> Image.Image:
    """Decode the first codes (M,), 0 < M < N, to a picture of the model's `image_mode`. The part that is not drawn yet
    is grey and opaque."""
    layout, factor = model.decoder.layout, model.image_tokenizer.config.picture_factor
    # the missing codes repeat the last one, so that the decoder shows nothing else at the border; grey covers them
    whole = torch.cat([codes, codes[-1:].expand(layout.num_codes - len(codes))])
    grid = layout.grid(whole[None]).to(model.decoder.embedding.weight.device)
    pixels = model.image_tokenizer.decode(grid)[0]
    to_come = (torch.arange(layout.num_codes) >= len(codes)).view(layout.grid_height, layout.grid_width)
    to_come = to_come.repeat_interleave(factor, 0).repeat_interleave(factor, 1).to(pixels.device)
    grey = pixels.new_tensor([NOT_DRAWN_YET / 127.5 - 1] * 3 + [1.0])[: len(pixels), None, None]
    return to_pil(torch.where(to_come, grey, pixels))
