"""`with_alpha`: an image tokenizer of RGB that can learn to draw transparency, with the codes that it has."""

import dataclasses

from torch import nn

from dalle.errors import DataError
from dalle.vq.vqgan import ImageTokenizer

__all__ = ["with_alpha"]


def with_alpha(model: ImageTokenizer, widths: tuple[int, ...], folder: str) -> ImageTokenizer:
    """The image tokenizer with a network that finds alpha in a decoded picture, new and with opaque pictures until it
    is trained. All else stays: codes, and what pictures look like over white.

    widths: `alpha_widths` of the result. folder: where the model is from, for messages. Raises `DataError` if it has an
    alpha channel already, and `ConfigError` for widths that do not fit.
    """
    if model.config.channels == 4:
        raise DataError(f"{folder} has an alpha channel already: leave alpha_widths out")
    result = ImageTokenizer(dataclasses.replace(model.config, channels=4, alpha_widths=widths))
    loaded = result.load_state_dict(model.state_dict(), strict=False)
    assert not loaded.unexpected_keys and all(name.startswith("matting.") for name in loaded.missing_keys), loaded
    nn.init.zeros_(result.matting.get_parameter("alpha.2.weight"))
    nn.init.ones_(result.matting.get_parameter("alpha.2.bias"))
    return result
