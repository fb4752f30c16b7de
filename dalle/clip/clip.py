"""`Clip`: a Vision Transformer and a text encoder whose vectors are compared in one space.

Pictures and prompts become vectors of unit length; their product is the cosine of the angle between them. A learned
scale and bias turn it into the logit that the losses read.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.clip.config import ClipConfig
from dalle.clip.text import TextEncoder
from dalle.clip.vision import VisionTransformer

__all__ = ["MAX_LOG_SCALE", "Clip"]

MAX_LOG_SCALE = math.log(100)
"""Largest logarithm of the scale that training allows, as in CLIP."""
STARTS = {"sigmoid": (math.log(10), -10.0), "softmax": (math.log(1 / 0.07), 0.0)}
"""First logarithm of the scale, and first bias, by loss: those of SigLIP and of CLIP."""


class Clip(nn.Module):
    """Both encoders, their projections into the common space, and the scale and bias of logits."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTransformer(config.vision)
        self.text = TextEncoder(config.text)
        self.vision_projection = nn.Linear(config.vision.width, config.embedding_width, bias=False)
        self.text_projection = nn.Linear(config.text.width, config.embedding_width, bias=False)
        for projection in (self.vision_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        log_scale, bias = STARTS[config.loss]
        self.log_scale = nn.Parameter(torch.tensor(log_scale))
        self.bias = nn.Parameter(torch.tensor(bias))

    def embed_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> vectors of unit length (B, E), float32."""
        return F.normalize(self.vision_projection(self.vision(images)).float(), dim=-1)

    def embed_texts(self, text_ids: Tensor) -> Tensor:
        """Text ids (B, T) -> vectors of unit length (B, E), float32."""
        return F.normalize(self.text_projection(self.text(text_ids)).float(), dim=-1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Logits (M, N) of the vectors of images (M, E) and of texts (N, E)."""
        return self.log_scale.exp() * images @ texts.T + self.bias
