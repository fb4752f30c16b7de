"""`VisionTransformer`: pictures to vectors (Dosovitskiy et al. 2020, arXiv 2010.11929).

A picture is cut into square patches, each of which a linear layer turns into a token. Blocks without a causal mask
follow; the picture's vector is that of a class token, or the mean over all patches.
"""

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from dalle.clip.config import VisionConfig
from dalle.clip.encoder import Encoder, start_weights
from dalle.transformer.block import make_norm
from dalle.transformer.positions import PositionEmbedding

__all__ = ["VisionTransformer"]

CHANNELS = 3


class VisionTransformer(nn.Module):
    """Images to vectors: the encoder of a CLIP model, and the body of a classifier."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = nn.Linear(CHANNELS * config.patch_size**2, config.width, bias=config.patch_bias)
        has_class_token = config.pooling == "class_token"
        self.class_token = nn.Parameter(torch.randn(config.width) * 0.02) if has_class_token else None
        self.position_embedding = PositionEmbedding(config.positions, config.width, config.layout)
        self.input_norm = make_norm(config) if config.input_norm else None
        self.encoder = Encoder(config)
        self.final_norm = make_norm(config)
        start_weights(self, config.depth)
        with torch.device("cpu"):  # never stored, so they must be real even where the weights are still to come
            for name in ("pixel_mean", "pixel_std"):
                values = torch.tensor(getattr(config, name)).reshape(-1, 1, 1)
                self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], of the configuration's size -> vectors (B, D), normalised but in scale."""
        size = self.config.image_size
        assert images.shape[1:] == (CHANNELS, size, size), tuple(images.shape)
        pixels = ((images + 1) / 2 - self.pixel_mean) / self.pixel_std
        p = self.config.patch_size
        x = self.patches(rearrange(pixels, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p))
        if self.class_token is not None:
            x = torch.cat([repeat(self.class_token.to(x.dtype), "d -> b 1 d", b=len(x)), x], dim=1)
        x = x + self.position_embedding()
        x = self.encoder(x if self.input_norm is None else self.input_norm(x), None)
        return self.final_norm(x.mean(1) if self.class_token is None else x[:, 0])
