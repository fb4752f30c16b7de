"""Registry of the kinds of image tokenizer that a model directory may have, by name, and their common contract.

Every image tokenizer has `encode(images) -> codes` and `decode(codes) -> images`, with images float32 (B, channels, H,
W) in [-1, 1] and codes int64 (B, h, w), and a `config` with `image_size`, `channels`, `factor`, `picture_factor`,
`codebook_size` and `grid_size`. Pixels may have another range inside a network.
"""

from dalle.config import Config
from dalle.vq.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from dalle.vq.openai_dvae import OpenAIDiscreteVAE, OpenAIDiscreteVAEConfig
from dalle.vq.vqgan import ImageTokenizer, ImageTokenizerConfig

__all__ = ["DEFAULT_KIND", "KINDS", "AnyImageTokenizer", "AnyImageTokenizerConfig", "kind_of"]

AnyImageTokenizer = ImageTokenizer | DiscreteVAE | OpenAIDiscreteVAE
AnyImageTokenizerConfig = ImageTokenizerConfig | DiscreteVAEConfig | OpenAIDiscreteVAEConfig

DEFAULT_KIND = "vqgan"
KINDS: dict[str, tuple[type[AnyImageTokenizerConfig], type[AnyImageTokenizer]]] = {
    "vqgan": (ImageTokenizerConfig, ImageTokenizer),
    "discrete_vae": (DiscreteVAEConfig, DiscreteVAE),
    "openai_dvae": (OpenAIDiscreteVAEConfig, OpenAIDiscreteVAE),
}


def kind_of(config: Config) -> str:
    """The name in `KINDS` of the kind that a configuration describes."""
    (name,) = [name for name, (config_class, _) in KINDS.items() if type(config) is config_class]
    return name
