"""`Encoder`: the blocks of a Vision Transformer or of a text encoder, and how their weights begin."""

import math

from torch import Tensor, nn

from dalle.clip.config import EncoderConfig
from dalle.transformer.block import Block

__all__ = ["Encoder", "start_weights"]


class Encoder(nn.Module):
    """A stack of Transformer blocks, each of which reads all tokens that the mask lets it see."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Embeddings (B, L, D) -> hidden states (B, L, D). mask: as in `dalle.transformer.attention`."""
        for block in self.blocks:
            x = block(x, mask, None, None, None)
        return x


def start_weights(network: nn.Module, depth: int) -> None:
    """Initialise weights: normal with deviation 0.02, less in layers that write to the residual stream (GPT-2)."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 2 and not name.startswith("position_embedding"):
            depth_scale = math.sqrt(2 * depth) if name.endswith("output.weight") else 1.0
            nn.init.normal_(parameter, std=0.02 / depth_scale)
