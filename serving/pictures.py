"""Codes of a picture that is given in part, and the picture of codes that are not all drawn yet."""

import torch
from PIL import Image, ImageOps
from torch import Tensor

from dalle.errors import ImageError, ParameterError
from dalle.images import load_image, open_image, to_pil
from dalle.pipeline import DALLE
from serving.jobs import Given

__all__ = ["kept_codes", "preview"]

NOT_DRAWN_YET = 235
"""Grey of the part of a preview that is still to come."""


@torch.inference_mode()
def kept_codes(model: DALLE, given: Given) -> Tensor:
    """(N,) int64: the codes of the picture, -1 where one is to be drawn.

    Raises `ImageError` for a picture or a mask that cannot be used, `ParameterError` for rows that are not there.
    """
    codes = model.encode(load_image(given.image, size=model.image_size, max_pixels=given.max_pixels))
    height, width = codes.shape
    if given.mask is not None:
        drawn = _transparent(given, model.image_size, (height, width))
        if not drawn.any():
            raise ImageError("the mask has no transparent pixel: there is nothing to draw")
        codes[drawn] = -1
    else:
        rows = height // 2 if given.keep_rows is None else given.keep_rows
        if not 0 <= rows < height:
            raise ParameterError(f"keep_rows is {rows}; it must be in 0..{height - 1}")
        codes[rows:] = -1
    return codes.flatten()


def _transparent(given: Given, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """(H, W) bool: which codes have a pixel that the mask leaves transparent, after the same crop as the picture's."""
    assert given.mask is not None
    with (
        open_image(given.image, max_pixels=given.max_pixels) as image,
        open_image(given.mask, max_pixels=given.max_pixels) as mask,
    ):
        if mask.size != image.size:
            raise ImageError(
                f"the mask is {mask.height} x {mask.width} and the picture {image.height} x {image.width}: "
                "they must be of one size"
            )
        if not mask.has_transparency_data:
            raise ImageError("the mask has no transparency: what is transparent in it is drawn anew")
        # fully transparent pixels are black in it; any other grey after resizing has some of one
        solid = mask.convert("RGBA").getchannel("A").point(lambda alpha: 255 if alpha else 0)
        solid = ImageOps.fit(solid, size[::-1], Image.Resampling.BOX)
    transparent = torch.frombuffer(bytearray(solid.tobytes()), dtype=torch.uint8).view(size) < 255
    return transparent.view(grid[0], size[0] // grid[0], grid[1], size[1] // grid[1]).any(3).any(1)


@torch.inference_mode()
def preview(model: DALLE, codes: Tensor) -> Image.Image:
    """The picture of the first codes (M,), 0 < M < N; what is to come is grey."""
    layout, factor = model.decoder.layout, model.image_tokenizer.config.picture_factor
    # what is to come repeats the last code, so that nothing foreign shines through at the border; it is covered
    whole = torch.cat([codes, codes[-1:].expand(layout.num_codes - len(codes))])
    grid = layout.grid(whole[None]).to(model.decoder.embedding.weight.device)
    pixels = model.image_tokenizer.decode(grid)[0]
    to_come = (torch.arange(layout.num_codes) >= len(codes)).view(layout.grid_height, layout.grid_width)
    to_come = to_come.repeat_interleave(factor, 0).repeat_interleave(factor, 1).to(pixels.device)
    return to_pil(pixels.masked_fill(to_come, NOT_DRAWN_YET / 127.5 - 1))
